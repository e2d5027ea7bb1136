"""Any operation in any subspace."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from .. import operations, subspaces
from .._checked import checked
from .._errors import SpecError
from ..operations import Add, Function, Operation, SourceKind, Subtract
from ..subspaces import Choice, Subspace, describe, restore
from .edit import edited, transcoded
from .trainable import TrainableIntervention


@final
class SubspaceIntervention(TrainableIntervention):
    """Any operation in any subspace: noise in a learned rotation, one latent's mean, a swap along a direction.

    With a transcoder's dictionary the source is the module's input, and the base its output: see `Dictionary`. An
    operation without a source is told the module's own input by giving the base as the source, too.

    Args:
        operation: what becomes of the coordinates.
        subspace: the coordinates: `Whole()` by default.
        coordinates: the numbers of those that are edited when a call chooses no subspaces; `None` for all.
        subspace_partition: parts of the coordinates, as `Partition.of` reads them.
        source_representation: a constant source, a vector; then no source run is needed.
        keep_last_dim: False for the units of an example as one vector, of which the subspace is then one.
        interchange_dim: work in the first so many coordinates when a call chooses no subspace.

    Raises:
        SpecError: the two do not go together; a coordinate does not exist.

    >>> import torch
    >>> from align_transformers.operations import Zero
    >>> from align_transformers.subspaces import Direction
    >>> ablate = SubspaceIntervention(Zero(), Direction(torch.tensor([1.0, 0.0])))
    >>> ablate(torch.ones(1, 1, 2)).tolist()
    [[[0.0, 1.0]]]
    """

    @checked
    def __init__(
        self,
        operation: Operation | Mapping[str, Any],
        subspace: Subspace | Mapping[str, Any] | None = None,
        *,
        coordinates: Sequence[int] | None = None,
        subspace_partition: Iterable[Any] | None = None,
        source_representation: Tensor | None = None,
        keep_last_dim: bool = True,
        interchange_dim: int | None = None,
    ) -> None:
        super().__init__(
            subspace_partition=subspace_partition,
            source_representation=source_representation,
            keep_last_dim=keep_last_dim,
            interchange_dim=interchange_dim,
        )
        # Plain data is what `arguments` returns: classes are named in it, and found in the two tables below.
        self.operation: Operation = restore(operation, _OPERATIONS) if isinstance(operation, Mapping) else operation
        given = subspaces.Whole() if subspace is None else subspace
        self.subspace: Subspace = restore(given, _SUBSPACES) if isinstance(given, Mapping) else given
        self.embed_dim, size = self.subspace.width, self.subspace.size
        _check(self.operation, self.subspace)
        if self.subspace.takes_choice and self.partition is not None:
            raise SpecError("subspaces choose the members of a stack: it takes no subspace_partition")
        if size is not None:
            self.limit_partition(size)
        if coordinates is not None:
            self._usual = _checked(coordinates, size)
        self.source_kind: SourceKind = "run" if self.reads_module_input else self.operation.source_kind
        self.temperature_schedule = self.subspace.temperature_schedule
        if self.temperature_schedule is not None:
            self.temperature = self.subspace.temperature

    @property
    def writes(self) -> bool:  # type: ignore[override]  # a fact of the pair, not of the class
        """Whether the operation does."""
        return self.operation.writes

    @property
    def repeatable(self) -> bool:  # type: ignore[override]  # a fact of the pair, not of the class
        """Whether the operation is."""
        return self.operation.repeatable

    @property
    def reads_module_input(self) -> bool:  # type: ignore[override]  # a fact of the pair, not of the class
        """Whether the subspace is a transcoder's."""
        return self.subspace.inputs is not None

    @property
    def source_width(self) -> int | None:  # type: ignore[override]  # a fact of the pair, not of the class
        """Coordinates of the module's input, which a transcoder reads."""
        return self.subspace.inputs

    @property
    def coordinates(self) -> list[int] | None:
        """The coordinates that are edited when a call chooses no subspaces."""
        return None if self._usual is None else list(self._usual)

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return the base with its coordinates in the subspace as the operation makes them."""
        space = self.subspace
        chosen = None if space.takes_choice else subspaces
        if self.reads_module_input:
            inputs = self.given(base, source, space.inputs)
            return transcoded(self, self.operation, space.basis(inputs), base, inputs, chosen, space.gate())
        return edited(self, self.operation, space.basis(base, subspaces), base, source, chosen, space.gate())

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data; operation and subspace as `describe` writes them.

        Raises:
            SpecError: the operation is a function, or one of the two is a class of somebody else's.
        """
        names = "coordinates", "subspace_partition", "keep_last_dim", "interchange_dim"
        parts = describe(self.operation, _OPERATIONS), describe(self.subspace, _SUBSPACES)
        return {"operation": parts[0], "subspace": parts[1], **{name: getattr(self, name) for name in names}}

    # --- what a fit asks of it is answered by the subspace ------------------------------------------------------------

    def set_temperature(self, temperature: float) -> None:
        """Set the temperature of the subspace's mask."""
        super().set_temperature(temperature)
        self.subspace.temperature = self.temperature

    def penalty(self) -> Float[Tensor, ""]:
        """Return the subspace's penalty."""
        return self.subspace.penalty()

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return the trainable parameters in groups of one learning rate each."""
        rates, groups = self.subspace.rates(), dict[float, list[Any]]()
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(rates.get(name.removeprefix("subspace."), 1.0), []).append(parameter)
        return [{"params": params, "lr": learning_rate * rate} for rate, params in groups.items()]

    @property
    def dimensions(self) -> int | None:
        """How many coordinates the hard version works in; `None` where that is not what is learned."""
        return self.subspace.dimensions

    def hardened(self) -> SubspaceIntervention:
        """Return a frozen copy with the hard mask."""
        frozen = copy.deepcopy(self).requires_grad_(False)
        frozen.subspace.hard = True
        return frozen


def _check(operation: Operation, subspace: Subspace) -> None:
    """Refuse an operation that cannot be made in a subspace."""
    name = f"{type(operation).__name__} in {type(subspace).__name__}"
    if operation.size is not None and subspace.size is not None and operation.size != subspace.size:
        raise SpecError(f"{name}: it is for {operation.size} coordinates, and the subspace has {subspace.size}")
    if subspace.inputs is not None and operation.source_kind != "none" and not isinstance(operation, Add | Subtract):
        raise SpecError(
            f"{name}: a transcoder reads one input only, and this needs those of base and source: Add the latents of "
            "the source and Subtract those of the base, as two edits"
        )


def _checked(coordinates: Sequence[int], size: int | None) -> tuple[int, ...]:
    """Return the numbers of coordinates, in ascending order, each once."""
    if not coordinates or any(number < 0 or (size is not None and number >= size) for number in coordinates):
        end = "" if size is None else f" to {size - 1}"
        raise SpecError(f"coordinates are numbers from 0{end}, at least one; found {list(coordinates)}")
    return tuple(sorted({int(number) for number in coordinates}))


def _table(module: Any, kind: type) -> dict[str, Any]:
    """Return the concrete classes of a kind that a contents page lists, by name."""
    listed = [getattr(module, name) for name in module.__all__]
    classes = [one for one in listed if isinstance(one, type) and issubclass(one, kind) and one is not Function]
    return {one.__name__: one for one in classes if not getattr(one, "__abstractmethods__", None)}


_OPERATIONS, _SUBSPACES = _table(operations, Operation), _table(subspaces, Subspace)
