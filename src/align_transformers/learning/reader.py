"""How a batch is run, and which of its logits are read: everything of a fit that touches the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from .._errors import SpecError
from ..compose import Representation
from ..config import IntervenableConfig
from ..engine import Inputs, batch_size, logits_of, without_cache
from ..interventions import Intervention
from ..models import uncompiled
from .batches import Batch, BatchCall, read_batch
from .reading import Columns, Read, Where, columns_of, labels_at, rows_of

Collator = Callable[[Any], Any]
"""Makes a batch of what a data loader gives: a dict whose columns are explained in `batches`."""


@runtime_checkable
class Intervened(Protocol):
    """What can be aligned: an `IntervenableModel`, or anything with the same names."""

    @property
    def config(self) -> IntervenableConfig:
        """How the representations are combined."""

    @property
    def model(self) -> nn.Module:
        """The user's model."""

    @property
    def representations(self) -> Sequence[Representation]:
        """Where each intervention is."""

    @property
    def interventions(self) -> Mapping[str, Intervention]:
        """Each intervention, by key."""

    def __call__(self, base: Any, sources: Any = ..., unit_locations: Any = ..., *, subspaces: Any = ...) -> Any:
        """Return the plain output (or `None`) and the counterfactual one."""

    def hardened(self) -> Intervened:
        """Return the same with every intervention as it is to be used after a fit."""


@dataclass(frozen=True, eq=False)
class Asked:
    """What is wanted of one batch: the intervened model's logits at some columns.

    Args:
        batch: the batch as the collator gave it.
        call: the arguments of the call.
        columns: the columns that are read, one row each; `None`: the last, or all.
        where: which rule gave them.
    """

    batch: Batch
    call: BatchCall
    columns: Columns | None
    where: Where


Forward = Callable[[Asked], Tensor]
"""How a batch is run: returns the logits that are read, `(rows, vocab)`, or all where everything is read."""


@final
class Direct:
    """Run every batch through the whole model, and compute no more logits than are read.

    Args:
        intervened: the intervenable model.
    """

    def __init__(self, intervened: Intervened) -> None:
        self._intervened = intervened

    def __call__(self, asked: Asked) -> Tensor:
        """Return the logits that are asked for."""
        call = asked.call
        base, columns = fewer_logits(self._intervened.model, call.base, asked.columns)
        _, output = self._intervened(base, call.sources, call.unit_locations, subspaces=call.subspaces)
        return rows_of(logits_of(output), columns, asked.where)


@final
class Reader:
    """From a batch to the logits that are read.

    Args:
        intervened: the intervenable model.
        collator: makes a batch of what the data loader gives.
        forward: how a batch is run; default: the whole model, each time.
    """

    def __init__(
        self, intervened: Intervened, collator: Collator | None = None, forward: Forward | None = None
    ) -> None:
        self.intervened = intervened
        self._collator = collator
        self._forward = forward or Direct(intervened)

    def collate(self, batch: Any) -> Batch:
        """Return the batch that a data loader's item stands for.

        Raises:
            SpecError: it is no dict.
        """
        found = batch if self._collator is None else self._collator(batch)
        if not isinstance(found, Mapping):
            raise SpecError(
                f"a batch is a dict of columns; found {type(found).__name__}: pass a collator that makes one"
            )
        return found

    def call(self, batch: Batch) -> BatchCall:
        """Return the arguments of the call that a batch asks for."""
        face = self.intervened
        return read_batch(batch, face.model, face.representations, face.config.mode)

    def read(self, batch: Batch, *wheres: Where) -> list[Read]:
        """Run a batch once with the interventions, and return what is read by each of some rules, with the labels."""
        call, labels = self.call(batch), batch.get("labels")
        if len(set(wheres)) == 1:
            columns = columns_of(wheres[0], call.base, labels)
            logits = self._forward(Asked(batch, call, columns, wheres[0]))
            return [_read(logits, columns, wheres[0], labels, call.base)] * len(wheres)
        logits = self._forward(Asked(batch, call, None, "all"))
        places = [columns_of(where, call.base, labels) for where in wheres]
        pairs = zip(wheres, places, strict=True)
        return [_read(rows_of(logits, columns, where), columns, where, labels, call.base) for where, columns in pairs]

    def plain(self, inputs: Inputs, labels: Any, where: Where) -> Read:
        """Run an input without interventions, and read it likewise."""
        columns = columns_of(where, inputs, labels)
        kept, places = fewer_logits(self.intervened.model, inputs, columns)
        output = self.intervened.model(kept) if isinstance(kept, Tensor) else self.intervened.model(**kept)
        return _read(rows_of(logits_of(output), places, where), columns, where, labels, inputs)


def _read(logits: Tensor, columns: Columns | None, where: Where, labels: Any, base: Inputs) -> Read:
    wanted = labels_at(where, columns, labels, logits.device)
    example = columns.example if columns is not None and where == "labels" else None
    return Read(logits, wanted, example, batch_size(base))


def fewer_logits(model: nn.Module, base: Inputs, columns: Columns | None) -> tuple[Inputs, Columns | None]:
    """Return an input that asks the model for the logits of some columns only, and where these then stand.

    A model whose `forward` has no `logits_to_keep` gives them all. None keeps keys and values: nothing is generated.
    """
    if not isinstance(base, Mapping):
        return base, columns
    model = uncompiled(model)
    lean = dict(without_cache(model, base))
    if columns is not None and "logits_to_keep" in inspect.signature(model.forward).parameters.keys() - base.keys():
        kept, place = torch.unique(columns.column, return_inverse=True)
        lean["logits_to_keep"] = kept.to(next(model.parameters()).device)
        columns = Columns(columns.example, place)
    return lean, columns
