"""`save`, `load`, `push_to_hub` and `from_pretrained` of `IntervenableModel`."""

from __future__ import annotations

import pytest
import torch
from tests.storage.kit import mlp
from tests.storage.test_hub import hub  # noqa: F401  (a fixture)
from torch import nn

from align_transformers import IntervenableModel, SpecError
from align_transformers._errors import ArtifactError
from align_transformers.interventions import LowRankRotatedSpaceIntervention

DAS = {
    "component": "2.output",
    "intervention_type": LowRankRotatedSpaceIntervention,
    "low_rank_dimension": 2,
    "subspace_partition": [[0, 1], [1, 2]],
}


def same(one: IntervenableModel, other: IntervenableModel) -> bool:
    base, source = torch.randn(3, 3), torch.randn(3, 3)
    return all(
        torch.equal(one(base, source, subspaces=parts)[1], other(base, source, subspaces=parts)[1])
        for parts in (None, [[[0], [1], [0, 1]]])
    )


@pytest.mark.parametrize("load", ["load", "from_pretrained"])
def test_a_folder(load, tmp_path):
    model: nn.Module = mlp()
    before = IntervenableModel(DAS, model)
    assert before.save(tmp_path / "das", metrics={"iia": 0.9}) == tmp_path / "das"
    assert same(before, getattr(IntervenableModel, load)(tmp_path / "das", model=model))
    with pytest.raises(ArtifactError, match="overwrite"):
        before.save(tmp_path / "das")
    before.save(tmp_path / "das", overwrite=True)


def test_another_model(tmp_path):
    IntervenableModel(DAS, mlp()).save(tmp_path / "das")
    with pytest.raises(ArtifactError, match=r"shapes: .* saved .*6.* found .*5"):
        IntervenableModel.load(tmp_path / "das", model=mlp(width=5))
    with pytest.warns(UserWarning, match="going on all the same"):
        IntervenableModel.load(tmp_path / "das", model=mlp().double(), strict=False)


def test_a_function_is_refused(tmp_path):
    with pytest.raises(SpecError, match="function is code"):
        IntervenableModel({"component": "2.output", "intervention": lambda base: base}, mlp()).save(tmp_path / "das")


def test_the_hub(hub, tmp_path):  # noqa: F811
    model = mlp()
    before = IntervenableModel(DAS, model)
    commit = before.push_to_hub("me/das", metrics={"iia": 0.9}, token=hub.token)
    found = IntervenableModel.from_pretrained("me/das", model=model, revision=commit, cache_dir=tmp_path)
    assert same(before, found)
