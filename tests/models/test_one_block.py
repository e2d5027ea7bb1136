"""Models with one block: there is no chain, so the block is told by what it does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as t
from tests.models.small import COMMON, HIDDEN, LLAMA, PLAIN, T5, HandBlock, HandModel
from torch import Tensor, nn

from align_transformers import IntervenableModel, Site, VanillaIntervention
from align_transformers.models import resolve

ONE = {"num_hidden_layers": 1}
BOTTLENECK = {**PLAIN, **ONE, "embedding_size": 16, "intra_bottleneck_size": 16, "hidden_size": HIDDEN}
MAKERS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**{**LLAMA, **ONE})),
    "bert": lambda: t.BertModel(t.BertConfig(**{**PLAIN, **ONE})),
    "mobilebert": lambda: t.MobileBertModel(t.MobileBertConfig(**BOTTLENECK, num_feedforward_networks=3)),
    "mamba": lambda: t.MambaForCausalLM(t.MambaConfig(**COMMON, hidden_size=HIDDEN, **ONE)),
    "t5": lambda: t.T5ForConditionalGeneration(t.T5Config(**{**T5, "num_layers": 1})),
    "t5 with one decoder block": lambda: t.T5ForConditionalGeneration(t.T5Config(**T5, num_decoder_layers=1)),
}
BLOCKS: dict[str, dict[str, list[str]]] = {
    "llama": {"": ["model.layers.0"]},
    "bert": {"": ["encoder.layer.0"]},
    "mobilebert": {"": ["encoder.layer.0"]},  # not the three small MLPs in a chain inside it
    "mamba": {"": ["backbone.layers.0"]},
    "t5": {"encoder": ["encoder.block.0"], "decoder": ["decoder.block.0"]},  # not the chains of sublayers
    "t5 with one decoder block": {"encoder": ["encoder.block.0", "encoder.block.1"], "decoder": ["decoder.block.0"]},
}


def new(name: str) -> Any:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = MAKERS[name]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("name", MAKERS)
def test_the_block_of_a_model_with_one_layer(name: str) -> None:
    stacks = resolve(new(name)).stacks
    assert {stack: [block.path for block in blocks] for stack, blocks in stacks.items()} == BLOCKS[name]


class Wrapped(nn.Module):
    """A model whose blocks stand in a module that is alone in its container."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.words = nn.Embedding(64, HIDDEN)
        self.parts = nn.Sequential(Part(layers))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.parts(self.words(input_ids))


class Part(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.floors = nn.ModuleList(HandBlock("plain", 1, 1) for _ in range(layers))
        self.last = nn.LayerNorm(HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        for floor in self.floors:
            x = floor(x)
        return self.last(x)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_module_around_the_blocks_is_none(layers: int) -> None:
    found = resolve(Wrapped(layers).eval()).stacks[""]
    assert [block.path for block in found] == [f"parts.0.floors.{n}" for n in range(layers)]


@pytest.mark.parametrize(("attentions", "mlps"), [(1, 1), (0, 1), (1, 0)])
def test_a_part_of_the_block_that_is_alone_in_a_container_is_none(attentions: int, mlps: int) -> None:
    model = HandModel(attentions=attentions, mlps=mlps).eval()
    model.floors = model.floors[:1]
    assert [block.path for block in resolve(model).stacks[""]] == ["floors.0"]


def test_an_interchange_in_the_only_block_is_that_of_a_hook() -> None:
    model = new("llama")
    base, source = (
        {"input_ids": torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(n))} for n in (1, 2)
    )
    down, seen = model.model.layers[0].mlp.down_proj, {}

    def keep(_module: Any, args: tuple[Tensor]) -> None:
        seen["neurons"] = args[0].clone()

    def swap(_module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        return (torch.cat([args[0][:, :2], seen["neurons"][:, 2:3], args[0][:, 3:]], 1),)

    with torch.no_grad():
        with down.register_forward_pre_hook(keep):
            model(**source)
        with down.register_forward_pre_hook(swap):
            expected = model(**base).logits
    site = {"layer": 0, "component": "mlp_activation", "intervention_type": VanillaIntervention}
    _, given = IntervenableModel(site, model=model)(base, source, {"sources->base": 2})
    assert torch.equal(given.logits, expected)


def test_it_is_the_block_that_two_layers_have_twice() -> None:
    one, two = (resolve(t.LlamaForCausalLM(t.LlamaConfig(**{**LLAMA, "num_hidden_layers": n})).eval()) for n in (1, 2))
    names = two.stacks[""][0].slots
    assert list(one.stacks[""][0].slots) == list(names)
    assert [str(one.slot(Site(name, 0))) for name in names] == [str(two.slot(Site(name, 0))) for name in names]
