"""Every study's table says what it was made with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import transformers
from tests.helpers import new_model, tokens
from torch import nn

import align_transformers as at
from align_transformers import Claim, Site, Table

ONE = {"layers": [0], "planner": at.one_by_one}
STUDIES: dict[str, Callable[[nn.Module], Table]] = {
    "grid": lambda model: at.grid(
        model, tokens(1, 3, 1), tokens(1, 3, 2), components=["mlp_output"], answers=(4, 5), **ONE
    ),
    "score": lambda model: at.score(model, tokens(2, 3), at.accuracy(3)),
    "causal_tracing": lambda model: at.causal_tracing(model, tokens(1, 3), [1], draws=2, **ONE),
    "path_patching": lambda model: at.path_patching(
        model, tokens(1, 3, 1), tokens(1, 3, 2), "logits", senders=["m0"], answers=(4, 5)
    ),
    "causal_scrubbing": lambda model: at.causal_scrubbing(
        model, tokens(3, 3), [Claim(Site("mlp_output", 0), [0, 1, 0])], answers=4, draws=2
    ),
    "logit_lens": lambda model: at.logit_lens(model, tokens(1, 3), **ONE),
    "direct_logit_attribution": lambda model: at.direct_logit_attribution(model, tokens(1, 3), answers=4),
    "attention_patterns": lambda model: at.attention_patterns(model, tokens(1, 3), layers=[0]),
    "probe": lambda model: at.probe(model, tokens(8, 3), [0, 1] * 4, folds=2, draws=1, answers=[4, 5] * 4, **ONE),
    "steer": lambda model: at.steer(
        model, tokens(2, 3), at.logit_difference(4, 5), direction=torch.ones(32), doses=[1.0], max_new_tokens=1,
        layers=[0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STUDIES)
def test_a_table_says_what_it_was_made_with(name: str) -> None:
    model = new_model("gpt2")
    meta: dict[str, Any] = dict(STUDIES[name](model).meta)
    found = {library.__name__: library.__version__.split("+")[0] for library in (numpy, torch, transformers)}
    assert {key: value.split("+")[0] for key, value in meta["versions"].items()} == found
    assert meta["identity"]["class"] == type(model).__name__
    assert meta["identity"]["config_hash"]
    assert meta["passes"]
    assert meta["version"]
    assert meta["model"]
    assert meta["base" if name in ("grid", "path_patching") else "prompts"]


def test_another_configuration_is_another_identity() -> None:
    first, second = (at.score(new_model(family), tokens(1, 3), at.accuracy(3)).meta for family in ("gpt2", "llama"))
    assert first["identity"]["config_hash"] != second["identity"]["config_hash"]
    assert first["identity"] == at.score(new_model("gpt2"), tokens(1, 3), at.accuracy(3)).meta["identity"]
