"""The metrics that sweeps brought: rank and divergence against formulas, and metrics of some tokens."""

from __future__ import annotations

import pytest
import torch

from align_transformers._errors import SpecError
from align_transformers.metrics import Metric, kl_to_clean, logit_difference, rank

LOGITS = torch.tensor([[1.0, 0.0, 4.0, -2.0], [3.0, 0.0, 2.5, 1.0]])


def test_the_divergence_is_pytorchs():
    clean = torch.tensor([[0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 5.0]])
    peer = torch.nn.functional.kl_div(LOGITS.log_softmax(-1), clean.softmax(-1), reduction="none").sum(-1)
    assert torch.allclose(kl_to_clean()(LOGITS, clean), peer)
    assert torch.equal(kl_to_clean()(LOGITS, LOGITS), torch.zeros(2))
    assert kl_to_clean() == kl_to_clean()
    with pytest.raises(SpecError, match="compares with the clean run"):
        kl_to_clean()(LOGITS)


def test_the_rank_is_the_place_in_the_order():
    for token in range(4):
        places = [sorted(row, reverse=True).index(row[token]) for row in LOGITS.tolist()]
        assert rank(token)(LOGITS).tolist() == places
    with pytest.raises(SpecError, match="outside the vocabulary"):
        rank(4)(LOGITS)


def test_a_metric_of_some_tokens_takes_all_logits_or_only_these():
    metric = logit_difference(2, 0)
    assert metric.tokens == (2, 0)
    assert torch.equal(metric.of(LOGITS[:, [2, 0]]), metric(LOGITS))
    with pytest.raises(SpecError, match="negative"):
        Metric("x", torch.sum, (-1,))


def test_a_clean_run_of_other_examples_is_refused_and_never_stretched():
    for clean in (LOGITS[:1], LOGITS[0], LOGITS[:, :1]):
        with pytest.raises(SpecError, match="same examples"):
            kl_to_clean()(LOGITS, clean)
