"""The README's code runs, from top to bottom, on the embedded model."""

from __future__ import annotations

import linecache
import re
import warnings
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```py\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.slow
def test_the_code_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(BLOCKS):
        with warnings.catch_warnings():
            if "create_gpt2" in block:  # says that it returns the embedded model where there is no hub
                warnings.simplefilter("ignore", UserWarning)
            where = f"README block {number}"
            linecache.cache[where] = (len(block), None, block.splitlines(keepends=True), where)  # as notebooks do
            exec(compile(block, where, "exec"), names)
    said = capsys.readouterr().out
    assert " Rome" in said
    assert "{'full': 2, 'packed': 4}" in said  # as the README says
    assert names["scores"]["iia"] > names["random_subspace"]["iia"] + 0.5  # type: ignore[index]
    assert (tmp_path / "das" / "weights.safetensors").is_file()
