"""What a model can be given, also through a wrapper that hands on whatever it gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.helpers import new_model, padded_tokens
from torch import nn

from align_transformers import Metric, causal_tracing, logit_difference, score
from align_transformers.models.arguments import forward_parameters

pytestmark = pytest.mark.filterwarnings("ignore:.*checkpointing:FutureWarning")  # PEFT's


class Hands(nn.Module):
    """A wrapper as people write them."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inside(*args, **kwargs)


def wrapped(kind: str) -> Any:
    model = new_model("gpt2")
    if kind == "wrapper":
        return Hands(Hands(model)).eval()
    task = {"task_type": "CAUSAL_LM"} if kind == "peft for text" else {}
    return get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, **task)).eval()


@pytest.mark.parametrize("kind", ["wrapper", "peft", "peft for text"])
def test_a_wrapper_takes_what_the_model_in_it_takes(kind: str) -> None:
    plain = set(forward_parameters(new_model("gpt2")))
    assert {"input_ids", "position_ids", "logits_to_keep", "inputs_embeds"} < plain
    assert plain <= set(forward_parameters(wrapped(kind)))
    assert "inside" not in forward_parameters(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("kind", ["peft", "peft for text"])
@torch.no_grad()
def test_a_wrapped_model_is_measured_as_it_is_without(kind: str) -> None:
    """The adapters do nothing yet; learned positions and padding on the left, and embeddings in the place of tokens."""
    plain, model, inputs = new_model("gpt2"), wrapped(kind), padded_tokens((5, 3), "left")
    metric = Metric("last", logit_difference(4, 9))
    alone = score(plain, inputs, metric).columns["metric"]
    assert score(model, inputs, metric).columns["metric"] == pytest.approx(alone, abs=1e-5)
    ids = inputs["input_ids"][1:, 2:]
    own = plain(ids).logits[0, -1]
    assert alone[1] == pytest.approx(float(own[4] - own[9]), abs=1e-5)
    found = [causal_tracing(one, {"input_ids": ids}, [1], draws=2, layers=[0]).columns for one in (plain, model)]
    assert found[0]["restored"] == pytest.approx(found[1]["restored"], abs=1e-5)
