"""`fit`: learn the parameters of interventions by gradient descent, the model frozen; and how others spell it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .._bar import bar
from .._checked import checked
from .._optional import optional
from .._summarised import Summarised, Summary
from .alignment import Alignment
from .checkpoints import BatchOrder, CheckpointFolder
from .columns import ColumnRule
from .forward import BatchForward, Collator, Intervened, MemoryRule, forward_of
from .held import frozen, learning, recomputed, seeded
from .loop import Fit, HistoryRow, Progress, run
from .losses import ComputeMetrics, Measure, cross_entropy, iia, measure_of
from .restoring import restore
from .settings import OptimizerFactory, SchedulerFactory, Settings, make_optimizer, make_scheduler

if TYPE_CHECKING:
    import pandas

ComputeLoss = Callable[[Tensor, Any], Tensor]
"""`(logits, labels)` -> the loss: a mean over the batch, or one number an example."""

_NAMES: Mapping[str, str] = {
    "gradient_accumulation_steps": "accumulate",
    "warm_up_steps": "warmup",
    "eval_dataloader": "validation",
    "lr_scheduler": "scheduler",
    "max_grad_norm": "clip",
}
"""Other names of arguments of `fit`."""


@dataclass(frozen=True, eq=False, repr=False)
class Fitted(Summarised):
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

    history: tuple[HistoryRow, ...]
    steps: int
    best_step: int
    validation: float | None
    stopped_early: bool
    weights: Mapping[str, Tensor]
    settings: Settings

    def _summary(self) -> Summary:
        count = sum(weight.numel() for weight in self.weights.values())
        facts = [("weights", f"{count}, those of step {self.best_step}")]
        for name in ("loss", "metric"):
            ends = [row[name] for row in self.history if row[name] is not None]
            facts += [(name, f"{ends[0]:.3g} at first, {ends[-1]:.3g} at last")] * bool(ends)
        facts += [("validation", f"{self.validation:.3g}")] if self.validation is not None else []
        return f"Fitted in {self.steps} steps{', stopped early' * self.stopped_early}", facts

    def to_frame(self) -> pandas.DataFrame:
        """Return the history as a `pandas.DataFrame`, one row a step.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        frame: pandas.DataFrame = optional("pandas", extra="tables").DataFrame([dict(row) for row in self.history])
        return frame


@checked
def fit(
    intervened: Intervened,
    loader: Iterable[Any],
    *,
    loss: Measure = cross_entropy,
    positions: ColumnRule = "last",
    metric: Measure = iia,
    metric_positions: ColumnRule | None = None,
    validation: Iterable[Any] | None = None,
    collator: Collator | None = None,
    optimizer: Optimizer | OptimizerFactory | None = None,
    scheduler: LRScheduler | SchedulerFactory | None = None,
    forward: BatchForward | None = None,
    memory: MemoryRule = None,
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
            an interrupted fit finds the same; `"auto"` looks at the data, and has one if examples repeat; default: a
            new one if the data is gone through more than once. `precompute` fills one faster.
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
        FitError: the loss is not finite, does not depend on what learns, or has had no gradient there in the first
            steps; the message says the likely cause.

    Warns:
        UserWarning: the loss has had no gradient in some of several interventions.

    Geiger et al. 2023, arXiv:2303.02536.
    """
    chosen = Settings.of(settings)
    if forward is None:
        forward = forward_of(intervened, chosen, memory, loader, collator)
    alignment = Alignment(intervened, loss=loss, positions=positions, collator=collator, forward=forward)
    with ExitStack() as stack:
        stack.enter_context(seeded(chosen.seed))
        stack.enter_context(frozen(intervened.model))
        stack.enter_context(learning(alignment.interventions))
        if chosen.gradient_checkpointing:
            stack.enter_context(recomputed(intervened.model, [one.site for one in intervened.representations]))
        report = stack.enter_context(_reporter(progress))
        batches = len(loader) if isinstance(loader, Sized) else None
        total = chosen.steps(batches)
        made = make_optimizer(intervened.interventions, chosen, optimizer)
        paced = make_scheduler(made, chosen, total, scheduler)
        work = Fit(
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
            order=BatchOrder.of(loader),
            folder=None if checkpoints is None else CheckpointFolder(Path(checkpoints), resume),
            report=report,
        )
        restore(work)
        run(work)
        return _fitted(work)


def _fitted(work: Fit) -> Fitted:
    """Give the interventions the best weights, and return what came of the fit."""
    state = work.state
    work.alignment.interventions.load_state_dict(state.best)
    work.anneal(state.best_step - 1)
    history = tuple(MappingProxyType(row) for row in state.history)
    weights = MappingProxyType(dict(state.best))
    return Fitted(history, state.step, state.best_step, state.best_value, state.stopped, weights, work.settings)


def fit_call(
    intervened: Intervened,
    loader: Iterable[Any],
    compute_loss: ComputeLoss | None,
    compute_metrics: ComputeMetrics | None,
    collator: Collator | None,
    options: Mapping[str, Any],
) -> Fitted:
    """Carry out `intervenable.train(train_dataloader=..., ...)`.

    Args:
        intervened: the intervenable model.
        loader: gives batches.
        compute_loss: gets the logits as the model gives them; default: cross-entropy at the last real token.
        compute_metrics: likewise; default: IIA at the last real token.
        collator: makes a batch of what the loader gives.
        options: further arguments of `fit`.
    """
    given = {_NAMES.get(name, name): value for name, value in options.items()}
    given.setdefault("positions", "last" if compute_loss is None else "all")
    given.setdefault("metric_positions", "last" if compute_metrics is None else "all")
    return fit(
        intervened,
        loader,
        loss=compute_loss or cross_entropy,
        metric=measure_of(compute_metrics),
        collator=collator,
        **given,
    )


@contextmanager
def _reporter(progress: Progress | bool | None) -> Iterator[Progress]:
    """Hold what is called after every step: a function as it is, a bar for `True`, or nothing."""
    if callable(progress):
        yield progress
    elif progress:
        with progress_bar() as shown:
            yield shown
    else:
        yield lambda _row, _total: None


@checked
@contextmanager
def progress_bar(console: Any = None) -> Iterator[Progress]:
    """Hold a bar in the terminal with loss, metric, validation and throughput.

    Args:
        console: a `rich.console.Console`; default: the terminal.

    Raises:
        MissingExtraError: rich is not installed.
    """
    with bar("fit", console) as advance:
        yield lambda row, total: advance(row["step"], total, row_text(row))


def row_text(row: HistoryRow) -> str:
    """Return the numbers of one step as a line.

    >>> row_text({"loss": 0.25, "metric": 0.5, "validation": None, "examples_per_second": 1234.5})
    'loss 0.2500  metric 0.500  1234 examples/s'
    """
    parts = [f"loss {row['loss']:.4f}", f"metric {row['metric']:.3f}"]
    if row["validation"] is not None:
        parts.append(f"validation {row['validation']:.3f}")
    return "  ".join([*parts, f"{row['examples_per_second']:.0f} examples/s"])
