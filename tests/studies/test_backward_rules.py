"""Each rule of the backward pass against a network in which it is written by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from tests.helpers import tokens
from tests.studies.test_attribution import cells, close, products
from tests.studies.test_path_patching import model_of
from torch import Tensor, nn

from align_transformers import SpecError, attribution

ANSWERS, LAYERS = (4, 9), 3
COMPONENTS = ["block_output", "mlp_output", "attention_value_output"]
RULED = ("gpt2", "llama", "neox", "gemma2", "mixtral")


class FrozenNorm(nn.Module):
    """A norm written out, whose scale is constant."""

    def __init__(self, own: nn.Module, plus_one: bool) -> None:
        super().__init__()
        self.own, self.plus_one = own, plus_one

    def forward(self, x: Tensor) -> Tensor:
        own: Any = self.own
        centred = x - x.mean(-1, keepdim=True) if isinstance(own, nn.LayerNorm) else x
        eps = next(getattr(own, name) for name in ("variance_epsilon", "eps") if hasattr(own, name))
        scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt().detach()
        made = centred * scale * (1 + own.weight if self.plus_one else own.weight)
        return made if getattr(own, "bias", None) is None else made + own.bias


class Secant(nn.Module):
    """An activation function whose slope is that of its secant through 0."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.own(x) / x).detach()


class Halved(nn.Module):
    """A gated MLP, half of whose gradient goes to each factor of the product."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        own: Any = self.own
        gate, up = own.act_fn(own.gate_proj(x)), own.up_proj(x)
        return own.down_proj((gate * up.detach() + gate.detach() * up) / 2)


class HalvedExperts(nn.Module):
    """Gated experts, likewise: each token through all experts, weighted with 0 where it is not sent."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        own, total = self.own, torch.zeros_like(x)
        for expert in range(own.num_experts):  # type: ignore[call-overload]
            gate, up = (x @ own.gate_up_proj[expert].T).chunk(2, dim=-1)  # type: ignore[index]
            gate = own.act_fn(gate)  # type: ignore[operator]
            made = (gate * up.detach() + gate.detach() * up) / 2 @ own.down_proj[expert].T  # type: ignore[index]
            total = total + made * (weights * (index == expert)).sum(-1, keepdim=True)
        return total


class Warm(torch.autograd.Function):
    """A softmax whose backward pass is that at a temperature of 2, without the factor 1 / 2."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        ctx.save_for_backward((scores / 2).softmax(-1))
        return scores.softmax(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (warm,) = ctx.saved_tensors
        return warm * (gradient - (warm * gradient).sum(-1, keepdim=True))


class Softmaxes(torch.overrides.TorchFunctionMode):
    """Puts another softmax into eager attention."""

    def __init__(self, act: Callable[..., Tensor]) -> None:
        super().__init__()
        self.act = act

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is nn.functional.softmax and args[0].ndim == 4:
            return self.act(args[0].float())
        return function(*args, **(kwargs or {}))


def ruled(family: str, switches: tuple[str, ...]) -> Any:
    """Return a copy of a model in which rules are written by hand."""
    model = copy.deepcopy(model_of(family))
    model.config._attn_implementation = "eager"
    modules = dict(model.named_modules())
    for name, module in modules.items():
        parent = modules[name.rpartition(".")[0]]
        last = name.rpartition(".")[2]
        if "norm" in switches and ("norm" in last or last.startswith("ln_")):
            setattr(parent, last, FrozenNorm(module, family == "gemma2"))
        if "secant" in switches and last in ("act", "act_fn"):
            setattr(parent, last, Secant(module))
        if "half" in switches and last == "mlp" and hasattr(module, "gate_proj"):
            setattr(parent, last, Halved(module))
        if "half" in switches and last == "experts":
            setattr(parent, last, HalvedExperts(module))
        if "temperature" in switches and last in ("q_proj", "k_proj", "v_proj"):
            module.register_forward_hook(weakened(0.5 if last == "v_proj" else 0.25))
    return model


def weakened(factor: float) -> Callable[..., Tensor]:
    return lambda _module, _args, output: output * factor + (output * (1 - factor)).detach()


@contextmanager
def softmaxes(switches: tuple[str, ...]) -> Iterator[None]:
    act = Warm.apply if "temperature" in switches else lambda scores: scores.softmax(-1).detach()
    with Softmaxes(act) if {"patterns", "temperature"} & set(switches) else nullcontext():
        yield


def compare(family: str, rule: Any, switches: tuple[str, ...], acted: set[str] | None = None) -> None:
    base, source = tokens(1, 5, 1)["input_ids"], tokens(1, 5, 2)["input_ids"]
    table = attribution(
        model_of(family), {"input_ids": base}, {"input_ids": source}, answers=ANSWERS, components=COMPONENTS,
        rule=rule, verify=0,
    )  # fmt: skip
    with softmaxes(switches):
        wanted = products(family, base, source, ruled(family, switches))
    for (name, layer), product in wanted.items():
        close(cells(table, component=name, layer=layer), product.sum(-1), 0.1 * float(product.abs().sum(-1).max()))
    assert set(table.meta["acted"]) == (set(switches) if acted is None else acted)
    assert table.meta["switches"] == list(switches)


@pytest.mark.parametrize("family", RULED)
def test_norms_with_a_constant_scale(family):
    compare(family, "frozen_norm", ("norm",))


@pytest.mark.parametrize("family", RULED)
def test_activation_functions_by_their_secant(family):
    compare(family, "secant", ("secant",))


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_products_half_to_each_factor(family):
    compare(family, "half", ("half",))


@pytest.mark.parametrize("family", RULED)
def test_constant_patterns(family):
    compare(family, "patterns", ("patterns",))


@pytest.mark.parametrize("family", RULED)
def test_all_four(family):
    four = ("norm", "secant", "half", "patterns")
    compare(family, "relp", four, set(four) - ({"half"} if family in ("gpt2", "neox") else set()))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_softmax_at_a_temperature(family):
    compare(family, "temperature", ("temperature",))
    compare(family, "gim", ("norm", "half", "temperature"))


def test_values_stay_what_they_are():
    base, source = tokens(2, 5, 1), tokens(2, 5, 2)
    ask: dict[str, Any] = {"answers": ANSWERS, "components": COMPONENTS, "verify": 0}
    plain = attribution(model_of("gemma2"), base, source, **ask)
    for rule in ("relp", "gim"):
        other = attribution(model_of("gemma2"), base, source, rule=rule, **ask)
        assert other.columns["change"] == plain.columns["change"]
        assert other.meta["base_value"] == plain.meta["base_value"]
        assert other.columns["effect"] != plain.columns["effect"]


def test_numbers_of_a_functional_activation_are_not_claimed():
    """An MLP whose activation function is no module has no secant: that is said, not passed over."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.up, self.head = nn.Embedding(61, 8), nn.Linear(8, 16), nn.Linear(16, 61)

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.head(torch.relu(self.up(self.embed(input_ids))))

    with pytest.raises(SpecError, match="'secant' acts nowhere"):
        attribution(Plain(), tokens(1, 3, 1), tokens(1, 3, 2), answers=ANSWERS, components=["up.output"], rule="secant")
