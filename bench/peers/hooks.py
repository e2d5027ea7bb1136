"""The contestant `hooks`: PyTorch and transformers alone, written by hand the way everybody writes it first.

Its values are what all others are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import counterfactuals
import gradients
import searching
import torch
import work
from peers import study_loops
from torch import Tensor, nn
from work import NEW_TOKENS, Task, load


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


def placed(output: Tensor, place: Any, value: Tensor) -> Tensor:
    """Return the output with another value `(batch, width)` at one position (`(batch, n, width)` at n of them)."""
    output = output.clone()
    output[:, place] = value
    return output


def swapped(model: Any, block: nn.Module, place: int, bases: Tensor, sources: Tensor) -> Tensor:
    """Return the base's logits with the source's block output at one place: one source pass, one patched pass."""
    (value,) = capture(model, [block], sources)
    with hooked((block, lambda output: placed(output, place, value[:, place]))):
        return model(bases).logits


def block_grid(task: Task) -> Callable[..., Tensor]:
    """A source pass and a patched pass for every cell (layer, position)."""
    model = load(task)
    blocks = work.blocks(task, model)

    @torch.no_grad()
    def once(cells: list[tuple[int, int]], pair: int = 0) -> Tensor:
        base, source = task.bases[pair : pair + 1], task.sources[pair : pair + 1]
        logits = (swapped(model, blocks[layer], place, base, source) for layer, place in cells)
        return torch.tensor([task.difference(one).item() for one in logits])

    return once


def head_grid(task: Task) -> Callable[..., Tensor]:
    """One source pass in all, then a patched pass for every cell (layer, head), at the last token."""
    model, path = load(task), work.PATHS[task.shape.family][1]
    projections = [block.get_submodule(path) for block in work.blocks(task, model)]
    width = task.shape.width // task.shape.heads

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
        channels = slice(head * width, head * width + width)

        def put(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            heads = args[0].clone()
            heads[:, -1, channels] = value[:, -1, channels]
            return (heads,)

        handle = projections[layer].register_forward_pre_hook(put)
        logits = model(task.bases[:1]).logits
        handle.remove()
        return task.difference(logits)

    return once


def interchange(task: Task) -> Callable[..., Tensor]:
    """One interchange in a batch, at the middle block (15 of SmolLM2) and one position."""
    model = load(task)
    block = work.blocks(task, model)[task.middle]

    @torch.no_grad()
    def once(batch: int = task.batch) -> Tensor:
        return task.difference(swapped(model, block, task.place, task.bases[:batch], task.turned[:batch]))

    return once


class Rotation(nn.Module):
    """Orthonormal columns, kept orthonormal by PyTorch's parametrisation, as pyvene does it; in float32.

    Args:
        columns: `(width, k)`, from which the training starts.
        swap: the first so many coordinates are taken from the source; `None`: as many as a learned boundary says.
    """

    def __init__(self, columns: Tensor, swap: int | None) -> None:
        super().__init__()
        self.swap, self.boundary = swap, nn.Parameter(torch.tensor(0.5, device=columns.device))
        self.weight = nn.Parameter(columns)
        nn.utils.parametrizations.orthogonal(self)
        self.weight = columns

    def forward(self, base: Tensor, source: Tensor) -> Tensor:
        """Return the base with coordinates of the source in the rotated space."""
        columns = self.weight[:, : self.swap]
        change = (source.to(columns) - base.to(columns)) @ columns
        if self.swap is None:
            width = len(columns)
            index = torch.arange(width, device=columns.device)
            change = change * torch.sigmoid((self.boundary.clamp(1e-3, 1) * width - index) / (width / 16))
        return (base + change @ columns.T).to(base.dtype)

    def penalty(self) -> Tensor | float:
        """Return what is added to the loss: the boundary, where there is one."""
        return self.boundary.clamp(1e-3, 1) if self.swap is None else 0.0


def training(kind: str) -> Callable[[Task], Callable[..., float]]:
    """Return the work of one training step: source pass, edited pass, backwards, Adam.

    Args:
        kind: `das`, the low-rank rotation; `rotation`, a full one of which half is swapped; `boundless`.
    """

    def prepare(task: Task) -> Callable[..., float]:
        model, width = load(task), task.shape.width
        columns, swap = {"das": (task.rank, task.rank), "rotation": (width, width // 2), "boundless": (width, None)}[
            kind
        ]
        bases, sources = task.bases[: task.batch], task.turned[: task.batch]
        steps: dict[int, tuple[Rotation, Any]] = {}

        def start(layer: int) -> tuple[Rotation, Any]:
            rotation = Rotation(task.rotation(columns), swap)
            return rotation, torch.optim.Adam(rotation.parameters(), lr=1e-3)

        def once(layer: int) -> float:
            rotation, adam = steps[layer] if layer in steps else steps.setdefault(layer, start(layer))
            block = work.blocks(task, model)[layer]
            with torch.no_grad():
                (value,) = capture(model, [block], sources)

            def edit(output: Tensor) -> Tensor:
                return placed(output, task.place, rotation(output[:, task.place], value[:, task.place]))

            adam.zero_grad()
            with hooked((block, edit)):
                loss = task.loss(model(bases).logits) + rotation.penalty()
            loss.backward()
            adam.step()
            return loss.item()

        return once

    return prepare


def training_floor(task: Task) -> Callable[..., float]:
    """What a training step cannot avoid: blocks above the edit, positions from the edit on, forwards and backwards."""
    model = load(task)
    norm = model.get_submodule(work.PATHS[task.shape.family][2])

    def once(layer: int) -> float:
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(task.batch, task.positions - task.place, task.shape.width, generator=generator)
        hidden = hidden.to(task.device, getattr(torch, task.dtype)).requires_grad_()
        rest = {}
        if task.shape.family != "gpt2":
            at = torch.arange(task.place, task.positions, device=task.device)[None]
            rest = {"position_embeddings": model.model.rotary_emb(hidden, at)}
        states = hidden
        for block in work.blocks(task, model)[layer + 1 :]:
            states = block(states, attention_mask=None, **rest)
        task.loss(model.lm_head(norm(states[:, -1:]))).backward()
        return hidden.grad.norm().item()

    return once


def generation(edited: bool) -> Callable[[Task], Callable[..., Tensor]]:
    """Return the work of generating tokens, plainly or with a direction added after the middle block at every step."""

    def prepare(task: Task) -> Callable[..., Tensor]:
        model, vector = load(task), task.direction()
        block = work.blocks(task, model)[task.middle]

        def add(output: Tensor) -> Tensor | None:
            return output + vector if output.shape[1] == 1 else None  # the prompt is left alone

        def once(tokens: int = NEW_TOKENS) -> Tensor:
            with hooked(*([(block, add)] if edited else [])):
                return model.generate(task.bases[:1], **greedy(tokens))[0, task.positions :]

        return once

    return prepare


def greedy(tokens: int) -> dict[str, Any]:
    """Return the arguments of `generate` for so many tokens."""
    return {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 2}


def one_pass(task: Task) -> Callable[..., Tensor]:
    """One full-batch pass: row i is the base with the source's value at position i after a block; all logits."""
    model = load(task)

    @torch.no_grad()
    def once(layer: int, positions: int = task.positions) -> Tensor:
        block, rows = work.blocks(task, model)[layer], torch.arange(positions, device=task.device)
        (value,) = capture(model, [block], task.sources[:1, :positions])

        def put(output: Tensor) -> Tensor:
            output = output.clone()
            output[rows, rows] = value[0]
            return output

        with hooked((block, put)):
            return task.difference(model(task.bases[:1, :positions].expand(positions, -1)).logits)

    return once


