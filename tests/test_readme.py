"""The README's code runs, from top to bottom, on the embedded model."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.pages import ROOT, run_page


@pytest.mark.slow
# `create_gpt2` says that it returns the embedded model where there is no hub.
@pytest.mark.filterwarnings("ignore:.*smollm2:UserWarning")
def test_the_code_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run_page(ROOT / "README.md")
    assert " Rome" in ran.said
    assert "{'full': 2, 'packed': 4}" in ran.said  # as the README says
    assert ran.names["scores"]["iia"] > ran.names["random_subspace"]["iia"] + 0.5
    kept = {row["circuit"]: row["faithfulness"] for row in ran.names["table"].rows()}
    assert kept["circuit"] > 0.6
    assert abs(kept["random"]) < 0.1
    assert (tmp_path / "circuit.html").is_file()
    assert (tmp_path / "das" / "weights.safetensors").is_file()
