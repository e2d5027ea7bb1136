"""The work that every contestant does: one model, the same token ids, the same directions, the same loss.

`prepare` writes the task of SmolLM2-135M once; the contestants, each in a process and environment of its own, read it
back. Tasks of models with random weights are made by `random_task` from what a request says, the same everywhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent
TASK = FOLDER / "work.json"
POSITIONS = 20  # of SmolLM2's prompts
NEW_TOKENS = 64
_TEMPLATE = "When {} and {} went to the big old {} on Sunday, {} gave a bottle of {} to"
_NAMES = {"bases": ("Mary", "John", "John"), "sources": ("Mary", "John", "Mary"), "turned": ("John", "Mary", "Mary")}
_PLACES = ("store", "school", "park", "church", "house", "office", "market", "library")
_THINGS = ("milk", "water", "wine", "beer")


class Pending(Exception):
    """A contestant cannot do this work yet; the message says what is missing."""


@dataclass(frozen=True)
class Shape:
    """The size of a model, in the words of its family's configuration.

    Args:
        family: `llama`, `qwen2` or `gpt2`.
        layers: blocks.
        width: of the residual stream.
        heads: of a block.
        kv_heads: heads of keys and values.
        mlp: width inside an MLP.
        vocab: tokens.
        tied: whether the unembedding is the embedding.
    """

    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    tied: bool = True

    def config(self, positions: int) -> Any:
        """Return the configuration of transformers, for prompts of so many tokens at least."""
        import transformers

        ids = {"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": self.tied, "vocab_size": self.vocab}
        if self.family == "gpt2":
            sizes = {"n_embd": self.width, "n_layer": self.layers, "n_head": self.heads, "n_inner": self.mlp}
            return transformers.GPT2Config(n_positions=max(1024, positions), **sizes, **ids)
        sizes = {"hidden_size": self.width, "intermediate_size": self.mlp, "num_hidden_layers": self.layers}
        sizes |= {"num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads}
        sizes |= {"max_position_embeddings": max(2048, positions)}
        return {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[self.family](**sizes, **ids)


SMOLLM2 = Shape("llama", layers=30, width=576, heads=9, kv_heads=3, mlp=1536, vocab=49152)
LAYERS, HEADS = SMOLLM2.layers, SMOLLM2.heads
WIDE = Shape("llama", layers=4, width=1024, heads=16, kv_heads=8, mlp=2816, vocab=32000, tied=False)
# By family: the blocks, the output projection in a block's attention, the last norm.
PATHS = {
    "llama": ("model.layers", "self_attn.o_proj", "model.norm"),
    "qwen2": ("model.layers", "self_attn.o_proj", "model.norm"),
    "gpt2": ("transformer.h", "attn.c_proj", "transformer.ln_f"),
}


@dataclass(frozen=True)
class Task:
    """What all works share.

    Args:
        shape: the model's size.
        checkpoint: folder of the plain SmolLM2-135M checkpoint; without one the weights are random.
        bases: token ids `(pairs, positions)` of the prompts that are edited; row 0 is the prompt of the grids.
        sources: token ids of the sources of the grids. SmolLM2's differ from the bases in the name that is said again.
        turned: token ids of the sources of the training steps. In SmolLM2's both names are exchanged, so that token
            12 has something to learn from.
        answers: token ids of the base's answer (" Mary") and of the source's (" John").
        dtype: of the model, such as `"bfloat16"`.
        device: where the model is.
        batch: examples of a training step and of the single interchange.
        place: the token that these edit.
        rank: of the low-rank rotation.
    """

    shape: Shape
    bases: Tensor
    sources: Tensor
    turned: Tensor
    answers: tuple[int, int]
    checkpoint: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    batch: int = 16
    place: int = 12
    rank: int = 16

    @property
    def positions(self) -> int:
        """Tokens of a prompt."""
        return self.bases.shape[1]

    @property
    def middle(self) -> int:
        """The block of the single interchange and of the generation."""
        return self.shape.layers // 2

    def difference(self, logits: Tensor) -> Tensor:
        """Return the logit difference `(batch,)` at the last position of logits `(batch, positions, vocab)`."""
        return logits[:, -1, self.answers[0]] - logits[:, -1, self.answers[1]]

    def loss(self, logits: Tensor) -> Tensor:
        """Return the cross-entropy of the source's answer at the last position."""
        labels = torch.full((len(logits),), self.answers[1], device=logits.device)
        return nn.functional.cross_entropy(logits[:, -1], labels)

    def rotation(self, columns: int) -> Tensor:
        """Return the orthonormal columns `(width, columns)`, float32, from which every training starts."""
        generator = torch.Generator().manual_seed(0)
        square = torch.randn(self.shape.width, self.shape.width, generator=generator)
        return torch.linalg.qr(square)[0][:, :columns].contiguous().to(self.device)

    def direction(self) -> Tensor:
        """Return the vector `(width,)` that is added while text is generated."""
        vector = torch.randn(self.shape.width, generator=torch.Generator().manual_seed(1))
        return vector.to(self.device, getattr(torch, self.dtype))


