"""The loop of a fit: epochs, steps, validation, when a checkpoint is due and what is in it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .._errors import SpecError
from .alignment import Alignment
from .checkpoints import BatchOrder, Checkpoint, CheckpointFolder, copies, optimizer_state
from .columns import ColumnRule, Readout
from .losses import Measure, numbers_of
from .settings import FitError, Settings, autocast

HistoryRow = Mapping[str, Any]
"""One optimiser step of the history."""

_FIRST_STEPS = 3
"""By then something that learns has to have had a gradient."""

Progress = Callable[[HistoryRow, int], None]
"""Called after every optimiser step with its row and the number of all steps."""


@dataclass
class FitState:
    """Where a fit stands; all that changes while it runs, apart from what PyTorch keeps."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_step: int = 0
    best_value: float | None = None
    best: dict[str, Tensor] = field(default_factory=dict)
    waited: int = 0
    stopped: bool = False
    reached: list[str] = field(default_factory=list)
    """Keys of the interventions that the loss gave a gradient in the first steps."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A fit that is being carried out.

    Args:
        alignment: what learns, and its loss.
        loader: gives the batches of an epoch.
        validation: gives the batches that are never learned from, or `None`.
        metric: is followed, and says which weights are best.
        metric_positions: which logits it reads.
        settings: how long, how fast, how carefully.
        optimizer: of what learns.
        scheduler: of its learning rates.
        batches: how many an epoch has; `None` where it is not known.
        total: how many optimiser steps are to be made.
        order: in which the loader gives its batches.
        folder: where checkpoints are kept, or `None`.
        report: is called after every step.
        state: where the fit stands.
    """

    alignment: Alignment
    loader: Iterable[Any]
    validation: Iterable[Any] | None
    metric: Measure
    metric_positions: ColumnRule
    settings: Settings
    optimizer: Optimizer
    scheduler: LRScheduler
    batches: int | None
    total: int
    order: BatchOrder
    folder: CheckpointFolder | None
    report: Progress
    state: FitState = field(default_factory=FitState)

    def anneal(self, step: int) -> float | None:
        """Set the temperatures with which step number `step` is made, from 0; return the first of them."""
        return self.alignment.anneal(step / max(self.total - 1, 1))


def _checkpoint(fit: Fit) -> Checkpoint:
    """Return what is needed to go on with a fit from here."""
    state = asdict(fit.state)
    now, start = fit.order.now(), fit.order.start or fit.order.now()
    optimizer, groups = optimizer_state(fit.optimizer)
    tensors = {
        "weights": fit.alignment.interventions.state_dict(),
        "best": state.pop("best"),
        "optimizer": optimizer,
        "now": now[0],
        "start": start[0],
    }
    data = {
        "fit": identity(fit),
        "state": state,
        "optimizer": groups,
        "scheduler": fit.scheduler.state_dict(),
        "now": now[1],
        "start": start[1],
    }
    return Checkpoint(tensors, data)


def identity(fit: Fit) -> dict[str, Any]:
    """Return what must be the same in the fit that wrote a checkpoint and in the one that takes it up."""
    return {
        "settings": fit.settings.to_dict(),
        "steps": fit.total,
        "batches": fit.batches,
        "optimizer": type(fit.optimizer).__name__,
        "scheduler": type(fit.scheduler).__name__,
        "weights": {name: list(value.shape) for name, value in fit.alignment.interventions.state_dict().items()},
    }


def run(fit: Fit) -> None:
    """Go through the loader, epoch by epoch, from where the state stands."""
    state, settings = fit.state, fit.settings
    while state.step < fit.total and not state.stopped:
        if settings.max_steps is None and state.epoch == settings.epochs:
            break
        before = state.step, state.batch
        for group in _groups(fit):
            _step(fit, group)
            if state.step == fit.total or state.stopped:
                break
        else:
            if before == (state.step, 0):
                raise SpecError("the loader gave no batch: it must be possible to go through it once an epoch")
            state.epoch, state.batch = state.epoch + 1, 0
    if state.best_value is None:
        state.best, state.best_step = copies(fit.alignment.interventions.state_dict()), state.step
    if fit.folder is not None:
        fit.folder.save(_checkpoint(fit))


def _groups(fit: Fit) -> Iterator[list[Any]]:
    """Yield the batches of the rest of an epoch, as many at once as make a step."""
    batches = fit.order.batches(fit.loader, fit.state.batch)
    while group := list(islice(batches, fit.settings.accumulate)):
        fit.state.batch += len(group)
        yield group


