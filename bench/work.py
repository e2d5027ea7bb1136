"""The work that every contestant does: one checkpoint, the same token ids, the same directions, the same loss.

`prepare` writes it once; the contestants, each in a process and environment of its own, read it back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parent
TASK = FOLDER / "work.json"
LAYERS, POSITIONS, HEADS, WIDTH = 30, 20, 9, 576
BATCH, PLACE, RANK, HALF = 16, 12, 16, WIDTH // 2  # the training steps and the single interchange: at token 12 of 20
NEW_TOKENS = 64
_TEMPLATE = "When {} and {} went to the big old {} on Sunday, {} gave a bottle of {} to"
_NAMES = {"bases": ("Mary", "John", "John"), "sources": ("Mary", "John", "Mary"), "turned": ("John", "Mary", "Mary")}
_PLACES = ("store", "school", "park", "church", "house", "office", "market", "library")
_THINGS = ("milk", "water", "wine", "beer")


class Pending(Exception):
    """A contestant cannot do this work yet; the message says what is missing."""


@dataclass(frozen=True)
class Task:
    """What all works share.

    Args:
        checkpoint: folder of the plain SmolLM2-135M checkpoint, float32.
        bases: token ids `(32, 20)` of the prompts that are edited; row 0 is the prompt of the grids.
        sources: token ids `(32, 20)` of the sources of the grids: they differ from the bases in the name that is said
            again.
        turned: token ids `(32, 20)` of the sources of the training steps: both names are exchanged, so that token 12
            has something to learn from.
        answers: token ids of the base's answer (" Mary") and of the source's (" John").
    """

    checkpoint: str
    bases: Tensor
    sources: Tensor
    turned: Tensor
    answers: tuple[int, int]

    def difference(self, logits: Tensor) -> Tensor:
        """Return the logit difference `(batch,)` at the last position of logits `(batch, positions, vocab)`."""
        return logits[:, -1, self.answers[0]] - logits[:, -1, self.answers[1]]

    def loss(self, logits: Tensor) -> Tensor:
        """Return the cross-entropy of the source's answer at the last position."""
        labels = torch.full((len(logits),), self.answers[1])
        return torch.nn.functional.cross_entropy(logits[:, -1], labels)


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
    return Task(facts["checkpoint"], answers=tuple(facts["answers"]), **rows)


def settled(model: Any) -> Any:
    """Return the model in eval mode, its weights copied out of the mapped file, from which the system drops pages."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.eval()


def rotation(columns: int) -> Tensor:
    """Return the orthonormal columns `(576, columns)` from which every training starts."""
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0][:, :columns].contiguous()


def direction() -> Tensor:
    """Return the vector `(576,)` that is added while text is generated."""
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))


@cache
def random_llama(layers: int) -> Any:
    """Return a Llama-type model of SmolLM2's widths with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 1536, "num_attention_heads": HEADS, "num_key_value_heads": 3}
    config = LlamaConfig(vocab_size=8192, num_hidden_layers=layers, head_dim=64, tie_word_embeddings=True, **sizes)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def random_pair(positions: int) -> tuple[Tensor, Tensor]:
    """Return a base and a source, token ids `(1, positions)`, that differ in one token in three."""
    generator = torch.Generator().manual_seed(2)
    base, other = torch.randint(10, 8192, (2, 1, positions), generator=generator)
    return base, torch.where(torch.arange(positions) % 3 == 1, other, base)
