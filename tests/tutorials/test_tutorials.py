"""Each tutorial runs, its assertions hold, and its cells show nothing but prints and figures (in the small mode)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tests.tutorials.__main__ import FOLDER, NAMES, child, main
from tests.tutorials.cells import cells, run


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_runs(name):
    done = child(name, small=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.splitlines()[-1].partition(" ")[0] != "0"  # figures


@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_is_prose_and_code_that_asserts(name):
    first, *rest = cells((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    assert first.prose
    assert first.text.startswith("# ")  # its title
    code = "\n".join(cell.text for cell in rest if not cell.prose)
    assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(code)))
    imported = [node.module or "" for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    assert not [one for one in imported if one.startswith("tests") or "._" in one]  # the public API alone


# --- the runner -------------------------------------------------------------------------------------------------------


def ran(tmp_path: Path, *lines: str):
    script = tmp_path / "script.py"
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return run(script, tmp_path)


FIGURE = ("from matplotlib.figure import Figure", "figure = Figure()", "figure.add_subplot().plot([1, 2])")


def test_figures_are_those_that_a_notebook_shows(tmp_path):
    pyplot = ("import matplotlib.pyplot as plt", "plt.plot([1])")
    found = ran(tmp_path, "# %%", *FIGURE, "figure", "# %%", *pyplot, "x = 1", "# %%", "print('end')")
    assert [path.name for path in found.figures] == ["script-1.png", "script-2.png"]
    assert all(path.stat().st_size > 1000 for path in found.figures)
    assert found.said == "end\n"


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (("# %%", "import warnings", "warnings.warn('careful')"), UserWarning),
        (("# %%", "x = 1", "x"), TypeError),
        (("# %%", "import matplotlib.pyplot as plt", "plt.figure()"), TypeError),
        (("# %%", "assert 1 > 2"), AssertionError),
        (("# %% [markdown]", "# # Title", "x = 1"), ValueError),
        (("x = 1", "# %%"), ValueError),
    ],
    ids=["warning", "value", "figure twice", "assertion", "code in prose", "before the first cell"],
)
def test_what_a_notebook_may_not_show_is_an_error(lines, error, tmp_path):
    with pytest.raises(error):
        ran(tmp_path, *lines)


def test_an_error_is_at_its_line_of_the_script(tmp_path):
    with pytest.raises(ZeroDivisionError) as raised:
        ran(tmp_path, "# %% [markdown]", "# # Title", "", "# %%", "x = 0", "1 / x")
    assert raised.traceback[-1].lineno == 5  # from 0


def test_numbers_in_the_prose_were_printed_above_it(tmp_path):
    prose = ("# %% [markdown]", "# It is 0.25, not 0.75; see arXiv:2303.02536 and version 2.13.0.")
    assert ran(tmp_path, *prose, "# %%", "print(0.75)").unsaid == ["0.25", "0.75"]
    assert ran(tmp_path, "# %%", "print(0.25)", *prose).unsaid == ["0.75"]


def test_a_tutorial_that_is_not_there_is_said_with_those_that_are(capsys):
    assert main(["Nothing"]) == 2
    assert "there is no tutorial Nothing; there are " in capsys.readouterr().err
