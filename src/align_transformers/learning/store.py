"""Where a fit keeps its checkpoints, and how it takes one up again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from .._errors import SpecError
from .checkpoint import FILE, Snapshot, optimizer_state, set_optimizer_state

if TYPE_CHECKING:
    from .loop import Work


@final
class Store:
    """A folder with the last checkpoint of one fit.

    Args:
        folder: made where it is missing.
        resume: go on from the checkpoint that is there.
    """

    def __init__(self, folder: Path, resume: bool) -> None:
        self._folder = folder
        self._resume = resume

    def save(self, work: Work) -> None:
        """Write the checkpoint; the one before is replaced."""
        state = asdict(work.state)
        now, start = work.order.now(), work.order.start or work.order.now()
        optimizer, groups = optimizer_state(work.optimizer)
        tensors = {
            "weights": work.alignment.interventions.state_dict(),
            "best": state.pop("best"),
            "optimizer": optimizer,
            "now": now[0],
            "start": start[0],
        }
        data = {
            "fit": _identity(work),
            "state": state,
            "optimizer": groups,
            "scheduler": work.scheduler.state_dict(),
            "now": now[1],
            "start": start[1],
        }
        Snapshot(tensors, data).write(self._folder)

    def restore(self, work: Work) -> None:
        """Put a fit where its checkpoint says; without one it starts from the beginning.

        Raises:
            SpecError: there is a checkpoint and the fit is not to be resumed, or it is another fit's.
        """
        found = Snapshot.read(self._folder)
        if found is None:
            return
        if not self._resume:
            raise SpecError(
                f"{self._folder / FILE} is the checkpoint of a fit: pass resume=True to go on with it, "
                "or another folder"
            )
        _refuse_another(found.data["fit"], _identity(work), self._folder)
        work.alignment.interventions.load_state_dict(found.tensors.get("weights", {}))
        set_optimizer_state(work.optimizer, found.tensors.get("optimizer", {}), found.data["optimizer"])
        work.scheduler.load_state_dict(found.data["scheduler"])
        for name, value in found.data["state"].items():
            setattr(work.state, name, value)
        work.state.best = found.tensors.get("best", {})
        work.order.start = found.tensors["start"], found.data["start"]
        work.order.resumed = found.tensors["now"], found.data["now"]


def _identity(work: Work) -> dict[str, Any]:
    """Return what must be the same in the fit that wrote a checkpoint and in the one that takes it up."""
    return {
        "settings": work.settings.to_dict(),
        "steps": work.total,
        "batches": work.batches,
        "optimizer": type(work.optimizer).__name__,
        "scheduler": type(work.scheduler).__name__,
        "weights": {name: list(value.shape) for name, value in work.alignment.interventions.state_dict().items()},
    }


def _refuse_another(saved: dict[str, Any], asked: dict[str, Any], folder: Path) -> None:
    before, now = {**saved.pop("settings"), **saved}, {**asked.pop("settings"), **asked}
    different = [name for name in now if before.get(name) != now[name]]
    if different:
        shown = "; ".join(f"{name}: {before.get(name)!r} there, {now[name]!r} here" for name in different)
        raise SpecError(f"the checkpoint in {folder} is another fit's ({shown}); use its settings, or another folder")
