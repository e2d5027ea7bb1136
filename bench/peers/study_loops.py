"""What studies are measured against: the works of `hooks` that are one loop a study, as a careful person writes it.

What all cells share (clean states, base and source activations) is computed once; each cell is a pass of its own under
plain forward hooks, and logits are those of the last token. `cells` are those that are done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import work
from torch import Tensor, nn
from work import Task, load

Hook = Callable[[Tensor], Tensor | None]


@contextmanager
def watched(inputs: Mapping[nn.Module, Hook] | None = None, outputs: Mapping[nn.Module, Hook] | None = None):
    """Hold hooks on what modules get and give; what one returns (if anything) takes the place of that."""
    with ExitStack() as stack:
        for module, act in (inputs or {}).items():
            handle = module.register_forward_pre_hook(lambda _m, args, f=act: changed(args, f))
            stack.callback(handle.remove)
        for module, act in (outputs or {}).items():
            handle = module.register_forward_hook(lambda _m, _args, output, f=act: changed(output, f))
            stack.callback(handle.remove)
        yield


def changed(value: Any, act: Hook) -> Any:
    """Return what takes the place of a tensor, or of the first one in a tuple; `None` where nothing does."""
    inside = isinstance(value, tuple)
    new = act(value[0] if inside else value)
    return None if new is None else (new, *value[1:]) if inside else new


def parts(task: Task, model: Any) -> dict[str, list[nn.Module]]:
    """Return for each block the module itself, its MLP, attention, and attention's output projection."""
    blocks = list(work.blocks(task, model))
    projection = work.PATHS[task.shape.family][1]
    attention = [block.get_submodule(projection.split(".")[0]) for block in blocks]
    found = {"block_output": blocks, "mlp_output": [block.mlp for block in blocks], "attention_output": attention}
    return {**found, "projection": [block.get_submodule(projection) for block in blocks]}


def kept(run: Callable[[], Any], outputs: Sequence[nn.Module] = (), inputs: Sequence[nn.Module] = ()) -> list[Tensor]:
    """Return what modules give, then what others get, in one pass."""
    seen: dict[Any, Tensor] = {}

    def keep(key: Any) -> Hook:
        return lambda value: seen.__setitem__(key, value)

    with watched({m: keep(("in", m)) for m in inputs}, {m: keep(("out", m)) for m in outputs}):
        run()
    return [seen["out", m] for m in outputs] + [seen["in", m] for m in inputs]


def last_logits(model: Any, **inputs: Any) -> Tensor:
    """Return the logits of the last token alone."""
    return model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]


