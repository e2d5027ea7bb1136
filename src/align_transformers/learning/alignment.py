"""`Alignment`: the part of an intervenable model that learns, as an ordinary module whose `forward` gives the loss.

It registers the interventions and nothing else: the user's model is reached only to be run. So a `Trainer`, Accelerate
or an optimiser that gets an `Alignment` sees, moves, saves and changes what learns and never the model.
"""

from __future__ import annotations

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._checked import checked
from .._errors import SpecError
from ..interventions import TrainableIntervention
from .columns import ColumnRule, Readout
from .forward import BatchForward, Collator, Intervened, Reader
from .held import frozen
from .losses import Measure, cross_entropy, numbers_of


@final
class Alignment(nn.Module):
    """The interventions of an intervenable model as a module that turns a batch into a loss.

    `forward(**batch)` returns `{"loss": ..., "logits": ...}`, which is what `transformers.Trainer` and Accelerate want.
    With the `Trainer` set `remove_unused_columns=False` (it would drop columns that it finds no argument for) and, to
    evaluate, `label_names=["labels"]`. The user's model is frozen and in eval mode while it runs, and as it was after.

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

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """Return the mean loss of a batch, with penalties, and the logits that it read."""
        with frozen(self.reader.intervened.model):
            (read,) = self.reader.read(self.reader.collate(batch), self.positions)
        return {"loss": self.losses(read).mean() + self.penalty(), "logits": read.logits}

    def losses(self, read: Readout) -> Float[Tensor, " count"]:
        """Return the loss of each example, without penalties.

        Raises:
            SpecError: the batch has no labels.
        """
        if read.labels is None:
            raise SpecError("the batch has no column 'labels', which the loss compares with")
        return numbers_of(self.loss, read, "loss")

    def penalty(self) -> Float[Tensor, ""]:
        """Return the sum of the interventions' penalties: their pressure to be sparse."""
        device = self.learning()[0].device
        return torch.stack([one.penalty().to(device) for one in self.trainable()] or [torch.zeros(())]).sum()

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
