"""From what a user wrote (a class, an instance, a function) to an intervention module."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._errors import SpecError
from ..subspaces import Partition
from .intervention import Intervention
from .trainable import TrainableIntervention
from .user_function import FunctionIntervention


def build_intervention(spec: Any, options: Mapping[str, Any], *, units: int = 1) -> Intervention:
    """Return the intervention that `spec` stands for.

    Args:
        spec: an `Intervention` class or instance, or a function or module `f(base)`, `f(base, source)` or
            `f(base, source, subspaces)`.
        options: constructor arguments by name; those that are `None` are left out. `embed_dim`, which the library finds
            out, is left out, too, where a constructor does not take it.
        units: how many units an example may name. Over 1, a class that `joins_units` is constructed to see them as one
            vector of `units` times `embed_dim` coordinates, unless `keep_last_dim` is among the options.

    Returns:
        An instance is handed back as it is; a class is constructed; a function is wrapped.

    Raises:
        SpecError: it is none of these; an option has no place in the constructor, or the constructor needs another; an
            instance came with an option that it was not made with.

    >>> from align_transformers import VanillaIntervention
    >>> build_intervention(VanillaIntervention, {"embed_dim": 4}).embed_dim
    4
    """
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(spec, Intervention):
        late = sorted(name for name in given.keys() - {"embed_dim"} if not _holds(spec, name, given[name]))
        if late:
            raise SpecError(f"{', '.join(late)} came with a finished {type(spec).__name__}: give it to its constructor")
        return spec
    if isinstance(spec, type):
        if not issubclass(spec, Intervention):
            raise SpecError(f"{spec.__name__} is not a subclass of Intervention")
        return _construct(spec, _joined(given, units) if spec.joins_units and units > 1 else given)
    if not callable(spec):
        raise SpecError(
            "an intervention is a subclass or an instance of Intervention, or a function (base, source) -> new; "
            f"found {spec!r}"
        )
    return FunctionIntervention(spec, **given)


def needs_width(spec: Any) -> bool:
    """Whether a class of interventions may not do without `embed_dim`: it learns, or its constructor asks for it.

    >>> from align_transformers import RotatedSpaceIntervention, VanillaIntervention
    >>> needs_width(RotatedSpaceIntervention), needs_width(VanillaIntervention)
    (True, False)
    """
    if not isinstance(spec, type) or not issubclass(spec, Intervention):
        return False
    asked = inspect.signature(spec).parameters.get("embed_dim")
    return issubclass(spec, TrainableIntervention) or (asked is not None and asked.default is asked.empty)


def _holds(finished: Intervention, name: str, value: Any) -> bool:
    """Whether an intervention was constructed with an option of this value."""
    if name == "subspace_partition":
        return finished.partition == Partition.of(value)
    held = getattr(finished, name, None)
    if isinstance(value, Tensor) and isinstance(held, Tensor):
        return held is value or (held.shape == value.shape and torch.equal(held.cpu(), value.cpu()))
    return held is not None and not isinstance(held, Tensor) and bool(held == value)


def _joined(given: Mapping[str, Any], units: int) -> dict[str, Any]:
    """Return the options for an intervention that sees the units of an example as one vector."""
    if given.get("keep_last_dim", False):
        return dict(given)
    wide = {"embed_dim": given["embed_dim"] * units} if "embed_dim" in given else {}
    return {**given, **wide, "keep_last_dim": False}


def _construct(kind: type[Intervention], given: Mapping[str, Any]) -> Intervention:
    """Construct an intervention with the options that its constructor takes."""
    parameters = inspect.signature(kind).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        accepted = dict(given)
    else:
        refused = sorted(given.keys() - parameters.keys() - {"embed_dim"})
        if refused:
            raise SpecError(f"{kind.__name__}.__init__ takes no {', '.join(refused)}; let it take **kwargs")
        accepted = {name: value for name, value in given.items() if name in parameters}
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and name not in accepted
    ]
    if missing:
        raise SpecError(
            f"{kind.__name__} needs {', '.join(missing)}: construct it yourself and give it as intervention="
        )
    return keep_facts(kind(**accepted), accepted)


def keep_facts(made: Intervention, arguments: Mapping[str, Any]) -> Intervention:
    """Return an intervention that knows its width and rank, though its constructor may have taken and not kept them."""
    for name in ("embed_dim", "low_rank_dimension"):
        if getattr(made, name, None) is None and arguments.get(name) is not None:
            setattr(made, name, arguments[name])
    return made
