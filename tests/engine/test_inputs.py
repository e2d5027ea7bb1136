"""What is known of an input before it runs."""

from __future__ import annotations

import pytest
import torch

from align_transformers import PlanError
from align_transformers.engine import batch_size, real_spans, token_axis

IDS = torch.ones(3, 4, dtype=torch.long)


@pytest.mark.parametrize(
    ("inputs", "batch"),
    [
        ({"input_ids": IDS}, 3),
        ({"position_ids": torch.arange(4)[None], "input_ids": IDS}, 3),
        ({"use_cache": True, "scale": torch.tensor(1.0), "pixel_values": torch.zeros(2, 3, 8, 8)}, 2),
        (torch.zeros(5, 2), 5),
    ],
)
def test_batch_size(inputs, batch):
    assert batch_size(inputs) == batch


@pytest.mark.parametrize("inputs", [{}, {"use_cache": True}, {"scale": torch.tensor(1.0)}])
def test_no_batch(inputs):
    with pytest.raises(PlanError, match="batch axis"):
        batch_size(inputs)


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [
        ({"input_ids": IDS}, (3, 4)),
        ({"input_ids": None, "inputs_embeds": torch.zeros(2, 5, 8)}, (2, 5, 8)),
        ({"input_ids": IDS, "decoder_input_ids": IDS}, None),
        ({"pixel_values": torch.zeros(2, 3, 8, 8)}, None),
        (IDS, (3, 4)),
        (torch.zeros(2, 5, 8), (2, 5, 8)),
        (torch.zeros(2, 8), None),
    ],
)
def test_token_axis(inputs, shape):
    tokens = token_axis(inputs)
    assert (None if tokens is None else tuple(tokens.shape)) == shape


def test_real_spans():
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    assert real_spans({"input_ids": IDS, "attention_mask": mask}) == [(1, 4), (0, 2), (0, 0)]
    assert real_spans({"input_ids": IDS}) == [(0, 4)] * 3
    assert real_spans({"input_ids": IDS, "attention_mask": torch.ones(3, 9)}) == [(0, 4)] * 3
    assert real_spans(torch.zeros(2, 8)) is None
