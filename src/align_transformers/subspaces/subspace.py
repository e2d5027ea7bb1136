"""What a subspace is: coordinates of a vector, and what a change of them changes in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._checked import checked
from .._errors import SpecError, UnknownNameError, near_misses
from .._types import hints_of, misfit
from .basis import Coordinates
from .partition import Choice

Schedule = tuple[float, float]
"""The temperature at the start and at the end of a fit."""

Self = TypeVar("Self", bound="Subspace")


class Subspace(nn.Module, ABC):
    """In which coordinates an operation works: `read` them off a vector, `lift` a change of them back to it.

    A new one is one file: say how many coordinates there are, what they are in a call (`basis`), and which constructor
    arguments make one of the same shapes (`arguments`).

    Args:
        width: of the vectors; `None` for any.
        size: how many coordinates there are; `None` for as many as a vector has.

    >>> from align_transformers.subspaces import Rotation
    >>> Rotation(4, 2).read(torch.zeros(1, 1, 4)).shape
    torch.Size([1, 1, 2])
    """

    takes_choice: bool = False
    """True if an example's choice of subspaces says which member of it is meant, rather than which coordinates."""
    inputs: int | None = None
    """The width of the module's input, if coordinates are read off that and lifted to its output: of a transcoder."""
    temperature_schedule: Schedule | None = None
    """The temperature that a fit starts and ends with; `None` where nothing is soft."""
    temperature: float
    hard: bool = False
    """Whether what is soft while it is learned is hard."""

    @checked
    def __init__(self, width: int | None, size: int | None) -> None:
        super().__init__()
        self.width, self.size = width, size

    @abstractmethod
    def basis(self, base: Tensor | None = None, choice: Choice | None = None) -> Coordinates:
        """Return the coordinates as they are now: what is built of parameters is built once for a call.

        Args:
            base: the vectors of the call, `(batch, ..., width)`.
            choice: what each example chooses; only looked at with `takes_choice`.
        """

    def read(self, x: Float[Tensor, " ..."], choice: Choice | None = None) -> Float[Tensor, " ..."]:
        """Return the coordinates of `x`, `(..., width)`, as `(..., size)`."""
        return self.basis(x, choice).read(x)

    def arguments(self) -> dict[str, Any]:
        """Return what `empty` makes one of the same shapes of: numbers, texts and lists; or another subspace."""
        return {"width": self.width}

    @classmethod
    def empty(cls: type[Self], *args: Any, **arguments: Any) -> Self:
        """Return one into which a state dict can be loaded."""
        return cls(*args, **arguments)

    def gate(self) -> Float[Tensor, " size"] | None:
        """Return how much of each coordinate's change is made, from 0 to 1; `None` for all of each."""
        return None

    @property
    def dimensions(self) -> int | None:
        """How many coordinates the hard version works in; `None` where that is not what is learned."""
        return None

    def penalty(self) -> Float[Tensor, ""]:
        """Return what a fit adds to its loss."""
        return torch.zeros(())

    def rates(self) -> dict[str, float]:
        """Return parameters by name that learn at another rate than the rest, in rates of the rest."""
        return {}


def describe(part: nn.Module, table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a subspace or an operation as plain data: its class's name, and its arguments.

    Args:
        part: what is described.
        table: the classes that `restore` will know.

    Raises:
        SpecError: its class is not in the table, or cannot be written down.

    >>> from align_transformers.subspaces import Rotation
    >>> describe(Rotation(4, 2), {"Rotation": Rotation})
    {'class': 'Rotation', 'arguments': {'width': 4, 'k': 2, 'stack': None}}
    """
    name = type(part).__name__
    arguments: dict[str, Any] = part.arguments()  # type: ignore[operator]  # of Subspace and Operation
    if table.get(name) is not type(part):
        raise SpecError(
            f"{name} is not the library's own, and nothing else is found by a name in a file: to save it write a "
            "subclass of Intervention, and load it with that class"
        )
    plain = {key: describe(one, table) if isinstance(one, nn.Module) else one for key, one in arguments.items()}
    return {"class": name, "arguments": plain}


def restore(description: Any, table: Mapping[str, Any]) -> Any:
    """Return what `describe` described: of the right class and shapes, to load a state dict into.

    Args:
        description: as `describe` returns it.
        table: the classes that it may name. Nothing else is looked up anywhere.

    Raises:
        SpecError: it is no description.
        UnknownNameError: it names a class that is not in the table.
    """
    if not isinstance(description, Mapping) or set(description) != {"class", "arguments"}:
        raise SpecError(f"a description has 'class' and 'arguments'; found {str(description)[:80]}")
    name, arguments = description["class"], description["arguments"]
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise SpecError(f"'class' is a name and 'arguments' a dict; found {str(description)[:80]}")
    if name not in table:
        raise UnknownNameError(f"unknown class {name[:80]!r}; {near_misses(name, list(table))}")
    inner = {key: restore(value, table) if isinstance(value, Mapping) else value for key, value in arguments.items()}
    kind = table[name]
    own = vars(kind).get("empty")
    wrong = misfit(inner, hints_of(kind.__init__ if own is None else own.__func__))
    if wrong is not None:
        raise SpecError(f"{name}: {wrong}")
    return kind.empty(**inner)
