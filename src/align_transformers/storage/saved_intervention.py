"""From what a file says to an intervention: a known class, checked arguments, and weights that fit them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._errors import ArtifactError
from ..interventions import Intervention
from .plain import Kinds, check_record
from .types import OWN, find_type

_INTERVENTION: Mapping[str, Kinds] = {
    "class": (str,), "arguments": (dict,), "training": (bool,), "frozen": (list,), "orders": (dict,)
}  # fmt: skip

MOST_COORDINATES = 2**24
"""Of a vector, and of all parts of a partition together: ranges are short to write, and are made into coordinates."""

_DEEPEST = 6  # a subspace, its arguments, one inside, its arguments; and two more for what may come
_FEW = 2**16  # what a size may be, however few weights there are


def build(plain: Any, state: Mapping[str, Tensor], classes: Sequence[type], where: str) -> Intervention:
    """Return the intervention that a file describes.

    The global random state is left as it is.

    Args:
        plain: class name, constructor arguments, mode, names of frozen parameters, orders of axes in memory.
        state: its tensors by name.
        classes: classes of the caller's.
        where: name of the entry, for messages.

    Raises:
        ArtifactError: the class is unknown, or arguments and tensors do not fit it or each other.
    """
    record = check_record(plain, _INTERVENTION, where)
    kind, arguments = find_type(record["class"], classes, where), record["arguments"]
    _check_sizes(arguments, sum(value.numel() for value in state.values()), where)
    _check_partition(arguments.get("subspace_partition"), where)
    if kind in OWN.values():
        # On this device nothing is allocated: a file cannot ask for more memory than it fills itself.
        with torch.device("meta"):
            _check_shapes(_construct(kind, arguments, where), state, where)
    with torch.random.fork_rng(devices=[]):
        made = _construct(kind, arguments, where)
    restore(made, _laid_out(state, record["orders"], where), where)
    parameters = dict(made.named_parameters())
    for name in record["frozen"]:
        if not isinstance(name, str) or name not in parameters:
            raise ArtifactError(
                f"{where}.frozen names {name!r}; {kind.__name__} has: {', '.join(parameters) or 'none'}"
            )
        parameters[name].requires_grad_(False)
    return made.train(record["training"])


def restore(made: Intervention, state: Mapping[str, Tensor], where: str) -> None:
    """Put the tensors in their places, in the dtypes in which they are given.

    Raises:
        ArtifactError: one is missing, too many, or of another shape.
    """
    _check_shapes(made, state, where)
    try:
        made.load_state_dict(dict(state), assign=True)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"{where}: the weights do not fit {type(made).__name__}: {error}") from error


def split_by_number(tensors: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Return for each intervention its tensors; in the file they are called `number.name`.

    Raises:
        ArtifactError: a name is of another form, or the number of no intervention.
    """
    states: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for name, value in tensors.items():
        number, _, rest = name.partition(".")
        if not rest or not (number.isascii() and number.isdigit()) or int(number[:9]) >= count:
            raise ArtifactError(f"the weights hold {name[:80]!r}; names are 'number.name', numbers below {count}")
        states[int(number)][rest] = value
    return states


def memory_order(tensor: Tensor) -> list[int]:
    """Return the axes of a tensor from the one with the longest steps in memory to the one with the shortest.

    >>> memory_order(torch.zeros(2, 3)), memory_order(torch.zeros(2, 3).T)
    ([0, 1], [1, 0])
    """
    return sorted(range(tensor.ndim), key=lambda axis: -tensor.stride()[axis])


def _laid_out(state: Mapping[str, Tensor], orders: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """Return the tensors with their axes in memory as they were: the last bits of a product depend on it."""
    laid = dict(state)
    for name, order in orders.items():
        if (
            name not in state
            or not isinstance(order, list)
            or sorted(map(repr, order)) != sorted(map(repr, range(state[name].ndim)))
        ):
            raise ArtifactError(f"{where}.orders: {name!r} is no tensor with the axes {order!r:.80}")
        back = sorted(range(len(order)), key=order.__getitem__)
        laid[name] = state[name].permute(order).contiguous().permute(back)
    return laid


def _construct(kind: type[Intervention], arguments: Mapping[str, Any], where: str) -> Intervention:
    try:
        return kind(**arguments)
    except Exception as error:  # whatever a constructor does with arguments that nobody has looked at
        raise ArtifactError(f"{where}: {kind.__name__} cannot be constructed with these arguments: {error}") from error


def _check_shapes(made: Intervention, state: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors of other shapes than the constructed ones."""
    for name, value in made.state_dict().items():
        if not isinstance(value, Tensor):
            continue
        if name not in state:
            raise ArtifactError(f"{where}: the weights lack {name!r} of {type(made).__name__}")
        if state[name].shape != value.shape:
            raise ArtifactError(
                f"{where}: {name!r} is {tuple(state[name].shape)} in the weights, and the arguments make it "
                f"{tuple(value.shape)}"
            )


def _check_sizes(arguments: Mapping[str, Any], elements: int, where: str, inside: int = 0) -> None:
    """Refuse numbers that ask for far more than the file holds."""
    if inside > _DEEPEST:
        raise ArtifactError(f"{where}: operations and subspaces are not so deep in each other")
    for name, value in arguments.items():
        if isinstance(value, Mapping):  # an operation or a subspace, or its arguments
            _check_sizes(value, elements, f"{where}.{name}", inside + 1)
        most = MOST_COORDINATES if name in ("embed_dim", "width", "interchange_dim") else max(elements, _FEW)
        if type(value) is int and abs(value) > most and name != "seed":
            raise ArtifactError(f"{where}.arguments.{name} is {value}; with {elements} weights it is at most {most}")


def _check_partition(partition: Any, where: str) -> None:
    """Refuse a partition whose ranges would fill the memory; the rest its constructor checks."""
    if _count_coordinates(partition, where) > MOST_COORDINATES:
        raise ArtifactError(f"{where}.arguments.subspace_partition names over {MOST_COORDINATES} coordinates")


def _count_coordinates(parts: Any, where: str) -> int:
    """Return how many coordinates are named at most: two numbers may be a range, or stand for themselves."""
    if parts is None:
        return 0
    if not isinstance(parts, list):
        raise ArtifactError(f"{where}.arguments.subspace_partition is made of lists of numbers; found {parts!r:.80}")
    if any(type(one) is int for one in parts):
        if any(type(one) is not int for one in parts):
            raise ArtifactError(f"{where}.arguments.subspace_partition mixes numbers and others: {parts!r:.80}")
        return max(len(parts), parts[1] - parts[0]) if len(parts) == 2 else len(parts)
    return sum(_count_coordinates(one, where) for one in parts)
