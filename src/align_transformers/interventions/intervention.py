"""What an intervention is: a pure function of `(base, source)`; the kinds differ only in where `source` comes from."""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from operator import index
from typing import Any, ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from .._checked import checked
from .._errors import SpecError
from ..operations import SourceKind
from ..subspaces import Choice, Partition, coordinate_mask


class Intervention(nn.Module, ABC):
    """An operation `new = intervention(base, source, subspaces)` on gathered activations.

    Subclass it, write `forward(self, base, source, subspaces=None)`, and return a new tensor of the shape of `base`.
    Never write into `base` or `source`.

    Args:
        embed_dim: coordinates of the vectors that `forward` sees; the library fills it in from the model where it can
            be known.
        subspace_partition: parts of the coordinates, as `Partition.of` reads them.
        source_representation: a constant source, `(width,)` or broadcastable to `base`; then no source run is needed.
        keep_last_dim: True hands over `(batch, units, width)`; False `(batch, units * width)`: the units of an example
            as one vector, so that a subspace spans them all.
        interchange_dim: work in the first so many coordinates when a call chooses no subspace.
        low_rank_dimension: kept for subclasses that need it; unused here.

    Raises:
        SpecError: `embed_dim` is not a number from 1; the partition names a coordinate at or past it;
            `interchange_dim` is negative.

    >>> class Halve(Intervention):
    ...     def forward(self, base, source=None, subspaces=None):
    ...         return self.within(base, base / 2, subspaces)
    >>> Halve(interchange_dim=1)(torch.ones(1, 1, 2)).tolist()
    [[[0.5, 1.0]]]
    """

    source_kind: SourceKind = "run"
    """Where the source comes from; see `SourceKind`."""
    writes: ClassVar[bool] = True
    """False for interventions that only look."""
    reads_module_input: ClassVar[bool] = False
    """True if the source is the module's input rather than the value at the site itself."""
    source_width: int | None = None
    """Coordinates of the source, where it has others than the base."""
    reads_several: bool = False
    """True if `source` may be a tuple: the values of the several reads of an edit, each `(batch, units, width)` of its
    own places."""
    joins_units: ClassVar[bool] = False
    """True if a configuration with `max_number_of_units` over 1 hands over the units of an example as one vector: the
    class is constructed with `keep_last_dim=False`, and `embed_dim` is the width of all units together."""
    repeatable: ClassVar[bool] = True
    """True if the same base and source always give the same value, so that an equal edit of an equal run need not be
    made twice."""
    tensor_arguments: ClassVar[tuple[str, ...]] = ("source_representation",)
    """Constructor arguments that are kept in the state dict, not in `arguments`."""
    _usual: tuple[int, ...] | None = None
    """The coordinates that a call works in when it chooses no subspace, where they are not the first so many."""

    @checked
    def __init__(
        self,
        *,
        embed_dim: int | None = None,
        subspace_partition: Iterable[Any] | None = None,
        source_representation: Tensor | None = None,
        keep_last_dim: bool = True,
        interchange_dim: int | None = None,
        low_rank_dimension: int | None = None,
    ) -> None:
        super().__init__()
        if embed_dim is not None and embed_dim < 1:
            raise SpecError(f"embed_dim is a number of coordinates from 1; found {embed_dim}")
        self.embed_dim = embed_dim
        self.keep_last_dim = keep_last_dim
        self.low_rank_dimension = low_rank_dimension
        self.partition = None if subspace_partition is None else Partition.of(subspace_partition)
        self.subspace_partition = None if self.partition is None else self.partition.as_lists()
        if embed_dim is not None and keep_last_dim:
            self.limit_partition(embed_dim)
        self.interchange_dim: int | None = None
        if interchange_dim is not None:
            self.set_interchange_dim(interchange_dim)
        self.source_representation: Tensor | None
        self.register_buffer("source_representation", None)
        if source_representation is not None:
            self.set_source_representation(source_representation)

    @abstractmethod
    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return the new value.

        Args:
            base: `(batch, units, width)`, or `(batch, units * width)` with `keep_last_dim=False`.
            source: of the same shape, or broadcastable to it; `None` for interventions without a source.
            subspaces: for each example the chosen parts; `None` for the whole vector.
        """

    def arguments(self) -> dict[str, Any]:
        """Return the constructor arguments, as they can be written to JSON.

        `type(x)(**x.arguments())`, given the state dict of `x`, is equal to `x`. Every constructor argument is kept as
        an attribute of the same name; tensors are in the state dict. Subclasses that keep to this need not override.

        Raises:
            SpecError: an argument is not kept as an attribute, or is not JSON-able; the message says which.

        >>> from align_transformers import NoiseIntervention
        >>> NoiseIntervention(seed=3).arguments()["seed"]
        3
        """
        kept = {}
        for name in dict.fromkeys(_constructor_arguments(type(self))):
            if name in self.tensor_arguments:
                continue
            if not hasattr(self, name):
                raise SpecError(
                    f"{type(self).__name__} does not keep its constructor argument {name!r}, so it cannot be saved: "
                    f"write self.{name} = {name} in its __init__"
                )
            value = getattr(self, name)
            kept[name] = value.tolist() if isinstance(value, Tensor) else value
        try:
            json.dumps(kept)
        except TypeError as error:
            raise SpecError(f"the arguments of {type(self).__name__} cannot be written down: {error}") from error
        return kept

    def limit_partition(self, coordinates: int) -> None:
        """Refuse a partition that names a coordinate at or past `coordinates`.

        Raises:
            SpecError: it does.
        """
        if self.partition is not None and self.partition.end > coordinates:
            raise SpecError(
                f"subspace_partition names coordinate {self.partition.end - 1}, but the vector has {coordinates}"
            )

    def given(self, base: Tensor, source: Tensor | None, width: int | None = None) -> Tensor:
        """Return the source, or else the constant that the intervention carries, in the shape and dtype of `base`.

        Args:
            base: `(batch, ..., width)`.
            source: broadcastable to it; `None` for the constant.
            width: of the source's vectors, where it is not that of the base.

        Raises:
            SpecError: there is neither, or it does not fit the base.
        """
        value, name = self.source_representation if source is None else source, type(self).__name__
        if value is None:
            raise SpecError(f"{name} needs a source: pass one, or construct it with source_representation=")
        if value.dtype != base.dtype or value.device != base.device:
            value = value.to(base)
        shape = base.shape if width is None else (*base.shape[:-1], width)
        if value.shape == shape:
            return value
        try:
            return value.expand(shape)
        except RuntimeError:
            raise SpecError(
                f"{name}: the source {tuple(value.shape)} does not fit the base {tuple(base.shape)}"
            ) from None

    def _fitted(self, what: str, names: Iterable[str], how: str) -> list[Tensor]:
        """Return buffers that are empty until something is fitted or loaded.

        Raises:
            SpecError: one is empty; the message says `what` there is none of, and `how` it is made.
        """
        found = [self._buffers[name] for name in names]
        if any(value is None for value in found):
            name = type(self).__name__
            raise SpecError(f"{name} has no {what} yet: make it with {name}.{how}, or load a state dict")
        return [value for value in found if value is not None]

    @classmethod
    def takes_subspaces(cls) -> bool:
        """Whether `forward` has a third argument, for the chosen subspaces."""
        parameters = inspect.signature(cls.forward).parameters.values()
        places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        return len(places) > 3 or any(p.kind is p.VAR_POSITIONAL for p in parameters)

    def set_source_representation(self, value: Tensor) -> None:
        """Make a copy of `value`, `(width,)` or broadcastable to `base`, the constant source: no run is read then."""
        self.register_buffer("source_representation", torch.as_tensor(value).detach().clone())

    def set_interchange_dim(self, interchange_dim: int) -> None:
        """Work in the first `interchange_dim` coordinates when a call chooses no subspace."""
        if interchange_dim < 0:
            raise SpecError(f"interchange_dim is a number of coordinates, from 0; found {interchange_dim}")
        self.interchange_dim = int(interchange_dim)

    def chosen(self, base: Tensor, subspaces: Choice | None) -> Bool[Tensor, "batch ..."] | None:
        """Mark the coordinates of `base` that a call works in; `None` where it is all of them.

        Args:
            base: `(batch, ..., width)`: vectors, or their coordinates in a basis.
            subspaces: one tuple of parts for each example; `None` for the first `interchange_dim` coordinates, for all
                examples or for one.

        Returns:
            Booleans of the shape of `base`, on its device.

        Raises:
            SpecError: a part does not exist, or the choice does not name every example once.
        """
        width = base.shape[-1]
        usual: Tensor | None = None
        if self._usual is not None:
            usual = coordinate_mask(((0,),), Partition((self._usual,)), width)
        elif self.interchange_dim is not None:
            usual = (torch.arange(width) < self.interchange_dim).unsqueeze(0)
        if subspaces is None:
            mask = usual
        else:
            choice = _checked(subspaces, base.shape[0])
            mask = coordinate_mask(choice, self.partition, width)
            silent = torch.tensor([parts is None for parts in choice]).unsqueeze(1)
            mask = mask if usual is None else torch.where(silent, usual, mask)
        if mask is None:
            return None
        return mask.view(len(mask), *([1] * (base.ndim - 2)), width).to(base.device).expand_as(base)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Keep a tensor as modules do; also that of a size, in the place of the plain number."""
        if name in ("embed_dim", "interchange_dim", "low_rank_dimension"):
            self.__dict__.pop(name, None)
        super().register_buffer(name, tensor, persistent)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Make room for saved values that this instance has none of so far: a constant, what was fitted."""
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if buffer is None and saved is not None:
                self.register_buffer(name, torch.empty_like(saved))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def restricted(self, change: Tensor, subspaces: Choice | None) -> Tensor:
        """Return a change of coordinates, zero outside the chosen ones.

        Args:
            change: `(batch, ..., k)`: of the coordinates in a basis.
            subspaces: one tuple of parts for each example; `None` for all.

        Raises:
            SpecError: as for `chosen`.
        """
        mask = self.chosen(change, subspaces)
        return change if mask is None else torch.where(mask, change, 0)

    def within(self, base: Tensor, new: Tensor, subspaces: Choice | None) -> Tensor:
        """Return `new` in the chosen coordinates and `base` in all others.

        Args:
            base: `(batch, ..., width)`.
            new: broadcastable to `base`.
            subspaces: one tuple of parts for each example; `None` for the whole vector.

        Raises:
            SpecError: as for `chosen`.
        """
        mask = self.chosen(base, subspaces)
        if mask is not None:
            return torch.where(mask, new, base)
        return new if new.shape == base.shape else new.expand_as(base)


class ConstantSourceIntervention(Intervention):
    """Base class of interventions that bring their source along: a saved vector, zeros, a formula. No run is read."""

    source_kind: SourceKind = "none"


class SourcelessIntervention(Intervention):
    """Base class of interventions that compute the new value from the base alone."""

    source_kind: SourceKind = "none"


def _checked(subspaces: Any, batch: int) -> Choice:
    """Return subspaces as plain numbers."""
    try:
        choice = tuple(None if parts is None else tuple(map(index, parts)) for parts in subspaces)
    except TypeError:
        raise SpecError(f"subspaces are a list of part numbers for each example; found {subspaces!r}") from None
    if len(choice) != batch:
        raise SpecError(f"subspaces name {len(choice)} examples, but the batch has {batch}")
    return choice


def _constructor_arguments(kind: type) -> Iterator[str]:
    """Yield the names of the constructor's arguments; where it takes `**kwargs`, those of the next class, too."""
    for owner in kind.__mro__:
        if "__init__" not in vars(owner):
            continue
        parameters = list(inspect.signature(vars(owner)["__init__"]).parameters.values())[1:]
        for one in parameters:
            if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL):
                yield one.name
        if owner is Intervention or not any(one.kind is one.VAR_KEYWORD for one in parameters):
            return