def causal_tracing(task: Task) -> Callable[..., Tensor]:
    """Meng et al. 2022: of each cell (component, layer, position) a pass of the noisy rows, clean states put back.

    With `batched` all draws are rows of one pass, else each is a pass of its own.
    """
    model = load(task)
    modules = parts(task, model)

    @torch.no_grad()
    def once(cells: list[tuple[str, int, int]], subject: list[int], draws: int, window: int, batched: bool) -> Tensor:
        ids = task.bases[:1]
        clean = {name: kept(lambda: model(ids), modules[name]) for name in dict.fromkeys(c for c, _, _ in cells)}
        embedded = model.get_input_embeddings()(ids)
        noise = torch.randn(draws, len(subject), task.shape.width, generator=torch.Generator().manual_seed(0))
        rows = embedded.repeat(draws, 1, 1)
        rows[:, subject] += (noise * 3 * float(embedded[0, subject].float().std())).to(rows)
        values = []
        for name, layer, place in cells:
            width = 1 if name == "block_output" else window
            near = range(max(0, layer - width // 2), min(task.shape.layers, layer - (-width // 2)))

            def put(at: int, name: str = name, place: int = place) -> Hook:
                def act(output: Tensor) -> Tensor:
                    output = output.clone()
                    output[:, place] = clean[name][at][0, place]
                    return output

                return act

            with watched(outputs={modules[name][at]: put(at) for at in near}):
                each = [rows] if batched else rows.split(1)
                logits = torch.cat([last_logits(model, inputs_embeds=some) for some in each])
            values.append(logits.float().softmax(-1)[:, task.answers[0]].mean().item())
        return torch.tensor(values)

    return once


def path_patching(task: Task) -> Callable[..., Tensor]:
    """Wang et al. 2022: of each head a pass with its output of the source, and what is frozen held at the base's."""
    model = load(task)
    modules = parts(task, model)
    projections, mlps, width = modules["projection"], modules["mlp_output"], task.shape.width // task.shape.heads

    @torch.no_grad()
    def once(cells: list[tuple[int, int]], freeze: str) -> Tensor:
        base, source = task.bases[:1], task.sources[:1]
        both = kept(lambda: model(base), mlps, projections)
        mlp, z = both[: len(mlps)], both[len(mlps) :]
        other = kept(lambda: model(source), (), projections)
        return torch.tensor([one(mlp, z, other, layer, head, freeze) for layer, head in cells])

    def one(mlp: Any, z: Any, other: Any, layer: int, head: int, freeze: str) -> float:
        channels = slice(head * width, head * width + width)

        def send(value: Tensor) -> Tensor:
            value = value.clone()
            value[..., channels] = other[layer][..., channels]
            return value

        held = [] if freeze == "none" else range(layer + 1, task.shape.layers)
        inputs = {projections[n]: lambda _value, n=n: z[n] for n in held}
        fixed = {mlps[n]: lambda _value, n=n: mlp[n] for n in (layer, *held)} if freeze == "all" else {}
        with watched({projections[layer]: send, **inputs}, fixed):
            return task.difference(model(task.bases[:1], use_cache=False, logits_to_keep=1).logits).item()

    return once


def plain(task: Task) -> Callable[..., Tensor]:
    """One plain forward pass of the base: the logits of all its tokens."""
    model = load(task)

    @torch.no_grad()
    def once() -> Tensor:
        return task.difference(model(task.bases[:1]).logits)

    return once


def logit_lens(task: Task) -> Callable[..., Tensor]:
    """One pass that keeps what the blocks give; of each layer norm and unembedding, probability and rank."""
    model = load(task)
    blocks, norm = parts(task, model)["block_output"], model.get_submodule(work.PATHS[task.shape.family][2])

    @torch.no_grad()
    def once(places: list[int], top: int = 3) -> Tensor:
        states = kept(lambda: last_logits(model, input_ids=task.bases[:1]), blocks)
        values = []
        for state in states:
            logits = model.lm_head(norm(state[0, places])).float()
            own = logits[:, task.answers[0]]
            shares = logits.softmax(-1)
            shares.topk(top)
            values += [shares[:, task.answers[0]].tolist(), (logits > own[:, None]).sum(-1).float().tolist()]
        return torch.tensor(values[::2]).flatten()

    return once


def attribution(task: Task) -> Callable[..., Tensor]:
    """One pass that keeps heads and MLPs; what each head and MLP adds to the answer's logit through the frozen norm."""
    model = load(task)
    modules = parts(task, model)
    norm = model.get_submodule(work.PATHS[task.shape.family][2])
    width = task.shape.width // task.shape.heads

    @torch.no_grad()
    def once() -> Tensor:
        every = kept(
            lambda: last_logits(model, input_ids=task.bases[:1]), modules["mlp_output"], [*modules["projection"], norm]
        )
        layers = task.shape.layers
        mlp, z, end = every[:layers], every[layers : 2 * layers], every[-1][0, -1].float()
        direction = model.lm_head.weight[task.answers[0]].float() * norm.weight.float()
        if task.shape.family == "gpt2":
            direction = (direction - direction.mean()) / (end.var(unbiased=False) + norm.eps).sqrt()
        else:
            direction = direction / (end.pow(2).mean() + norm.variance_epsilon).sqrt()
        values = []
        for layer in range(layers):
            weight = modules["projection"][layer].weight.float()
            through = weight @ direction if task.shape.family == "gpt2" else weight.T @ direction
            values += (z[layer][0, -1].float() * through).view(-1, width).sum(-1).tolist()
            values.append((mlp[layer][0, -1].float() @ direction).item())
        return torch.tensor(values)

    return once


def scrubbing(task: Task) -> Callable[..., Tensor]:
    """Each line (prompt, what was drawn) by recursion: three passes, and all plain losses once."""
    model = load(task)
    modules = parts(task, model)

    @torch.no_grad()
    def once(
        drawn: list[list[int]], unclaimed: list[list[int]], layers: Sequence[int] = (0, 1), count: int = 1
    ) -> Tensor:
        low, high = modules["mlp_output"][layers[0]], modules["block_output"][layers[1]]
        for prompt in range(count):
            last_logits(model, input_ids=task.bases[prompt : prompt + 1])

        def at_last(value: Tensor) -> Hook:
            def act(output: Tensor) -> Tensor:
                output = output.clone()
                output[:, -1] = value[:, -1]
                return output

            return act

        values = []
        for (_, child), (outer, inner) in zip(drawn, unclaimed, strict=True):
            (small,) = kept(lambda n=child: model(task.bases[n : n + 1]), [low])
            with watched(outputs={low: at_last(small)}):
                (large,) = kept(lambda n=inner: model(task.bases[n : n + 1]), [high])
            with watched(outputs={high: at_last(large)}):
                logits = last_logits(model, input_ids=task.bases[outer : outer + 1])
            values.append(-logits.float().log_softmax(-1)[0, task.answers[0]].item())
        return torch.tensor(values)

    return once


WORKS = {
    "causal_tracing": causal_tracing,
    "path_patching": path_patching,
    "plain": plain,
    "logit_lens": logit_lens,
    "attribution": attribution,
    "scrubbing": scrubbing,
}
