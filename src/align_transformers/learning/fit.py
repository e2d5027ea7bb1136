"""`fit`: learn the parameters of interventions by gradient descent, the model frozen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .._optional import optional
from ..fast import ActivationCache as Memory
from ..models import find_slot, resolve, uncompiled
from .alignment import Alignment
from .borrowed import frozen, recomputed, seeded
from .loop import State, Work, run
from .losses import cross_entropy, iia
from .order import Order
from .progress import Progress, Row, reporter
from .reader import Collator, Direct, Forward, Intervened
from .reading import Measure, Where
from .replaying import Replaying
from .settings import OptimizerFactory, SchedulerFactory, Settings, make_optimizer, make_scheduler
from .store import Store

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Fitted:
    """What came of a fit. The interventions that were fitted hold the best weights.

    Args:
        history: one row an optimiser step: `step`, `epoch`, `loss` and `metric` (means over the step's examples, before
            the step was made), `validation` (`None` where there was none), `lr` (of the first group), `temperature`,
            `gradient` (its norm before clipping), `examples`, `examples_per_second`.
        steps: optimiser steps made.
        best_step: the step whose weights were kept: the best validation, or the last step.
        validation: the validation metric there; `None` without validation.
        stopped_early: whether patience ran out.
        weights: what was learned, by name, on the CPU.
        settings: how.
    """

    history: tuple[Row, ...]
    steps: int
    best_step: int
    validation: float | None
    stopped_early: bool
    weights: Mapping[str, Tensor]
    settings: Settings

    def to_frame(self) -> pandas.DataFrame:
        """Return the history as a `pandas.DataFrame`, one row a step.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        frame: pandas.DataFrame = optional("pandas", extra="tables").DataFrame([dict(row) for row in self.history])
        return frame


def fit(
    intervened: Intervened,
    loader: Iterable[Any],
    *,
    loss: Measure = cross_entropy,
    positions: Where = "last",
    metric: Measure = iia,
    metric_positions: Where | None = None,
    validation: Iterable[Any] | None = None,
    collator: Collator | None = None,
    optimizer: Optimizer | OptimizerFactory | None = None,
    scheduler: LRScheduler | SchedulerFactory | None = None,
    forward: Forward | None = None,
    memory: Memory | bool | None = None,
    checkpoints: str | Path | None = None,
    resume: bool = False,
    progress: Progress | bool | None = None,
    **settings: Any,
) -> Fitted:
    """Learn the parameters of the interventions so that the intervened model says what the labels say.

    The model is frozen and in eval mode meanwhile; its modes, flags and gradients are afterwards as they were, also
    after an exception. The interventions keep the best weights.

    Args:
        intervened: an `IntervenableModel` with a trainable intervention.
        loader: gives batches; gone through once an epoch. Their columns are explained in `learning.batches`.
        loss: `(logits, labels)` -> one number a row, or one for the batch; it falls.
        positions: which logits the loss reads: `"last"`, each example's last real token; `"labels"`, the columns
            whose label is not -100; `"all"`, the logits as the model gives them.
        metric: likewise; followed on the training batches, and on `validation` it says which weights are best.
        metric_positions: which logits the metric reads; default: those of the loss.
        validation: a loader, never learned from.
        collator: makes a batch of what the loaders give.
        optimizer: an optimiser, or a function of the parameter groups; default: AdamW.
        scheduler: a learning-rate scheduler, or a function of optimiser and number of steps; default: by `schedule`.
        forward: how a batch is run; default: as `memory` says.
        memory: where what the frozen model makes of each example below the interventions is kept, so that no block
            there is run again: `False` for none, `True` for a new one, into which examples are put one by one, so that
            an interrupted fit finds the same; default: a new one if the data is gone through more than once.
            `precompute` fills one faster.
        checkpoints: a folder for checkpoints, one file that is replaced every `checkpoint_every` steps.
        resume: go on from the checkpoint in that folder, if there is one. Loader, model and settings must be the same;
            on a CPU the result is then bit for bit that of a fit that was never interrupted. A loader must draw its
            order from the generators of PyTorch, NumPy or Python, or from its own `generator`.
        progress: called after every optimiser step with its row and the number of steps; `True` for a bar (rich).
        **settings: the fields of `Settings`: `epochs`, `lr`, `schedule`, `warmup`, `accumulate`, `patience`, ...

    Returns:
        The history and the best weights.

    Raises:
        SpecError: nothing learns, a batch lacks a column, or the checkpoint is another fit's.
        UnknownNameError: a setting is misspelt.
        FitError: the loss is not finite, or does not depend on what learns.

    Geiger et al. 2023, arXiv:2303.02536.
    """
    chosen = Settings.of(settings)
    if forward is None:
        forward = _forward(intervened, chosen, memory, loader)
    alignment = Alignment(intervened, loss=loss, positions=positions, collator=collator, forward=forward)
    with ExitStack() as stack:
        stack.enter_context(seeded(chosen.seed))
        stack.enter_context(frozen(intervened.model))
        stack.enter_context(_learning(alignment))
        if chosen.gradient_checkpointing:
            stack.enter_context(recomputed(*_blocks(intervened)))
        report = stack.enter_context(reporter(progress))
        batches = len(loader) if isinstance(loader, Sized) else None
        total = chosen.steps(batches)
        made = make_optimizer(intervened.interventions, chosen, optimizer)
        paced = make_scheduler(made, chosen, total, scheduler)
        store = None if checkpoints is None else Store(Path(checkpoints), resume)
        work = Work(
            alignment=alignment,
            loader=loader,
            validation=validation,
            metric=metric,
            metric_positions=metric_positions or positions,
            settings=chosen,
            optimizer=made,
            scheduler=paced,
            batches=batches,
            total=total,
            order=Order.of(loader),
            store=store,
            report=report,
            state=State(),
        )
        if store is not None:
            store.restore(work)
        run(work)
        return _fitted(work)


