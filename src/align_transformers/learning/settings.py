"""`Settings`: how long, how fast and how carefully a fit learns. Plain data: a checkpoint is compared with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from .._checked import checked_class
from .._errors import AlignError, SpecError, UnknownNameError, near_misses
from ..interventions import Intervention, TrainableIntervention

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
"""Makes an optimiser from parameter groups, each a dict with `params` and `lr`."""

SchedulerFactory = Callable[[Optimizer, int], LRScheduler]
"""Makes a learning-rate scheduler from an optimiser and the number of steps."""


class FitError(AlignError, RuntimeError):
    """A fit cannot go on: its loss is not finite, or gives what learns no gradient."""


@checked_class
@dataclass(frozen=True)
class Settings:
    """How a fit learns.

    Args:
        epochs: how often the loader is gone through.
        max_steps: stop after so many optimiser steps; needed where the loader has no length.
        lr: the learning rate; or several, by a piece of the key in `intervenable.interventions`, the longest one that
            fits: `{"layer.3": 1e-2, "": 1e-3}`. An intervention may have parts that learn faster (`parameter_groups`).
        weight_decay: of AdamW.
        schedule: a name known to `transformers.get_scheduler`: `constant`, `linear`, `cosine`, ...
        warmup: optimiser steps in which the learning rate rises from 0; below 1 the share of all steps.
        accumulate: batches an optimiser step; every example weighs the same, also in a last, smaller step.
        clip: the largest norm of the gradient.
        validate_every: optimiser steps between validations; default: after every epoch.
        patience: stop after so many validations without an improvement.
        larger_is_better: whether the validation metric should grow.
        seed: of everything that is drawn while fitting; the generators are set back afterwards.
        autocast: `bfloat16` for mixed precision.
        gradient_checkpointing: compute the blocks without interventions again in the backward pass, to save memory.
        checkpoint_every: optimiser steps between checkpoints, where a folder is given.

    Raises:
        SpecError: a number makes no sense.
        UnknownNameError: a name is misspelt.
    """

    epochs: int = 10
    max_steps: int | None = None
    lr: float | int | Mapping[str, float | int] = 1e-3
    weight_decay: float | int = 0.0
    schedule: str = "linear"
    warmup: float | int = 0.1
    accumulate: int = 1
    clip: float | int | None = None
    validate_every: int | None = None
    patience: int | None = None
    larger_is_better: bool = True
    seed: int = 0
    autocast: str | None = None
    gradient_checkpointing: bool = False
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "checkpoint_every", "max_steps", "validate_every", "patience"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise SpecError(f"{name} is a number from 1; found {value!r}")
        if self.warmup < 0:
            raise SpecError(f"warmup is a number of steps, or below 1 a share of them; found {self.warmup}")
        if self.clip is not None and self.clip <= 0:
            raise SpecError(f"clip is a norm above 0; found {self.clip}")
        if self.autocast not in (None, "bfloat16"):
            raise SpecError(
                f"autocast is None or 'bfloat16'; found {self.autocast!r}. float16 needs its loss scaled: "
                "use Accelerate or the Trainer with for_training() for it"
            )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        """Make settings of keyword arguments.

        >>> Settings.of({"lr": 0.01}).lr
        0.01
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise UnknownNameError(f"a fit has no setting {name!r}; {near_misses(name, known)}")
        return cls(**options)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-able data."""
        return asdict(self) if not isinstance(self.lr, Mapping) else {**asdict(self), "lr": dict(self.lr)}

    def steps(self, batches: int | None) -> int:
        """Return the number of optimiser steps.

        Args:
            batches: batches an epoch; `None` where it is not known.

        Raises:
            SpecError: nothing tells.

        >>> Settings(epochs=2, accumulate=4).steps(batches=10)
        6
        """
        if batches == 0:
            raise SpecError("the loader is empty")
        if batches is None:
            if self.max_steps is None:
                raise SpecError("the loader has no length, so give max_steps")
            return self.max_steps
        total = self.epochs * math.ceil(batches / self.accumulate)
        return total if self.max_steps is None else min(total, self.max_steps)


def make_optimizer(
    interventions: Mapping[str, Intervention], settings: Settings, given: Optimizer | OptimizerFactory | None
) -> Optimizer:
    """Return the optimiser of the parameters that learn; each intervention has its groups and learning rates.

    Args:
        interventions: by key.
        settings: the learning rates.
        given: an optimiser as it is, a function that makes one, or `None` for AdamW.

    Raises:
        SpecError: an intervention has no learning rate, a learning rate no intervention, or the optimiser has none of
            the parameters that learn.
    """
    if isinstance(given, Optimizer):
        return _checked(given, interventions)
    rates = settings.lr if isinstance(settings.lr, Mapping) else {"": settings.lr}
    groups: list[dict[str, Any]] = []
    seen: set[nn.Parameter] = set()
    used = set()
    for key, intervention in interventions.items():
        if not any(p.requires_grad for p in intervention.parameters()):
            continue
        pieces = [piece for piece in rates if piece in key]
        if not pieces:
            raise SpecError(f"lr has no entry for {key!r}; give one for all others under the empty name ''")
        used.add(max(pieces, key=len))
        for group in _groups(intervention, rates[max(pieces, key=len)]):
            fresh = [p for p in group["params"] if p not in seen]
            seen.update(fresh)
            groups += [{**group, "params": fresh}] if fresh else []
    idle = [piece for piece in rates if piece and piece not in used]
    if idle:
        raise SpecError(f"lr names {idle}, which is in the key of no intervention that learns: {list(interventions)}")
    return (
        AdamW(groups, weight_decay=settings.weight_decay) if given is None else _checked(given(groups), interventions)
    )


def _checked(optimizer: Optimizer, interventions: Mapping[str, Intervention]) -> Optimizer:
    """Return an optimiser that somebody made; refuse one that would move nothing that learns."""
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if held.isdisjoint(p for one in interventions.values() for p in one.parameters() if p.requires_grad):
        raise SpecError(
            f"the optimiser has {len(held)} parameters, and none of those that learn: make it of "
            "intervenable.get_trainable_parameters()"
        )
    return optimizer


def _groups(intervention: Intervention, rate: float) -> list[dict[str, Any]]:
    if isinstance(intervention, TrainableIntervention):
        return intervention.parameter_groups(rate)
    return [{"params": [p for p in intervention.parameters() if p.requires_grad], "lr": rate}]


def make_scheduler(
    optimizer: Optimizer, settings: Settings, steps: int, given: LRScheduler | SchedulerFactory | None
) -> LRScheduler:
    """Return the learning-rate scheduler.

    Args:
        optimizer: whose learning rates it sets.
        settings: name and warm-up.
        steps: number of optimiser steps.
        given: a scheduler as it is, a function that makes one, or `None` for what `settings` say.

    Raises:
        UnknownNameError: the schedule has no such name.
    """
    if isinstance(given, LRScheduler):
        return given
    if given is not None:
        return given(optimizer, steps)
    warmup = math.ceil(settings.warmup * steps) if settings.warmup < 1 else int(settings.warmup)
    name = "constant_with_warmup" if settings.schedule == "constant" and warmup else settings.schedule
    try:
        scheduler: LRScheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    except ValueError as error:
        raise UnknownNameError(f"no schedule {name!r}: {error}") from error
    return scheduler


def autocast(settings: Settings, device: torch.device) -> torch.autocast:
    """Return the context of mixed precision, switched off where the settings ask for none."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.autocast is not None)
