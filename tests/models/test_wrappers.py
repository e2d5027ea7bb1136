"""`resolve` leaves a model alone, whatever mode, type and wrapping it comes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.helpers import hook_counts
from tests.models.small import HandModel, new, shared
from torch import Tensor, nn

from align_transformers import IntervenableModel, NeverFiredError, Site, SpecError, ZeroIntervention, describe
from align_transformers.models import resolve

KINDS = ("gpt2", "llama", "neox", "falcon", "t5", "bert", "mamba", "gemma2")


def told(model: nn.Module) -> list[str]:
    """Return the lines of the description but the first, which names the model's class."""
    return str(describe(model)).splitlines()[1:]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", KINDS)
def test_any_type_gives_the_same_map(name: str, dtype: torch.dtype) -> None:
    assert told(new(name).to(dtype)) == told(shared(name))


def _state(model: nn.Module) -> Any:
    return (
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad, p._version) for p in model.parameters()],
        hook_counts(model),
        model.config.to_dict(),
        [{k: v for k, v in vars(m).items() if isinstance(v, bool | int | float | str)} for m in model.modules()],
    )


@pytest.mark.parametrize("mode", ["train", "mixed", "eval"])
@pytest.mark.parametrize("trainable", [True, False])
def test_nothing_of_the_model_is_changed(mode: str, trainable: bool) -> None:
    model = new("llama").train(mode == "train").requires_grad_(trainable)
    if mode == "mixed":
        model.model.layers[1].train()
    before, generator = _state(model), torch.get_rng_state()
    assert told(model) == told(shared("llama"))
    assert _state(model) == before
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_gradient_mode_does_not_matter(mode: Callable[[], Any]) -> None:
    model = new("neox")
    with mode():
        enabled, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        assert told(model) == told(shared("neox"))
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (enabled, inference)


def test_hooks_of_others_stay_and_do_not_hear_of_the_dummy_passes() -> None:
    model, seen = new("llama"), []
    model.model.layers[0].mlp.register_forward_hook(lambda _m, _a, output: seen.append(output.shape))
    before = hook_counts(model)
    assert told(model) == told(shared("llama"))
    assert hook_counts(model) == before
    assert seen == []


def test_a_model_is_looked_at_once() -> None:
    model = new("llama")
    assert resolve(model) is resolve(model)


def test_a_model_whose_modules_were_exchanged_is_looked_at_again() -> None:
    model = new("llama")
    first = resolve(model)
    model.model.layers[0].mlp = new("llama", 1).model.layers[0].mlp
    assert resolve(model) is not first
    assert resolve(model).slot(Site("mlp_output", 0)).module is model.model.layers[0].mlp


def test_overrides_outlive_an_exchange_of_modules() -> None:
    model = new("llama")
    resolve(model, overrides={"mlp_input": ("post_attention_layernorm", "output")})
    model.model.layers[0].mlp = new("llama", 1).model.layers[0].mlp
    assert resolve(model).slot(Site("mlp_input", 0)).path == "model.layers.0.post_attention_layernorm"


class Adapter(nn.Module):
    """A low-rank change around a linear layer, as adapter libraries make it."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 3, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(3, base_layer.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class Packed(nn.Module):
    """A linear layer whose weight is kept as bytes, two numbers in one, with a scale."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = float(linear.weight.detach().abs().max()) / 7
        levels = (linear.weight.detach() / self.scale).round().clamp(-7, 7).to(torch.int64) + 8
        self.register_buffer("weight", (levels[:, ::2] * 16 + levels[:, 1::2]).to(torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        levels = torch.stack((self.weight // 16, self.weight % 16), -1).flatten(1).to(x.dtype) - 8
        return F.linear(x, levels * self.scale)


@pytest.mark.parametrize("wrapper", [Adapter, Packed])
def test_wrapped_linear_layers_are_linear_layers(wrapper: Any) -> None:
    model = new("llama")
    for layer in model.model.layers:
        for owner, names in ((layer.self_attn, ("q_proj", "v_proj", "o_proj")), (layer.mlp, ("up_proj", "down_proj"))):
            for name in names:
                setattr(owner, name, wrapper(getattr(owner, name)))
    assert told(model) == told(shared("llama"))
    assert type(resolve(model).slot(Site("query_output", 0)).module) is wrapper


def _ablated(model: nn.Module, component: str = "mlp_output") -> Tensor:
    zero = {"layer": 1, "component": component, "intervention_type": ZeroIntervention}
    with torch.no_grad():
        ids = torch.arange(3, 10)[None]
        return IntervenableModel(zero, model=model)({"input_ids": ids}, return_dict=True).intervened_outputs.logits


@pytest.mark.parametrize("component", ["mlp_output", "attention_pattern"])
@pytest.mark.parametrize("warm", [False, True])
def test_a_compiled_model_is_resolved_and_edited(component: str, warm: bool) -> None:
    torch._dynamo.reset()
    model = new("llama")
    compiled = torch.compile(model, backend="eager")
    if warm:
        with torch.no_grad():
            compiled(torch.arange(3, 10)[None])
    assert told(compiled) == told(model)
    assert torch.equal(_ablated(compiled, component), _ablated(new("llama"), component))


def test_compiled_blocks_are_resolved_and_edited_or_the_edit_is_refused() -> None:
    torch._dynamo.reset()
    model = new("llama")
    for layer in model.model.layers:
        layer.compile(backend="eager")
    with torch.no_grad():
        model(torch.arange(3, 10)[None])
    assert told(model) == told(shared("llama"))
    try:
        got = _ablated(model)
    except NeverFiredError:
        return
    assert torch.equal(got, _ablated(new("llama")))


def test_hooks_of_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    dispatched = accelerate.dispatch_model(new("llama"), device_map={"": "cpu"}, force_hooks=True)
    assert told(dispatched) == told(shared("llama"))
    assert torch.equal(_ablated(dispatched), _ablated(new("llama")))
    offloaded = new("llama")
    accelerate.cpu_offload(offloaded, execution_device="cpu")
    assert next(offloaded.parameters()).is_meta
    assert told(offloaded) == told(shared("llama"))
    assert torch.equal(_ablated(offloaded), _ablated(new("llama")))


def test_examples_are_the_callers() -> None:
    model = new("llama")
    inputs = {"input_ids": torch.arange(3, 33).view(3, 10), "use_cache": False}
    kept = inputs["input_ids"].clone()
    assert str(describe(resolve(model, example_inputs=inputs))).splitlines()[1:] == told(shared("llama"))
    assert torch.equal(inputs["input_ids"], kept)


def test_a_model_that_fails_is_left_as_it_was() -> None:
    model = HandModel().train()
    before = hook_counts(model)
    with pytest.raises(SpecError, match="example_inputs are no input of HandModel"):
        resolve(model, example_inputs={"nothing": torch.ones(2, 3)})
    assert hook_counts(model) == before
    assert all(module.training for module in model.modules())
    assert resolve(model).slot(Site("mlp_output", 0)).path == "floors.0.thinks.0"
