"""A fit that keeps what the frozen model does below the interventions learns what a fit on whole passes learns."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import new_model
from tests.learning.tasks import batches, face, free_matrix
from torch import nn

from align_transformers import IntervenableModel, Memory, RotatedSpaceIntervention, Site, activations, fit_pca
from align_transformers.learning import fit, precompute

PLAIN = {"schedule": "constant", "warmup": 0, "lr": 0.01}


def blocks_called(model):
    """Return a list that grows by one with every call of the first block's MLP."""
    calls = []
    block = (model.transformer.h if hasattr(model, "transformer") else model.model.layers)[0]
    original = block.mlp.forward
    block.mlp.forward = lambda *args, **kwargs: (calls.append(1), original(*args, **kwargs))[1]
    return calls


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("how", ["by itself", "precomputed", "in files"])
def test_the_same_is_learned_and_lower_blocks_are_not_run_again(family, how, tmp_path):
    learned = []
    for memory in (False, how):
        model = new_model(family)
        made, data = face(model), batches(model=model)
        if memory == "precomputed":
            memory = precompute(made, data)
        elif memory:
            memory = Memory(budget=0, folder=tmp_path) if memory == "in files" else True
        calls = blocks_called(model)
        fit(made, data, epochs=8, memory=memory, **PLAIN)
        learned.append((free_matrix(made).clone(), len(calls)))
    (expected, whole), (found, kept) = learned
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert kept < whole
    if how == "precomputed":
        assert kept <= 4, "the library's trials of the model on a dummy; no example of the data is run again"
    if how == "in files":
        assert list(tmp_path.glob("*.safetensors"))


def test_a_model_without_a_sequence_is_fitted_over_several_epochs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    made = IntervenableModel(
        {"component": "1.output", "intervention": RotatedSpaceIntervention(embed_dim=6)}, model=model
    )
    base, source = torch.randn(2, 8, 4)
    labels = model(source).argmax(-1)
    fitted = fit(made, [{"base": base, "sources": source, "labels": labels}] * 2, epochs=3)
    assert fitted.steps == 6


def test_activations_are_those_of_a_plain_hook():
    model = new_model("llama")
    ids = torch.randint(1, 40, (3, 6))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    seen = []
    with model.model.layers[1].register_forward_hook(lambda _m, _a, output: seen.append(output)), torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    inputs, site = {"input_ids": ids, "attention_mask": mask}, Site("block_output", 1)
    torch.testing.assert_close(activations(model, inputs, site), seen[0][:, -1])
    torch.testing.assert_close(activations(model, [inputs], site, 0), seen[0][[0, 1, 2], [0, 2, 0]])
    torch.testing.assert_close(activations(model, inputs, site, "all"), seen[0][mask.bool()])
    fitted = fit_pca(model, inputs, site, 3, positions="all", standardise=False)
    rows = seen[0][mask.bool()]
    _, _, expected = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    torch.testing.assert_close(fitted.rotation @ fitted.rotation.T, expected[:3].T @ expected[:3], atol=1e-4, rtol=0)
