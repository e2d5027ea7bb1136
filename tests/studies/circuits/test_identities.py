"""The ends of circuits on a random sample of architectures: all edges are the model, none are the other run.

`ALIGN_SAMPLE_SEED=7 pytest tests/studies/circuits/test_identities.py` draws others.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from tests.architectures.sample import sample, seed
from tests.architectures.tiny import tiny_model

from align_transformers import SpecError, graph
from align_transformers.studies.circuits.exact import CircuitPass, Replacement, record_run, shares_in
from align_transformers.studies.circuits.wiring import wire

LENGTH = 6


def stirred(model: Any) -> Any:
    """Return a model with weights that are far from those that a norm or a gate starts with."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.is_floating_point():
            drawn = torch.randn(weight.shape, generator=generator) * (0.2 if weight.ndim > 1 else 0.1)
            weight.data.copy_(drawn + (weight.ndim == 1 and name.endswith("weight")))
    return model.eval()


def wired(model: Any) -> Any:
    """Return the wiring of heads, or, where theirs is refused, of whole attentions."""
    try:
        return wire(model, graph(model))
    except SpecError as error:
        if "heads=False tells" not in str(error):
            raise
        return wire(model, graph(model, heads=False))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*sample()[:10], "deepseek_v3"], ids=lambda name: f"seed{seed()}-{name}")
def test_the_ends_of_circuits(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = stirred(tiny_model("CAUSAL_LM", name).model)
    wiring = wired(model)
    vocab = int(model.config.get_text_config().vocab_size)
    ids = torch.randint(6, min(vocab, 100), (2, 2, LENGTH), generator=torch.Generator().manual_seed(1))
    base, source = ({"input_ids": one} for one in ids)
    columns = [LENGTH - 1] * 2
    other = record_run(model, wiring, source)
    present = torch.zeros(1, *wiring.valid.shape)

    def run(replacement: Replacement, absent: torch.Tensor) -> torch.Tensor:
        return CircuitPass(model, wiring, replacement, absent).run(base, columns).detach()

    with torch.no_grad():
        clean, moved = (model(**one).logits[:, -1] for one in (base, source))
    assert torch.equal(run(Replacement(other), present), clean)
    size = float((clean - moved).abs().max())
    assert size > 0
    assert float((run(Replacement(other), present + 1) - moved).abs().max()) < 1e-4 * size
    shares = Replacement(shares=shares_in(wiring, other))
    assert float((run(shares, present + 1) - moved).abs().max()) < 1e-3 * size
    some = (torch.rand(present.shape, generator=torch.Generator().manual_seed(2)) < 0.5).float()
    assert float((run(shares, some) - run(Replacement(other), some)).abs().max()) < 1e-3 * size
