"""A random sample of 20 causal language models, end to end: what a user writes, against plain hooks written here.

They are drawn from all that the sweep calls complete. `ALIGN_SAMPLE_SEED=7 pytest tests/test_many_architectures.py`
draws others; the seed stands in the names of the tests.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from inspect import signature
from typing import Any

import pytest
import torch
from tests.architectures.sample import sample, seed
from tests.architectures.tiny import tiny_model
from tests.architectures.verify import is_absent
from torch import Tensor, nn

from align_transformers import (
    AdditionIntervention,
    IntervenableModel,
    Site,
    SiteError,
    VanillaIntervention,
)
from align_transformers.models import resolve

LENGTH, NEW = 7, 4
ARCHITECTURES = sample()
READ, WRITE, CHOSEN = [[2], [5]], [[6], [3]], [[1], [2]]
"""Positions of the source, positions of the base, and heads: one for each of the two examples."""

Touch = Callable[[Tensor], Tensor]


@pytest.fixture(params=ARCHITECTURES, scope="module", ids=lambda name: f"seed{seed()}-{name}")  # a model at a time
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@lru_cache(maxsize=1)
def model_of(name: str) -> Any:
    """Return a tiny random model; the last one is kept."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = tiny_model("CAUSAL_LM", name).model
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def inputs_of(model: Any, seed: int, padding: int) -> dict[str, Tensor]:
    """Return two prompts; the second is padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, model.config.get_text_config().vocab_size, (2, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, :padding] = mask[1, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask}


@contextmanager
def plain_hook(module: nn.Module, side: str, touch: Touch) -> Iterator[None]:
    """Let a touch see a private copy of the first tensor that goes into a module, or comes out of it."""

    def on_output(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return touch(output.clone())
        return type(output)([touch(output[0].clone()), *output[1:]])

    def on_input(_module: nn.Module, args: Any) -> Any:
        return (touch(args[0].clone()), *args[1:])

    handle = module.register_forward_hook(on_output) if side == "output" else module.register_forward_pre_hook(on_input)
    with handle:
        yield


def layer_of(model: Any) -> int:
    """Return the first block from 1 on that has most of what is edited here."""
    blocks = resolve(model).stacks[""]
    wanted = {"attention_value_output", "mlp_activation"}
    return max(range(1, len(blocks)), key=lambda number: (len(wanted & set(blocks[number].slots)), -number))


def reported(model: Any, component: str) -> tuple[nn.Module, str]:
    """Return the module and the side that the map names."""
    slot = resolve(model).slot(Site(component, layer_of(model)))
    return model.get_submodule(slot.path), slot.side


def head_count(model: Any) -> int:
    """Return how many heads the configuration says; where it has a list of them, how many the map says."""
    config = model.config.get_text_config()
    said = None if getattr(config, "per_layer_config", None) else getattr(config, "num_attention_heads", None)
    heads = resolve(model).slot(Site("attention_value_output", layer_of(model))).heads
    assert heads is not None
    return said if isinstance(said, int) else len(heads)


def by_example(tensor: Tensor) -> Tensor:
    """Return a view `(batch, length, width)`: some MLPs work on `(batch * length, width)`, some models length first."""
    if tensor.shape[:2] == (LENGTH, 2):
        return tensor.transpose(0, 1)
    return tensor.view(2, LENGTH, -1)


def is_to_be_had(model: Any, component: str, unit: str) -> bool:
    """Whether the block has a component; where not, that it has no such thing at all, and that an edit is refused."""
    block = resolve(model).stacks[""][layer_of(model)]
    if component in block.slots:
        return True
    assert is_absent(block.missing[component])
    with pytest.raises(SiteError, match=re.escape(block.missing[component])):
        IntervenableModel(spec(model, component, unit, VanillaIntervention), model)
    return False


def swapped_by_hand(
    model: Any, component: str, base: Any, source: Any, channels: Callable[[int, int], slice]
) -> Tensor:
    """Return the logits with one position of each example swapped by plain hooks.

    `channels` tells, given the example and the tensor's width, what to swap.
    """
    seen: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        seen.append(by_example(tensor).clone())
        return tensor

    def swap(tensor: Tensor) -> Tensor:
        view = by_example(tensor)
        for n in range(2):
            cut = channels(n, tensor.shape[-1])
            view[n, WRITE[n][0], cut] = seen[0][n, READ[n][0], cut]
        return tensor

    # A pass that is only read keeps no keys and values: with them, some models sum in another order.
    with plain_hook(*reported(model, component), keep):
        model(**source, **({"use_cache": False} if "use_cache" in signature(model.forward).parameters else {}))
    with plain_hook(*reported(model, component), swap):
        return model(**base).logits


def check(got: Tensor, expected: Tensor, plain: Tensor) -> None:
    assert torch.equal(got, expected)
    for n in range(2):
        assert not torch.allclose(expected[n, WRITE[n][0]], plain[n, WRITE[n][0]], rtol=1e-3, atol=1e-4)


def spec(model: Any, component: str, unit: str, kind: Any, **more: Any) -> dict[str, Any]:
    return {"layer": layer_of(model), "component": component, "unit": unit, "intervention_type": kind, **more}


@pytest.mark.filterwarnings("ignore:the batch is padded on the left")  # the hooks by hand get the same batch
@torch.no_grad()
def test_swaps(name: str) -> None:
    model = model_of(name)
    base, source = inputs_of(model, 1, padding=2), inputs_of(model, 2, padding=0)
    plain = model(**base).logits

    where: dict[str, Any] = {"sources->base": ([READ], [WRITE])}
    expected = swapped_by_hand(model, "block_output", base, source, lambda _n, _width: slice(None))
    got = IntervenableModel(spec(model, "block_output", "pos", VanillaIntervention), model)(base, source, where)[
        1
    ].logits
    check(got, expected, plain)

    if is_to_be_had(model, "attention_value_output", "h.pos"):
        heads = head_count(model)

        def one_head(example: int, width: int) -> slice:
            size, head = width // heads, CHOSEN[example][0]
            return slice(head * size, (head + 1) * size)

        expected = swapped_by_hand(model, "attention_value_output", base, source, one_head)
        where = {"sources->base": ([[CHOSEN, READ]], [[CHOSEN, WRITE]])}
        swap = IntervenableModel(spec(model, "attention_value_output", "h.pos", VanillaIntervention), model)
        check(swap(base, source, where)[1].logits, expected, plain)

    if is_to_be_had(model, "mlp_activation", "pos"):
        expected = swapped_by_hand(model, "mlp_activation", base, source, lambda _n, _width: slice(3, 20))
        neurons = spec(model, "mlp_activation", "pos", VanillaIntervention, subspace_partition=[[0, 3], [3, 20]])
        where = {"sources->base": ([READ], [WRITE])}
        got = IntervenableModel(neurons, model)(base, source, where, subspaces=[[[1], [1]]])[1].logits
        check(got, expected, plain)


@torch.no_grad()
def test_generation(name: str) -> None:
    """A vector added at every generated token: as with a plain hook, and the same text with and without a cache."""
    model = model_of(name)
    prompt = inputs_of(model, 3, padding=2)
    module, side = reported(model, "block_output")
    assert side == "output"
    width = resolve(model).slot(Site("block_output", layer_of(model))).width
    vector = 3 * torch.randn(width or 0, generator=torch.Generator().manual_seed(4))
    steer = IntervenableModel(spec(model, "block_output", "pos", AdditionIntervention), model)
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True}
    options |= {"output_logits": True}

    def add(tensor: Tensor) -> Tensor:
        tensor[:, 0 if tensor.shape[1] == 1 else LENGTH :] += vector
        return tensor

    texts, by_hand = [], []
    for cache in (True, False):
        with plain_hook(module, side, add):
            expected = model.generate(**prompt, use_cache=cache, **options)
        got = steer.generate(prompt, None, None, vector, use_cache=cache, return_dict=True, **options)
        text = got.intervened_outputs
        assert torch.equal(text.sequences, expected.sequences)
        assert torch.equal(torch.stack(text.logits), torch.stack(expected.logits))
        assert got.effects[0].positions >= 2 * (NEW - 1)  # the last token is never processed
        texts.append(text)
        by_hand.append(model.generate(**prompt, use_cache=cache, **options))
    unedited = [torch.stack(text.logits) for text in by_hand]
    if torch.allclose(*unedited, rtol=1e-3, atol=1e-3):  # some models are not themselves with a cache
        assert torch.equal(texts[0].sequences, texts[1].sequences)
        # With a cache, sums are taken in another order.
        torch.testing.assert_close(torch.stack(texts[0].logits), torch.stack(texts[1].logits), rtol=1e-3, atol=1e-3)
    plain = model.generate(**prompt, use_cache=True, **options)
    assert torch.equal(plain.logits[0], texts[0].logits[0])
    assert not torch.allclose(plain.logits[1], texts[0].logits[1], atol=1e-2)
