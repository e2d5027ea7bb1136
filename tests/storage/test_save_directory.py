"""pyvene's name of the folder that `save` writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from align_transformers import AlignError, IntervenableModel, LowRankRotatedSpaceIntervention, SpecError


def test_a_script_that_saves_by_pyvenes_name_can_be_run_again(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    kind = LowRankRotatedSpaceIntervention
    place = {"component": "0.output", "intervention_type": kind, "low_rank_dimension": 2}
    for _ in range(2):
        torch.manual_seed(0)
        made = IntervenableModel(place, model)
        assert made.save(save_directory=tmp_path / "one") == tmp_path / "one"
    loaded = IntervenableModel.load(tmp_path / "one", model=model)
    assert all(map(torch.equal, loaded.parameters(), made.parameters()))
    with pytest.raises(AlignError):
        IntervenableModel(place, model).save(save_directory=tmp_path / "one")  # others are not replaced unasked
    for wrong in ({}, {"folder": tmp_path / "a", "save_directory": tmp_path / "b"}):
        with pytest.raises(SpecError, match="say once where"):
            made.save(**wrong)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(AlignError):
        made.save(save_directory=tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
