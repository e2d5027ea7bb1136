"""Rounding that depends on other rows: it is no mixing of positions, so an MLP stays an MLP."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models.small import new
from torch import Tensor, nn

from align_transformers import Site
from align_transformers.models import resolve


class Rounding(nn.Linear):
    """A linear layer in eight bits, with one scale for each of what `kind` says."""

    kind = "tensor"

    def forward(self, x: Tensor) -> Tensor:
        kept, scale = torch.zeros_like(x, dtype=torch.bool), x.abs().amax() / 127
        if self.kind == "outliers":  # as LLM.int8(): a column with an outlier in any row stays as it is
            kept = (x.abs() > 1).flatten(0, -2).any(0).expand_as(x)
            scale = x.masked_fill(kept, 0).abs().amax(-1, keepdim=True).clamp(min=1e-6) / 127
        through = (x / scale).round() + (x / scale - (x / scale).detach())
        return nn.functional.linear(torch.where(kept, x, through * scale), self.weight, self.bias)


class NoDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("this kernel has no derivative")


class Crowded(nn.Module):
    """Experts with room for three rows each: those that come later are left out."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp, self.gate = mlp, nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        chosen = nn.functional.one_hot(self.gate(x).argmax(-1).flatten(), 2)
        served = (chosen * chosen.cumsum(0)).sum(-1) <= 3
        return self.mlp(x) * served.view(*x.shape[:2], 1)


@pytest.mark.parametrize("kind", ["tensor", "outliers"])
def test_linear_layers_that_round_by_other_rows(kind: str) -> None:
    model, plain = new("llama"), resolve(new("llama"))
    for name, module in model.named_modules():
        if type(module) is nn.Linear and name != "lm_head":
            module.__class__ = Rounding
            module.kind = kind
    found = resolve(model)
    assert found.stacks[""][0].flags["mixer"] == "softmax"
    for component in plain.stacks[""][1].slots:
        assert str(found.slot(Site(component, 1))) == str(plain.slot(Site(component, 1))), component


def test_experts_that_are_full_mix_no_positions() -> None:
    model = new("llama")
    for layer in model.model.layers:
        layer.mlp = Crowded(layer.mlp)
    block = resolve(model).stacks[""][0]
    assert "mixer_output" not in block.slots
    assert block.slots["mlp_activation"].path == "model.layers.0.mlp.mlp.down_proj"


def test_a_kernel_without_a_derivative_is_told_by_what_it_moves() -> None:
    class Kernel(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return NoDerivative.apply(x, self.weight)

    class Mean(nn.Module):
        """A mixer that is one: what came before is averaged."""

        def __init__(self) -> None:
            super().__init__()
            self.map = Kernel(32, 32, bias=False)

        def forward(self, x: Tensor, **_: Any) -> Tensor:
            steps = torch.arange(1, x.shape[1] + 1).view(-1, 1)
            return self.map(x.cumsum(1) / steps)

    model = new("mamba")
    for layer in model.backbone.layers:
        layer.mixer = Mean()
    assert resolve(model).slot(Site("mixer_output", 1)).path == "backbone.layers.1.mixer"
