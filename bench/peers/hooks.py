"""The contestant `hooks`: PyTorch and transformers alone, written by hand the way everybody writes it first.

Its values are what all others are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
import work
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from work import BATCH, HALF, NEW_TOKENS, PLACE, POSITIONS, RANK, Task


def load(task: Task) -> Any:
    """Return the model, in eval mode, with nothing to train; one for all works of a process."""
    return _load(task.checkpoint)


@cache
def _load(checkpoint: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return work.settled(model).requires_grad_(False)


@contextmanager
def hooked(*hooks: tuple[nn.Module, Callable[[Tensor], Tensor | None]]):
    """Hold forward hooks: each sees its module's output, and what it returns (if anything) takes its place."""
    with ExitStack() as stack:
        for module, function in hooks:
            handle = module.register_forward_hook(lambda _m, _i, output, f=function: f(output))
            stack.callback(handle.remove)
        yield


def capture(model: Any, modules: Sequence[nn.Module], tokens: Tensor) -> list[Tensor]:
    """Return the outputs of modules in one plain pass."""
    kept: dict[int, Tensor] = {}
    with hooked(*((m, lambda output, n=n: kept.__setitem__(n, output)) for n, m in enumerate(modules))):
        model(tokens)
    return [kept[n] for n in range(len(modules))]


def placed(output: Tensor, place: int, value: Tensor) -> Tensor:
    """Return the output with another value `(batch, width)` at one position."""
    output = output.clone()
    output[:, place] = value
    return output


def swapped(model: Any, layer: int, place: int, bases: Tensor, sources: Tensor) -> Tensor:
    """Return the base's logits with the source's block output at one place: one source pass, one patched pass."""
    block = model.model.layers[layer]
    (value,) = capture(model, [block], sources)
    with hooked((block, lambda output: placed(output, place, value[:, place]))):
        return model(bases).logits


def block_grid(task: Task) -> Callable[..., Tensor]:
    """A source pass and a patched pass for every cell (layer, position)."""
    model = load(task)

    @torch.no_grad()
    def once(cells: list[tuple[int, int]], pair: int = 0) -> Tensor:
        base, source = task.bases[pair : pair + 1], task.sources[pair : pair + 1]
        return torch.tensor(
            [task.difference(swapped(model, layer, place, base, source)).item() for layer, place in cells]
        )

    return once