def prompts(kind: str) -> list[str]:
    """Return the 32 prompts of a kind: `bases`, `sources` or `turned`."""
    first, second, giver = _NAMES[kind]
    return [_TEMPLATE.format(first, second, place, giver, thing) for thing in _THINGS for place in _PLACES]


def prepare(checkpoint: str) -> None:
    """Write the task for a checkpoint of SmolLM2-135M; needs transformers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    rows = {kind: tokenizer(prompts(kind)).input_ids for kind in _NAMES}
    answers = [tokenizer(name).input_ids for name in (" Mary", " John")]
    lengths = {len(row) for texts in rows.values() for row in texts}
    if lengths != {POSITIONS} or {len(answer) for answer in answers} != {1}:
        raise ValueError(f"every prompt must have {POSITIONS} tokens and every answer one")
    TASK.write_text(json.dumps({"checkpoint": checkpoint, "answers": [a for (a,) in answers], **rows}))


def read() -> Task:
    """Return the task that `prepare` wrote."""
    facts = json.loads(TASK.read_text(encoding="utf-8"))
    rows = {kind: torch.tensor(facts[kind]) for kind in _NAMES}
    return Task(SMOLLM2, answers=tuple(facts["answers"]), checkpoint=facts["checkpoint"], **rows)


def random_task(
    shape: Shape | Mapping[str, Any], *, positions: int, pairs: int = 1, device: str = "cpu", **facts: Any
) -> Task:
    """Return a task of a model with random weights and prompts of random tokens.

    A base and its source differ in one token in three, a base and its turned source in one in two.

    Args:
        shape: the model's size.
        positions: tokens of a prompt.
        pairs: prompts.
        device: where the model is.
        **facts: `dtype`, `batch`, `place` and `rank` of the task.
    """
    shape = shape if isinstance(shape, Shape) else Shape(**shape)
    generator = torch.Generator().manual_seed(2)
    base, other = torch.randint(10, shape.vocab, (2, pairs, positions), generator=generator)
    rows = [base, *(torch.where(torch.arange(positions) % every == 1, other, base) for every in (3, 2))]
    bases, sources, turned = (row.to(device) for row in rows)
    return Task(shape, bases, sources, turned, (1, 2), device=device, **facts)


def load(task: Task) -> Any:
    """Return the model, in eval mode, with nothing to train; one for all works of a process."""
    if task.checkpoint is None:
        return _random(task.shape, task.dtype, task.device, max(1024, task.positions))
    return _from_checkpoint(task.checkpoint, task.dtype)


@cache
def _from_checkpoint(checkpoint: str, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
    return settled(model).requires_grad_(False)


@cache
def _random(shape: Shape, dtype: str, device: str, positions: int) -> Any:
    """Return a model with random weights: the same in every version of transformers on the same kind of device.

    Every matrix keeps the size of what it is given (deviation `width ** -0.5`), so that attention and MLPs matter.
    """
    from transformers import AutoModelForCausalLM

    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape.config(positions), dtype=getattr(torch, dtype))
    for number, (_, parameter) in enumerate(sorted(model.named_parameters())):
        if parameter.dim() == 2:
            generator = torch.Generator(device).manual_seed(number)
            values = torch.randn(parameter.shape, generator=generator, device=device) * shape.width**-0.5
            parameter.data.copy_(values)
    return model.eval().requires_grad_(False)


def forget() -> None:
    """Let go of the models."""
    _from_checkpoint.cache_clear()
    _random.cache_clear()


def blocks(task: Task, model: Any) -> nn.ModuleList:
    """Return the model's blocks."""
    return model.get_submodule(PATHS[task.shape.family][0])


def allowed(dtype: str, batching: tuple[float, float]) -> float:
    """Return by how much values may differ that are to be equal.

    In float32 by a thousandth, as long as batching changes less. In a coarser dtype by four times what batching alone
    changed in a sample of cells, which is smaller than the worst of all cells, and at least by four roundings of the
    largest value: where batching happened to change nothing.

    Args:
        dtype: of the model.
        batching: what the work `batching` gave: the largest change, and the largest value.
    """
    change, size = batching
    least = 1e-3 if dtype == "float32" else 4 * torch.finfo(getattr(torch, dtype)).eps * size
    return max(least, 4 * change)


def settled(model: Any) -> Any:
    """Return the model in eval mode, its weights copied out of the mapped file, from which the system drops pages."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.eval()


def timed(function: Callable[[], Any], device: str = "cpu") -> tuple[float, Any]:
    """Return the seconds of a call and its result; on a GPU between two events, after all that was asked of it."""
    if torch.device(device).type != "cuda":
        start = time.perf_counter()
        result = function()
        return time.perf_counter() - start, result
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    synchronise(device)
    first.record()
    result = function()
    last.record()
    synchronise(device)
    return first.elapsed_time(last) / 1e3, result


def synchronise(device: str) -> None:
    """Wait for a GPU; a CPU never lags behind."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