def _forward(
    intervened: Intervened, settings: Settings, memory: Memory | bool | None, loader: Iterable[Any]
) -> Forward:
    """Return how batches are run: from the interventions on, if what lies below them is needed again.

    Args:
        intervened: the intervenable model.
        settings: how often the data is gone through, and whether blocks are computed again in the backward pass.
        memory: what the caller says.
        loader: the data.
    """
    if memory is None:
        batches = len(loader) if isinstance(loader, Sized) else None
        again = settings.epochs > 1 and (batches is None or settings.steps(batches) * settings.accumulate > batches)
        memory = again and not settings.gradient_checkpointing
    if memory is False:
        return Direct(intervened)
    return Replaying(intervened, Memory(alone=True) if memory is True else memory)


@contextmanager
def _learning(alignment: Alignment) -> Iterator[None]:
    """Hold the interventions in training mode, and leave no gradients behind."""
    training = [(module, module.training) for module in alignment.interventions.modules()]
    try:
        alignment.train()
        yield
    finally:
        for module, was in training:
            module.training = was
        for parameter in alignment.interventions.parameters():
            parameter.grad = None


def _blocks(intervened: Intervened) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the model's blocks, and the modules that interventions are at."""
    modules = dict(uncompiled(intervened.model).named_modules())
    paths = [block.path for stack in resolve(intervened.model).stacks.values() for block in stack]
    blocks = [modules[path] for path in paths if path in modules]
    return blocks, [find_slot(intervened.model, one.site).module for one in intervened.representations]


def _fitted(work: Work) -> Fitted:
    """Give the interventions the best weights, and return what came of the fit."""
    state = work.state
    work.alignment.interventions.load_state_dict(state.best)
    work.alignment.anneal((state.best_step - 1) / max(work.total - 1, 1))
    history = tuple(MappingProxyType(row) for row in state.history)
    weights = MappingProxyType(dict(state.best))
    return Fitted(history, state.step, state.best_step, state.best_value, state.stopped, weights, work.settings)