def head_grid(task: Task) -> Callable[..., Tensor]:
    """One source pass in all, then a patched pass for every cell (layer, head), at the last token."""
    model = load(task)
    projections = [block.self_attn.o_proj for block in model.model.layers]

    @torch.no_grad()
    def once(cells: list[tuple[int, int]]) -> Tensor:
        values: dict[int, Tensor] = {}
        handles = [
            module.register_forward_pre_hook(lambda _m, args, n=n: values.__setitem__(n, args[0]))
            for n, module in enumerate(projections)
        ]
        model(task.sources[:1])
        for handle in handles:
            handle.remove()
        return torch.tensor([patched(layer, head, values[layer]).item() for layer, head in cells])

    def patched(layer: int, head: int, value: Tensor) -> Tensor:
        channels = slice(head * 64, head * 64 + 64)

        def put(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            heads = args[0].clone()
            heads[:, -1, channels] = value[:, -1, channels]
            return (heads,)

        handle = projections[layer].register_forward_pre_hook(put)
        logits = model(task.bases[:1]).logits
        handle.remove()
        return task.difference(logits)

    return once


def interchange(task: Task) -> Callable[[], Tensor]:
    """One interchange in a batch of 16, at block 15 and position 12."""
    model = load(task)

    @torch.no_grad()
    def once() -> Tensor:
        return task.difference(swapped(model, 15, PLACE, task.bases[:BATCH], task.turned[:BATCH]))

    return once


class Rotation(nn.Module):
    """Orthonormal columns, kept orthonormal by PyTorch's parametrisation, as pyvene does it."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(work.rotation(columns))
        nn.utils.parametrizations.orthogonal(self)
        self.weight = work.rotation(columns)

    def forward(self, base: Tensor, source: Tensor, swap: int) -> Tensor:
        """Return the base with the source's first `swap` coordinates in the rotated space."""
        columns = self.weight[:, :swap]
        return base + (source - base) @ columns @ columns.T


def training(columns: int, swap: int) -> Callable[[Task], Callable[..., float]]:
    """Return the work of one training step: source pass, edited pass, backwards, Adam."""

    def prepare(task: Task) -> Callable[..., float]:
        model = load(task)
        rotations = {layer: Rotation(columns) for layer in (15, 27)}
        adam = {layer: torch.optim.Adam(one.parameters(), lr=1e-3) for layer, one in rotations.items()}
        bases, sources = task.bases[:BATCH], task.turned[:BATCH]

        def once(layer: int) -> float:
            block = model.model.layers[layer]
            with torch.no_grad():
                (value,) = capture(model, [block], sources)

            def edit(output: Tensor) -> Tensor:
                return placed(output, PLACE, rotations[layer](output[:, PLACE], value[:, PLACE], swap))

            adam[layer].zero_grad()
            with hooked((block, edit)):
                loss = task.loss(model(bases).logits)
            loss.backward()
            adam[layer].step()
            return loss.item()

        return once

    return prepare


def training_floor(task: Task) -> Callable[..., float]:
    """What a training step cannot avoid: blocks above the edit, positions from the edit on, forwards and backwards."""
    model = load(task)

    def once(layer: int) -> float:
        torch.manual_seed(0)
        hidden = torch.randn(BATCH, POSITIONS - PLACE, work.WIDTH, requires_grad=True)
        tables = model.model.rotary_emb(hidden, torch.arange(PLACE, POSITIONS)[None])
        states = hidden
        for block in model.model.layers[layer + 1 :]:
            states = block(states, attention_mask=None, position_embeddings=tables)
        task.loss(model.lm_head(model.model.norm(states[:, -1:]))).backward()
        return hidden.grad.norm().item()

    return once


def generation(edited: bool) -> Callable[[Task], Callable[[], Tensor]]:
    """Return the work of generating 64 tokens, plainly or with a direction added after block 15 at every step."""

    def prepare(task: Task) -> Callable[[], Tensor]:
        model, vector = load(task), work.direction()

        def add(output: Tensor) -> Tensor | None:
            return output + vector if output.shape[1] == 1 else None  # the prompt is left alone

        def once() -> Tensor:
            with hooked(*([(model.model.layers[15], add)] if edited else [])):
                return model.generate(task.bases[:1], **GENERATION)[0, POSITIONS:]

        return once

    return prepare


GENERATION = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 2}


def one_pass(task: Task) -> Callable[..., Tensor]:
    """One full-batch pass: row i of 20 is the base with the source's value at position i after a block; all logits."""
    model = load(task)

    @torch.no_grad()
    def once(layer: int, positions: int = POSITIONS) -> Tensor:
        block, rows = model.model.layers[layer], torch.arange(positions)
        (value,) = capture(model, [block], task.sources[:1, :positions])

        def put(output: Tensor) -> Tensor:
            output = output.clone()
            output[rows, rows] = value[0]
            return output

        with hooked((block, put)):
            return task.difference(model(task.bases[:1, :positions].expand(positions, -1)).logits)

    return once


def token_layers(task: Task) -> Callable[..., Tensor]:
    """All 30 blocks on `rows` x `positions` tokens, nothing else; the driver divides by the token-layers."""

    @torch.no_grad()
    def once(rows: int, positions: int = POSITIONS) -> Tensor:
        hidden = torch.randn(rows, positions, work.WIDTH, generator=torch.Generator().manual_seed(0))
        return load(task).model(inputs_embeds=hidden, use_cache=False).last_hidden_state[0, 0, 0]

    return once


def random_grid(_task: Task) -> Callable[..., Tensor]:
    """Cells of the block grid on a random model of so many layers and a prompt of so many tokens."""

    @torch.no_grad()
    def once(layers: int, positions: int, cells: list[tuple[int, int]]) -> Tensor:
        model = work.random_llama(layers)
        base, source = work.random_pair(positions)
        logits = [swapped(model, layer, place, base, source)[0, -1] for layer, place in cells]
        return torch.tensor([(one[1] - one[2]).item() for one in logits])

    return once


WORKS = {
    "block_grid": block_grid,
    "head_grid": head_grid,
    "interchange": interchange,
    "das": training(RANK, RANK),
    "rotation": training(work.WIDTH, HALF),
    "training_floor": training_floor,
    "generate": generation(edited=True),
    "generate_plain": generation(edited=False),
    "one_pass": one_pass,
    "token_layers": token_layers,
    "random_grid": random_grid,
}
