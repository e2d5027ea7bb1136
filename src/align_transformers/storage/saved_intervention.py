"""From what a file says to an intervention: a known class, checked arguments, and weights that fit them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import ArtifactError
from .._types import hints_of, misfit
from ..config import IntervenableConfig
from ..interventions import Intervention
from ..interventions.build import keep_facts
from .limits import Limits
from .plain import CONFIG, Kinds, check_record, config_from_dict
from .types import OWN, find_type

_INTERVENTION: Mapping[str, Kinds] = {
    "class": (str,), "arguments": (dict,), "training": (bool,), "frozen": (list,), "orders": (dict,)
}  # fmt: skip


def restored(
    config: Any, interventions: Sequence[Any], tensors: Mapping[str, Tensor], classes: Sequence[type]
) -> IntervenableConfig:
    """Return the configuration that a file describes, with the interventions in their places.

    Args:
        config: what the file says of it.
        interventions: what it says of each.
        tensors: all of them, by `number.name`.
        classes: classes of the caller's.

    Raises:
        ArtifactError: as for `build` and `config_from_dict`, or they ask for too much together.
        SpecError: as for `IntervenableConfig`.
    """
    limits = Limits()
    limits.count(len(interventions), "interventions")
    limits.count(len(check_record(config, CONFIG, "config")["representations"]), "config.representations")
    states = split_by_number(tensors, len(interventions))
    made = [
        build(one, states[number], classes, f"interventions[{number}]", limits)
        for number, one in enumerate(interventions)
    ]
    return config_from_dict(config, made)


def build(plain: Any, state: Mapping[str, Tensor], classes: Sequence[type], where: str, limits: Limits) -> Intervention:
    """Return the intervention that a file describes.

    The global random state is left as it is.

    Args:
        plain: class name, constructor arguments, mode, names of frozen parameters, orders of axes in memory.
        state: its tensors by name.
        classes: classes of the caller's.
        where: name of the entry, for messages.
        limits: what the file has asked for so far.

    Raises:
        ArtifactError: the class is unknown, or arguments and tensors do not fit it or each other.
    """
    record = check_record(plain, _INTERVENTION, where)
    kind, arguments = find_type(record["class"], classes, where), record["arguments"]
    limits.sizes(arguments, sum(value.numel() for value in state.values()), where)
    limits.partition(arguments.get("subspace_partition"), f"{where}.arguments.subspace_partition")
    _check_types(kind, arguments, where)
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


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite.

    >>> is_finite(torch.ones(2)), is_finite(torch.tensor([1.0, float("nan")]))
    (True, False)
    """
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool(torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all())


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
        return keep_facts(kind(**arguments), arguments)
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


def _check_types(kind: type[Intervention], arguments: Mapping[str, Any], where: str) -> None:
    """Refuse arguments of other types than the library's constructors say; the caller's may take what they like."""
    hints: dict[str, Any] = {}
    for owner in kind.__mro__:
        if "__init__" in vars(owner):
            own = owner.__module__.partition(".")[0] == __name__.partition(".")[0]
            taken = (
                hints_of(vars(owner)["__init__"]) if own else dict.fromkeys(inspect.signature(owner).parameters, Any)
            )
            hints = {**taken, **hints}
        if owner is Intervention:
            break
    wrong = misfit(arguments, hints)
    if wrong is not None:
        raise ArtifactError(f"{where}.arguments.{wrong}")


def difference(before: Intervention, after: Intervention) -> str | None:
    """Return in what an intervention that was restored is not the one that was saved; `None` if in nothing.

    Tensors are compared to the bit, whether they are in the state dict or not, and so are the attributes that are plain
    data, modes among them; those that begin with `_` are a module's own business.
    """
    restored_modules = dict(after.named_modules())
    for name, module in before.named_modules():
        other = restored_modules.get(name)
        if other is None or type(other) is not type(module):
            return f"its module {name!r} is made otherwise"
        here, there = _attributes(module), _attributes(other)
        for key in here.keys() | there.keys():
            if here.get(key) != there.get(key):
                return (
                    f"its attribute {f'{name}.{key}'.strip('.')} is {here.get(key)!r:.60}, and would come back as "
                    f"{there.get(key)!r:.60}: make it an argument of the constructor, or keep it in a buffer"
                )
    tensors = [{**dict(one.named_parameters()), **dict(one.named_buffers())} for one in (before, after)]
    for name, value in tensors[0].items():
        found = tensors[1].get(name)
        if found is None or value.dtype != found.dtype or _bytes(value) != _bytes(found):
            return f"its tensor {name} would come back as another"
    return None


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes that are plain data, lists and tuples alike."""
    return {name: _as_plain(value) for name, value in vars(module).items() if name[0] != "_" and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _as_plain(value: Any) -> Any:
    return [_as_plain(one) for one in value] if isinstance(value, list | tuple) else value
