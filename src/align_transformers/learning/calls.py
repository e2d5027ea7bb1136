"""`train` and `evaluate` as the friendly face spells them: user functions of logits and labels, and older names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from .._errors import SpecError
from .evaluate import evaluate
from .fit import Fitted, fit
from .losses import cross_entropy, iia
from .reader import Collator, Intervened
from .reading import Measure
from .scores import Scores

ComputeLoss = Callable[[Tensor, Any], Tensor]
"""`(logits, labels)` -> the loss: a mean over the batch, or one number an example."""

ComputeMetrics = Callable[[list[Tensor], list[Any]], Any]
"""`([logits], [labels])` -> a dict of numbers: both are lists of batches, here of one."""

_NAMES: Mapping[str, str] = {
    "gradient_accumulation_steps": "accumulate",
    "warm_up_steps": "warmup",
    "eval_dataloader": "validation",
    "lr_scheduler": "scheduler",
    "max_grad_norm": "clip",
}
"""Other names of arguments of `fit`."""


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


def evaluate_call(
    intervened: Intervened,
    loader: Iterable[Any] | None,
    compute_metrics: ComputeMetrics | None,
    collator: Collator | None,
    options: Mapping[str, Any],
) -> Scores:
    """Carry out `intervenable.evaluate(eval_dataloader=..., ...)`; the arguments are those of `fit_call`."""
    if loader is None:
        raise SpecError("evaluate needs data: eval_dataloader=...")
    given = {"positions": "last" if compute_metrics is None else "all", **options}
    return evaluate(intervened, loader, metrics=measure_of(compute_metrics), collator=collator, **given)


def measure_of(compute_metrics: ComputeMetrics | None) -> Measure:
    """Return a metric that calls a user's function with lists of one batch; without one, IIA."""
    if compute_metrics is None:
        return iia
    wanted = compute_metrics
    return lambda logits, labels: wanted([logits], [labels])
