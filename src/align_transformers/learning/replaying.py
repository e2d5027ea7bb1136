"""Running a batch from where its interventions are: what the frozen model does below them is known from before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any, final

from torch import Tensor

from ..compose import Call, Composed, compose
from ..engine import bind, execute
from ..fast import ActivationCache as Memory
from ..fast import planned, remembered
from ..models import resolve
from ..plan import Logits
from .batches import BatchCall
from .borrowed import frozen
from .reader import Asked, Collator, Direct, Intervened, Reader


@final
class Replaying:
    """Run every batch from its first intervention on, and only for the logits at the last real tokens.

    Source activations, and the base's states below the interventions, are kept for each example the first time it is
    met, so the model must not change meanwhile: `fit` freezes it. What cannot be started late is run in full.

    Args:
        intervened: the intervenable model.
        memory: keeps the states; default: in memory, up to 2 GiB.
    """

    def __init__(self, intervened: Intervened, memory: Memory | None = None) -> None:
        self._intervened = intervened
        self._memory = Memory() if memory is None else memory
        self._direct = Direct(intervened)
        resolve(intervened.model)

    def __call__(self, asked: Asked) -> Tensor:
        """Return the logits that are asked for."""
        if asked.where != "last":
            return self._direct(asked)
        face, composed = self._intervened, self._composed(asked.call)
        found = remembered(face.model, composed.plan, composed.inputs, composed.constants, self._memory)
        bound = bind(face.model, found.plan, composed.inputs, face.interventions, found.constants)
        logits: Tensor = execute(bound, partial(planned, known=found.known)).outputs["base"]
        return logits

    def prepare(self, call: BatchCall) -> None:
        """Keep what is needed of a batch, without running it."""
        composed = self._composed(call)
        remembered(self._intervened.model, composed.plan, composed.inputs, composed.constants, self._memory)

    def _composed(self, call: BatchCall) -> Composed:
        face = self._intervened
        arguments = Call(call.base, call.sources, call.unit_locations, subspaces=call.subspaces)
        composed = compose(face.config, face.representations, arguments)
        return replace(composed, plan=replace(composed.plan, logits=Logits()))


def precompute(
    intervened: Intervened, loader: Iterable[Any], *, collator: Collator | None = None, memory: Memory | None = None
) -> Memory:
    """Keep what a fit on a data set needs of the frozen model: source activations, and the base's unedited states.

    `fit(..., memory=...)` then runs no block below the interventions. It fills a memory by itself, too, as it goes.

    Args:
        intervened: an `IntervenableModel`.
        loader: gives batches, as for `fit`.
        collator: makes a batch of what the loader gives.
        memory: is filled; default: a new one, 2 GiB of memory at most. One with a folder goes on in files.

    Returns:
        The memory.
    """
    memory = Memory() if memory is None else memory
    reader, replaying = Reader(intervened, collator), Replaying(intervened, memory)
    with frozen(intervened.model):
        for batch in loader:
            replaying.prepare(reader.call(reader.collate(batch)))
    return memory
