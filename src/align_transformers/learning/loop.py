"""The loop of a fit: epochs, steps, validation, and when a checkpoint is due."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .._errors import SpecError
from .alignment import Alignment
from .checkpoint import same_tensors
from .order import Order
from .progress import Progress
from .reading import Measure, Read, Where, first
from .settings import FitError, Settings, autocast
from .store import Store


@dataclass
class State:
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


@dataclass(frozen=True, eq=False)
class Work:
    """A fit that is being carried out."""

    alignment: Alignment
    loader: Iterable[Any]
    validation: Iterable[Any] | None
    metric: Measure
    metric_positions: Where
    settings: Settings
    optimizer: Optimizer
    scheduler: LRScheduler
    batches: int | None
    total: int
    order: Order
    store: Store | None
    report: Progress
    state: State


def run(work: Work) -> None:
    """Go through the loader, epoch by epoch, from where the state stands."""
    state, settings = work.state, work.settings
    while state.step < work.total and not state.stopped:
        if settings.max_steps is None and state.epoch == settings.epochs:
            break
        before = state.step, state.batch
        for group in _groups(work):
            _step(work, group)
            if state.step == work.total or state.stopped:
                break
        else:
            if before == (state.step, 0):
                raise SpecError("the loader gave no batch: it must be possible to go through it once an epoch")
            state.epoch, state.batch = state.epoch + 1, 0
    if state.best_value is None:
        state.best, state.best_step = same_tensors(work.alignment.interventions.state_dict()), state.step
    if work.store is not None:
        work.store.save(work)


def _groups(work: Work) -> Iterator[list[Any]]:
    """Yield the batches of the rest of an epoch, as many at once as make a step."""
    batches = work.order.batches(work.loader, work.state.batch)
    while group := list(islice(batches, work.settings.accumulate)):
        work.state.batch += len(group)
        yield group


def _step(work: Work, group: list[Any]) -> None:
    """Make one optimiser step, and what is due after it."""
    started, state, settings = time.perf_counter(), work.state, work.settings
    work.optimizer.zero_grad(set_to_none=True)
    work.alignment.anneal(state.step / max(work.total - 1, 1))
    count, loss, metric = 0, 0.0, 0.0
    for batch in group:
        read, total = _backward(work, batch)
        count, loss, metric = count + read.count, loss + total, metric + first(work.metric, read, "metric").sum().item()
    learning = work.alignment.learning()
    for parameter in learning:
        if parameter.grad is not None:
            parameter.grad.div_(count)
    norm = nn.utils.clip_grad_norm_(learning, settings.clip or float("inf"))
    rate = work.optimizer.param_groups[0]["lr"]
    work.optimizer.step()
    work.scheduler.step()
    state.step += 1
    row = {
        "step": state.step,
        "epoch": state.epoch,
        "loss": loss / count,
        "metric": metric / count,
        "validation": None,
        "lr": float(rate),
        "temperature": _temperature(work),
        "gradient": norm.item(),
        "examples": count,
        "examples_per_second": count / max(time.perf_counter() - started, 1e-9),
    }
    state.history.append(row)
    if work.validation is not None and _validation_is_due(work):
        _validate(work, row, work.validation)
    if work.store is not None and state.step % settings.checkpoint_every == 0:
        work.store.save(work)
    work.report(MappingProxyType(row), work.total)


def _backward(work: Work, batch: Any) -> tuple[Read, float]:
    """Add the gradient of a batch's summed loss; return what the metric reads, cut loose, and that loss."""
    alignment, reader = work.alignment, work.alignment.reader
    with autocast(work.settings, alignment.learning()[0].device):
        read, other = reader.read(reader.collate(batch), alignment.positions, work.metric_positions)
        total = alignment.losses(read).sum() + alignment.penalty() * read.count
    value = total.detach().item()
    if not total.requires_grad:
        raise FitError("the loss does not depend on what learns: is the logits' position reached by the interventions?")
    if value != value or abs(value) == float("inf"):
        raise FitError(
            f"the loss is {value} at step {work.state.step + 1}: a smaller lr, clip=1.0 or fewer dimensions help"
        )
    total.backward()
    return replace(other, logits=other.logits.detach()), value


def _temperature(work: Work) -> float | None:
    """Return the first temperature that is annealed."""
    for one in work.alignment.trainable():
        if one.temperature_schedule is not None:
            start, end = one.temperature_schedule
            return start + (end - start) * (work.state.step - 1) / max(work.total - 1, 1)
    return None


def _validation_is_due(work: Work) -> bool:
    every = work.settings.validate_every
    if work.state.step == work.total:
        return True
    return work.state.batch == work.batches if every is None else work.state.step % every == 0


@torch.no_grad()
def _validate(work: Work, row: dict[str, Any], loader: Iterable[Any]) -> None:
    """Measure the metric on the validation data, and keep the weights if they are the best so far."""
    state, settings, alignment, reader = work.state, work.settings, work.alignment, work.alignment.reader
    alignment.eval()
    values = []
    for batch in loader:
        with autocast(settings, alignment.learning()[0].device):
            (read,) = reader.read(reader.collate(batch), work.metric_positions)
        values.append(first(work.metric, read, "metric"))
    alignment.train()
    if not values:
        raise SpecError("the validation loader is empty")
    value = row["validation"] = torch.cat(values).double().mean().item()
    sign = 1 if settings.larger_is_better else -1
    if state.best_value is None or sign * value > sign * state.best_value:
        state.best_value, state.best_step, state.waited = value, state.step, 0
        state.best = same_tensors(alignment.interventions.state_dict())
    else:
        state.waited += 1
        state.stopped = settings.patience is not None and state.waited >= settings.patience
