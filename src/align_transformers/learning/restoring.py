"""Taking up a fit where its checkpoint says: all of it is looked at before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from .checkpoints import BatchOrder, Checkpoint, damaged, set_optimizer_state
from .held import RandomStates
from .loop import Fit, FitState, identity


def restore(fit: Fit) -> None:
    """Put a fit where its checkpoint says; without one it starts from the beginning.

    Raises:
        SpecError: there is a checkpoint and the fit is not to be resumed, or it is another fit's.
        ArtifactError: it is damaged; what learns is as it was.
    """
    found = None if fit.folder is None else fit.folder.load(identity(fit))
    if found is None or fit.folder is None:
        return
    with damaged(fit.folder.path):
        state = _state(found, fit)
        weights = _weights(fit, found.tensors["weights"])
        state["best"] = _weights(fit, found.tensors["best"]) if "best" in found.tensors else {}
        start, now = (_random(fit.order, found, name) for name in ("start", "now"))
        _check_pace(fit, found)
        set_optimizer_state(fit.optimizer, found.tensors.get("optimizer", {}), found.data["optimizer"])
        fit.scheduler.load_state_dict(found.data["scheduler"])
        fit.alignment.interventions.load_state_dict(weights)
    for name, value in state.items():
        setattr(fit.state, name, value)
    fit.order.start, fit.order.resumed = start, now


def _state(found: Checkpoint, fit: Fit) -> dict[str, Any]:
    """Return where the fit stood, without the best weights."""
    state = found.data["state"]
    _same(set(state), {one.name for one in fields(FitState)} - {"best"}, "entries of the state")
    for name in ("step", "epoch", "batch", "best_step", "waited"):
        if type(state[name]) is not int or state[name] < 0:
            raise ValueError(f"{name} is {state[name]!r}")
    value, reached = state["best_value"], state["reached"]
    if state["step"] > fit.total or type(state["stopped"]) is not bool or not isinstance(value, float | int | None):
        raise ValueError(f"step {state['step']!r}, stopped {state['stopped']!r}, best_value {value!r}")
    if not all(type(row) is dict for row in state["history"]) or not all(type(key) is str for key in reached):
        raise ValueError("history or reached is not what it should be")
    return dict(state)


def _weights(fit: Fit, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights, if they are those of what learns."""
    now = fit.alignment.interventions.state_dict()
    there, here = ({name: (tuple(one.shape), one.dtype) for name, one in several.items()} for several in (tensors, now))
    _same(there, here, "weights")
    return dict(tensors)


def _random(order: BatchOrder, found: Checkpoint, name: str) -> RandomStates:
    """Return the states of all generators, if they can be set."""
    states, before = (found.tensors[name], found.data[name]), order.now()
    try:
        order.set(states)
    finally:
        order.set(before)
    return states


def _check_pace(fit: Fit, found: Checkpoint) -> None:
    """Refuse what an optimiser or its scheduler would take over without a look: entries that these do not have."""
    _alike(found.data["scheduler"], fit.scheduler.state_dict(), "scheduler")
    groups = fit.optimizer.state_dict()["param_groups"]
    _alike(found.data["optimizer"]["groups"], groups, "parameter groups")
    numbers = {str(number) for group in groups for number in group["params"]}
    keys = [*found.tensors.get("optimizer", {}), *found.data["optimizer"]["state"]]
    if not {key.partition(".")[0] for key in keys} <= numbers:
        raise ValueError("the optimiser has other parameters")


def _alike(found: Any, here: Any, what: str) -> None:
    """Refuse plain data that has not the entries and the kinds of values that are here."""
    if isinstance(here, Mapping):
        _same(set(found), set(here), what)
        for name, value in here.items():
            _alike(found[name], value, f"{what}: {name}")
    elif isinstance(here, list | tuple):
        if type(found) is not list or len(found) != len(here):
            raise ValueError(f"{what}: {found!r}")
        for one, other in zip(found, here, strict=True):
            _alike(one, other, what)
    elif here is not None and found is not None and not _of_a_kind(found, here):
        raise ValueError(f"{what}: {found!r}")


def _of_a_kind(found: Any, here: Any) -> bool:
    numbers = (int, float)
    return type(found) is type(here) or (type(found) in numbers and type(here) in numbers)


def _same(found: Any, here: Any, what: str) -> None:
    if found != here:
        raise ValueError(f"other {what}")
