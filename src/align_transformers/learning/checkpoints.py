"""Checkpoints of a fit: one file, written in one step, from which an interrupted fit goes on to the same result.

Tensors are safetensors, everything else is JSON in the file's metadata. Nothing is pickled, so reading runs nothing.
What a fit puts into its checkpoint is said in `loop`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from .._errors import AlignError, ArtifactError, SpecError
from .._files import clear_leftovers, write_atomically
from .held import RandomStates, random_states, set_random_states

FILE = "fit.safetensors"
_FORMAT = 1
_KEY = "align_transformers.fit"


@dataclass
class Checkpoint:
    """Where a fit stood.

    Args:
        tensors: by the part that they belong to (`weights`, `best`, `optimizer`, ...) and name.
        data: JSON-able.
    """

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write the checkpoint of a fit into `folder`; an older one is replaced.

        Raises:
            SpecError: `data` is not JSON-able.
            OSError: the folder cannot be written to; the older checkpoint is still there.
        """
        flat = {
            f"{part}/{name}": tensor.detach().cpu().contiguous().clone()
            for part, tensors in self.tensors.items()
            for name, tensor in tensors.items()
        }
        try:
            text = json.dumps({"format": _FORMAT, **self.data})
        except TypeError as error:
            raise SpecError(
                f"the state of the optimiser or scheduler cannot be kept without pickle ({error}); "
                "use another one, or fit without a checkpoint folder"
            ) from error
        return write_atomically(folder / FILE, save(flat, metadata={_KEY: text}))

    @classmethod
    def read(cls, folder: Path) -> Checkpoint | None:
        """Read the checkpoint in `folder`, or return `None` where there is none.

        Raises:
            SpecError: the file is not a checkpoint of a fit, or another version's.
            ArtifactError: it is damaged.
        """
        path = folder / FILE
        if not path.exists():
            return None
        tensors: dict[str, dict[str, Tensor]] = {}
        with damaged(path), safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            if _KEY not in metadata:
                raise SpecError(f"{path} is not a checkpoint of a fit; choose another folder")
            data = json.loads(metadata[_KEY])
            if data.pop("format") != _FORMAT:
                raise SpecError(f"{path} was written by another version of the library; choose another folder")
            for key in stream.keys():  # noqa: SIM118 (a file, not a dict)
                part, _, name = key.partition("/")
                tensors.setdefault(part, {})[name] = stream.get_tensor(key)
        return cls(tensors, data)


_SIGNS_OF_DAMAGE = (
    SafetensorError, OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError
)  # fmt: skip
"""What reading a file raises that does not hold what it should: none of it is an error of the user's."""


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Say of whatever goes wrong while a checkpoint is read that the file is damaged.

    Raises:
        ArtifactError: something went wrong.
    """
    try:
        yield
    except AlignError:
        raise
    except _SIGNS_OF_DAMAGE as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ArtifactError(
            f"{path} is damaged ({why}): delete it to fit from the beginning, or choose another folder"
        ) from error


@final
class CheckpointFolder:
    """A folder with the last checkpoint of one fit.

    Args:
        folder: made where it is missing.
        resume: go on from the checkpoint that is there.
    """

    def __init__(self, folder: Path, resume: bool) -> None:
        self._folder = folder
        self._resume = resume

    @property
    def path(self) -> Path:
        """The checkpoint's file."""
        return self._folder / FILE

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; the one before is replaced."""
        checkpoint.write(self._folder)

    def load(self, fit: Mapping[str, Any]) -> Checkpoint | None:
        """Return the checkpoint that a fit goes on from, or `None` where it starts from the beginning.

        Args:
            fit: what must be the same in the fit that wrote the checkpoint, as it is in `data["fit"]`.

        Raises:
            SpecError: there is a checkpoint and the fit is not to be resumed, or it is another fit's.
            ArtifactError: it is damaged.
        """
        clear_leftovers(self._folder, FILE)
        found = Checkpoint.read(self._folder)
        if found is None:
            return None
        if not self._resume:
            raise SpecError(
                f"{self._folder / FILE} is the checkpoint of a fit: pass resume=True to go on with it, "
                "or another folder"
            )
        with damaged(self.path):
            before, now = ({**one["settings"], **one} for one in (found.data["fit"], fit))
        different = [name for name in now if name != "settings" and before.get(name) != now[name]]
        if different:
            shown = "; ".join(f"{name}: {before.get(name)!r} there, {now[name]!r} here" for name in different)
            raise SpecError(
                f"the checkpoint in {self._folder} is another fit's ({shown}); use its settings, or another folder"
            )
        return found


@dataclass
class BatchOrder:
    """The order in which a loader gives its batches, so that an interrupted epoch can be taken up in the middle.

    Args:
        generators: the loader's own.
        start: the states of all generators when the epoch began.
        resumed: in a resumed fit, the states to go on with once the batches that were seen are skipped.
    """

    generators: list[torch.Generator]
    start: RandomStates | None = None
    resumed: RandomStates | None = None

    @classmethod
    def of(cls, loader: Iterable[Any]) -> BatchOrder:
        """Return the order of a loader; the generators of a `DataLoader` and of its samplers are known."""
        places: list[Any] = []
        if isinstance(loader, DataLoader):
            batch_sampler = getattr(loader, "batch_sampler", None)
            places = [loader, loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None)]
        found = [getattr(place, "generator", None) for place in places]
        return cls(list(dict.fromkeys(one for one in found if isinstance(one, torch.Generator))))

    def now(self) -> RandomStates:
        """Return the states of all generators."""
        tensors, rest = random_states()
        return {**tensors, **{f"loader:{n}": one.get_state() for n, one in enumerate(self.generators)}}, rest

    def set(self, states: RandomStates) -> None:
        """Set the states of all generators."""
        tensors, rest = states
        set_random_states(tensors, rest)
        for number, generator in enumerate(self.generators):
            generator.set_state(tensors[f"loader:{number}"])

    def batches(self, loader: Iterable[Any], seen: int) -> Iterator[Any]:
        """Yield the batches of an epoch from number `seen` on.

        Args:
            loader: gives an epoch's batches.
            seen: batches of this epoch that were learned from before the fit was interrupted; else 0.
        """
        resumed, self.resumed = self.resumed, None
        if resumed is None or self.start is None:
            self.start = self.now()
        else:
            self.set(self.start)
        batches = iter(loader)
        if resumed is not None:
            for _ in range(seen):
                next(batches)
            self.set(resumed)
        yield from batches


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimiser's state as tensors by `number.name` and JSON-able data."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for number, values in state["state"].items():
        for name, value in values.items():
            (tensors if isinstance(value, Tensor) else rest)[f"{number}.{name}"] = value
    return tensors, {"state": rest, "groups": state["param_groups"]}


def set_optimizer_state(optimizer: Optimizer, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
    """Set what `optimizer_state` returned."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **data["state"]}.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    groups = [{name: _tuple(value) for name, value in group.items()} for group in data["groups"]]
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        saved["params"] = [int(number) for number in saved["params"]]
        if len(saved["params"]) != len(group["params"]):
            raise SpecError("the checkpoint's optimiser has other parameter groups")
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _tuple(value: Any) -> Any:
    """Return JSON's lists as the tuples that optimisers keep (betas)."""
    return tuple(value) if isinstance(value, list) else value


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