def batching(task: Task) -> Callable[..., Tensor]:
    """How far the values of cells are from themselves when they are computed as rows of a batch, and their size.

    This is what no way of sharing passes can avoid: in bfloat16 a matrix product of other rows is rounded otherwise.
    """
    model = load(task)
    blocks = work.blocks(task, model)

    @torch.no_grad()
    def differences(layer: int, places: list[int]) -> Tensor:
        (value,) = capture(model, [blocks[layer]], task.sources[:1])
        rows, at = torch.arange(len(places)), torch.tensor(places)

        def put(output: Tensor) -> Tensor:
            output = output.clone()
            output[rows, at] = value[0, at]
            return output

        with hooked((blocks[layer], put)):
            return task.difference(model(task.bases[:1].expand(len(places), -1)).logits).float().cpu()

    def once(cells: list[tuple[int, int]]) -> Tensor:
        by_layer: dict[int, list[int]] = {}
        for layer, place in cells:
            by_layer.setdefault(layer, []).append(place)
        worst = size = torch.zeros(())
        for layer, places in by_layer.items():
            alone = torch.cat([differences(layer, [place]) for place in places])
            for rows in (2, 3, 8, len(places)):  # every size of batch is another product
                batched = [differences(layer, places[n : n + rows]) for n in range(0, len(places), rows)]
                worst = torch.maximum(worst, (torch.cat(batched) - alone).abs().max())
            size = torch.maximum(size, alone.abs().max())
        return torch.stack([worst, size])

    return once


def token_layers(task: Task) -> Callable[..., Tensor]:
    """All blocks on `rows` x `positions` tokens, nothing else; the driver divides by the token-layers."""

    @torch.no_grad()
    def once(rows: int, positions: int = task.positions) -> Tensor:
        model, generator = load(task), torch.Generator().manual_seed(0)
        hidden = torch.randn(rows, positions, task.shape.width, generator=generator)
        hidden = hidden.to(task.device, getattr(torch, task.dtype))
        return model.base_model(inputs_embeds=hidden, use_cache=False).last_hidden_state[0, 0, 0]

    return once


WORKS = {
    "block_grid": block_grid,
    "head_grid": head_grid,
    "interchange": interchange,
    "das": training("das"),
    "rotation": training("rotation"),
    "boundless": training("boundless"),
    "training_floor": training_floor,
    "generate": generation(edited=True),
    "generate_plain": generation(edited=False),
    "one_pass": one_pass,
    "batching": batching,
    "token_layers": token_layers,
    "counterfactuals": counterfactuals.loop,
    "gradients by hand": gradients.by_hand,
    "fits": searching.loop,
    "floor of fits": searching.floor,
    **study_loops.WORKS,
}
