"""`Alignment`: the part of an intervenable model that learns, as an ordinary module whose `forward` gives the loss.

It registers the interventions and nothing else: the user's model is reached only to be run. So a `Trainer`, Accelerate
or an optimiser that gets an `Alignment` sees, moves, saves and changes what learns and never the model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._checked import checked
from .._errors import SpecError
from ..interventions import TrainableIntervention
from .columns import ColumnRule, Readout
from .forward import BatchForward, Collator, Intervened, Reader
from .held import frozen, recomputed
from .losses import Measure, cross_entropy, numbers_of


@final
class Alignment(nn.Module):
    """The interventions of an intervenable model as a module that turns a batch into a loss.

    `forward(**batch)` returns `{"loss": ..., "logits": ...}`, which is what `transformers.Trainer` and Accelerate want.
    With the `Trainer` set `remove_unused_columns=False` (it would drop columns that it finds no argument for). The
    user's model is frozen and in eval mode while it runs, and as it was after. What a `Trainer` calls by name is here:
    `config` is a copy, so what it writes there does not reach the model; `gradient_checkpointing=True` recomputes the
    blocks without interventions.

    Args:
        intervened: an `IntervenableModel`.
        loss: `(logits, labels)` -> one number a row, or one for the batch.
        positions: which logits the loss reads.
        collator: makes a batch of what the data loader gives.
        forward: how a batch is run; default: the whole model, each time.

    Raises:
        SpecError: nothing learns.
    """

    accepts_loss_kwargs = False  # the Trainer then divides the loss by its accumulation steps itself
    _keys_to_ignore_on_save = None  # the Trainer reads it where a checkpoint lacks something

    @checked
    def __init__(
        self,
        intervened: Intervened,
        *,
        loss: Measure = cross_entropy,
        positions: ColumnRule = "last",
        collator: Collator | None = None,
        forward: BatchForward | None = None,
    ) -> None:
        super().__init__()
        self.interventions = nn.ModuleList(dict.fromkeys(intervened.interventions.values()))
        self.loss = loss
        self.positions: ColumnRule = positions
        self.reader = Reader(intervened, collator, forward)  # not a module, so the model is no child of this one
        self.main_input_name: str = getattr(intervened.model, "main_input_name", "input_ids")
        config = getattr(intervened.model, "config", None)
        if config is not None:
            self.config = copy.deepcopy(config)
        self._recomputes = False
        if not self.learning():
            kinds = sorted({type(one).__name__ for one in self.interventions})
            raise SpecError(
                f"nothing learns: {', '.join(kinds)} have no parameters that require a gradient. "
                "Use a trainable intervention, such as LowRankRotatedSpaceIntervention"
            )

    def learning(self) -> list[nn.Parameter]:
        """Return each parameter that learns, once."""
        return [p for p in self.interventions.parameters() if p.requires_grad]

    def trainable(self) -> list[TrainableIntervention]:
        """Return each trainable intervention, once."""
        return [one for one in self.interventions if isinstance(one, TrainableIntervention)]

    def forward(self, labels: Any = None, **batch: Any) -> dict[str, Tensor]:
        """Return the mean loss of a batch, with penalties, and the logits that it read.

        Args:
            labels: the batch's column of this name.
            **batch: its other columns.
        """
        batch = batch if labels is None else {**batch, "labels": labels}
        intervened = self.reader.intervened
        sites = [one.site for one in intervened.representations]
        again = recomputed(intervened.model, sites) if self._recomputes and torch.is_grad_enabled() else nullcontext()
        with frozen(intervened.model), again:
            (read,) = self.reader.read(self.reader.collate(batch), self.positions)
        return {"loss": self.losses(read).mean() + self.penalty(), "logits": read.logits}

    def losses(self, read: Readout) -> Float[Tensor, " count"]:
        """Return the loss of each example, without penalties.

        Raises:
            SpecError: the batch has no labels.
        """
        if read.labels is None:
            raise SpecError(
                "the batch has no column 'labels', which the loss compares with (a Trainer with label_smoothing_factor "
                "takes it away: smooth the labels in for_training(loss=...))"
            )
        return numbers_of(self.loss, read, "loss")

    def penalty(self) -> Float[Tensor, ""]:
        """Return the sum of the interventions' penalties: their pressure to be sparse."""
        device = self.learning()[0].device
        return torch.stack([one.penalty().to(device) for one in self.trainable()] or [torch.zeros(())]).sum()

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Compute the blocks without interventions again in the backward pass, to save memory.

        Args:
            activation_checkpointing_kwargs: of `torch.utils.checkpoint.checkpoint`; `use_reentrant=False` is done.
            every_n_layers: 1; every such block is one part.
            offload: False; nothing is moved.

        Raises:
            SpecError: anything else is asked for, or every block is edited.
        """
        asked = {**(activation_checkpointing_kwargs or {}), "every_n_layers": every_n_layers, "offload": offload}
        known = {"use_reentrant": False, "every_n_layers": 1, "offload": False}
        other = {name: value for name, value in asked.items() if name not in known or known[name] != value}
        if other:
            raise SpecError(f"gradient checkpointing is done with {known}; found {other}")
        with recomputed(self.reader.intervened.model, [one.site for one in self.reader.intervened.representations]):
            self._recomputes = True

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """Do as `activation_checkpointing_enable`, which is the newer name."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def activation_checkpointing_disable(self) -> None:
        """Keep what the blocks compute for the backward pass."""
        self._recomputes = False

    gradient_checkpointing_disable = activation_checkpointing_disable

    def get_input_embeddings(self) -> nn.Module:
        """Refuse what a `Trainer` wants the embeddings for: `neftune_noise_alpha`, noise for a model that learns.

        Raises:
            SpecError: always.
        """
        raise SpecError(
            "the model is frozen, so noise on its embeddings does not train it: leave neftune_noise_alpha out"
        )

    def anneal(self, done: float) -> float | None:
        """Set every temperature to where its schedule is when the share `done` of the fit is done, from 0 to 1.

        `fit` does it; with another training loop call it before every step.

        Returns:
            The first temperature that was set; `None` where no intervention has a schedule.
        """
        temperatures = []
        for one in self.trainable():
            if one.temperature_schedule is not None:
                start, end = one.temperature_schedule
                temperatures.append(start + (end - start) * done)
                one.set_temperature(temperatures[-1])
        return temperatures[0] if temperatures else None