def _step(fit: Fit, group: list[Any]) -> None:
    """Make one optimiser step, and what is due after it."""
    started, state, settings = time.perf_counter(), fit.state, fit.settings
    fit.optimizer.zero_grad(set_to_none=True)
    temperature = fit.anneal(state.step)
    count, loss, metric = 0, 0.0, 0.0
    for batch in group:
        read, total = _backward(fit, batch)
        count, loss = count + read.count, loss + total
        metric += numbers_of(fit.metric, read, "metric").sum().item()
    if state.step < _FIRST_STEPS:
        _check_reached(fit, group[-1])
    penalty = fit.alignment.penalty() * count
    loss += _finite(fit, penalty.item())
    if penalty.requires_grad:
        penalty.backward()
    learning = fit.alignment.learning()
    for parameter in learning:
        if parameter.grad is not None:
            parameter.grad.div_(count)
    norm = nn.utils.clip_grad_norm_(learning, settings.clip or float("inf"))
    rate = fit.optimizer.param_groups[0]["lr"]
    fit.optimizer.step()
    fit.scheduler.step()
    state.step += 1
    row = {
        "step": state.step,
        "epoch": state.epoch,
        "loss": loss / count,
        "metric": metric / count,
        "validation": None,
        "lr": float(rate),
        "temperature": temperature,
        "gradient": norm.item(),
        "examples": count,
        "examples_per_second": count / max(time.perf_counter() - started, 1e-9),
    }
    state.history.append(row)
    if fit.validation is not None and _validation_is_due(fit):
        _validate(fit, row, fit.validation)
    if fit.folder is not None and state.step % settings.checkpoint_every == 0:
        fit.folder.save(_checkpoint(fit))
    fit.report(MappingProxyType(row), fit.total)


def _backward(fit: Fit, batch: Any) -> tuple[Readout, float]:
    """Add the gradient of a batch's summed loss, without penalties; return what the metric reads, and that loss."""
    alignment, reader = fit.alignment, fit.alignment.reader
    with autocast(fit.settings, alignment.learning()[0].device):
        read, other = reader.read(reader.collate(batch), alignment.positions, fit.metric_positions)
        total = alignment.losses(read).sum()
    if not total.requires_grad:
        raise FitError(f"the loss does not depend on what learns: {_cause(fit, batch)}")
    value = _finite(fit, total.item())
    total.backward()
    return replace(other, logits=other.logits.detach()), value


def _finite(fit: Fit, value: float) -> float:
    """Return a part of the loss, if it is a finite number."""
    if not math.isfinite(value):
        raise FitError(
            f"the loss is {value} at step {fit.state.step + 1}: a smaller lr, clip=1.0 or fewer dimensions help"
        )
    return value


def _check_reached(fit: Fit, batch: Any) -> None:
    """Note which interventions the loss gave a gradient, before penalties have theirs; refuse to go on without any.

    Args:
        fit: with the gradients of one of the first steps.
        batch: of that step, to look for the cause.

    Raises:
        FitError: after the first steps no intervention has had one.

    Warns:
        UserWarning: some of several have had none.
    """
    state = fit.state
    learners = {
        key: [p for p in one.parameters() if p.requires_grad]
        for key, one in fit.alignment.reader.intervened.interventions.items()
    }
    for key, parameters in learners.items():
        if key not in state.reached and any(p.grad is not None and bool(p.grad.any()) for p in parameters):
            state.reached.append(key)
    steps = min(_FIRST_STEPS, fit.total)
    idle = [key for key, parameters in learners.items() if parameters and key not in state.reached]
    if state.step + 1 < steps or not idle:
        return
    said = f"the gradient of the loss was exactly 0 in each of the first {steps} steps"
    if not state.reached:
        raise FitError(f"nothing learns: {said}. The likely cause: {_cause(fit, batch)}")
    warnings.warn(f"{', '.join(idle)} learns nothing so far: {said}", stacklevel=2)


@torch.no_grad()
def _cause(fit: Fit, batch: Any) -> str:
    """Return why a loss has no gradient: whether the edits change what it reads tells where the gradient is lost."""
    reader, where = fit.alignment.reader, fit.alignment.positions
    collated = reader.collate(batch)
    (edited,) = reader.read(collated, where)
    plain = reader.plain(reader.call(collated).base, collated.get("labels"), where)
    if float((edited.logits - plain.logits).abs().max()) > 1e-4 * float(plain.logits.abs().max()):
        return (
            "the interventions do change the logits that are read, so the gradient is lost on the way: a mask that is "
            "hard or saturated, a kernel or function without a gradient, a detach() or no_grad(), or half precision"
        )
    return (
        f"the interventions do not change the logits that are read (positions={where!r}). They are at positions that "
        "these do not see (in the last block only the position that is read counts), or every source equals its base"
    )


def _validation_is_due(fit: Fit) -> bool:
    every = fit.settings.validate_every
    if fit.state.step == fit.total:
        return True
    return fit.state.batch == fit.batches if every is None else fit.state.step % every == 0


@torch.no_grad()
def _validate(fit: Fit, row: dict[str, Any], loader: Iterable[Any]) -> None:
    """Measure the metric on the validation data, and keep the weights if they are the best so far."""
    state, settings, alignment, reader = fit.state, fit.settings, fit.alignment, fit.alignment.reader
    alignment.eval()
    values = []
    for batch in loader:
        with autocast(settings, alignment.learning()[0].device):
            (read,) = reader.read(reader.collate(batch), fit.metric_positions)
        values.append(numbers_of(fit.metric, read, "metric"))
    alignment.train()
    if not values:
        raise SpecError("the validation loader is empty")
    value = row["validation"] = torch.cat(values).double().mean().item()
    sign = 1 if settings.larger_is_better else -1
    if state.best_value is None or sign * value > sign * state.best_value:
        state.best_value, state.best_step, state.waited = value, state.step, 0
        state.best = copies(alignment.interventions.state_dict())
    else:
        state.waited += 1
        state.stopped = settings.patience is not None and state.waited >= settings.patience
