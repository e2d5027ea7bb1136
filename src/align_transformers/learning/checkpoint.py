"""Checkpoints of a fit: one file, written in one step, from which an interrupted fit goes on to the same result.

Tensors are safetensors, everything else is JSON in the file's metadata. Nothing is pickled, so reading runs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.optim import Optimizer

from .._errors import SpecError
from .._files import write_atomically

FILE = "fit.safetensors"
_FORMAT = 1
_KEY = "align_transformers.fit"


@dataclass
class Snapshot:
    """What a checkpoint holds.

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
    def read(cls, folder: Path) -> Snapshot | None:
        """Read the checkpoint in `folder`, or return `None` where there is none.

        Raises:
            SpecError: the file is not a checkpoint of a fit.
        """
        path = folder / FILE
        if not path.exists():
            return None
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            if _KEY not in metadata:
                raise SpecError(f"{path} is not a checkpoint of a fit; choose another folder")
            data = json.loads(metadata[_KEY])
            if data.pop("format") != _FORMAT:
                raise SpecError(f"{path} was written by another version of the library; choose another folder")
            tensors: dict[str, dict[str, Tensor]] = {}
            for key in stream.keys():  # noqa: SIM118 (a file, not a dict)
                part, _, name = key.partition("/")
                tensors.setdefault(part, {})[name] = stream.get_tensor(key)
        return cls(tensors, data)


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


def same_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
