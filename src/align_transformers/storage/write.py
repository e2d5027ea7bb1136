"""Saving: a folder with what an intervention is, its weights, and a page that tells about it."""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialize
from torch import Tensor, nn

from .._errors import AlignError, ArtifactError, SpecError
from .._files import clear_leftovers, new_folder, put_folder
from .._version import library_version
from ..config import IntervenableConfig
from ..hub import PREFIX, upload
from ..interventions import FunctionIntervention, Intervention
from .card import write_card
from .files import CARD, FORMAT, FORMAT_VERSION, OWN_FILES, RECORD, WEIGHTS, expanded
from .identity import identify_model, identify_tokenizer
from .limits import clipped
from .plain import config_to_dict, parse_json, plain_arguments, plain_metrics
from .saved_intervention import difference, is_finite, memory_order, restored
from .types import OWN, written_name


@dataclass(frozen=True, eq=False)
class Contents:
    """What is to be kept.

    Args:
        config: where the interventions act.
        interventions: one for each representation, in its order; those that share one share a module.
        model: the model they act on. It is only looked at, and is not kept.
        metrics: scores by name; numbers that are not finite become `None`.
        tokenizer: what the inputs were made with, if that matters: of transformers, or anything with `get_vocab()`.
    """

    config: IntervenableConfig
    interventions: Sequence[Intervention]
    model: nn.Module
    metrics: Mapping[str, Any] | None = None
    tokenizer: Any = None


def save(contents: Contents, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a folder from which the interventions can be loaded again, bit for bit.

    It holds `intervention.json` (the configuration, each intervention's class and constructor arguments, which model
    and tokenizer it is for, the scores), `weights.safetensors`, and a model card, `README.md`. What would be loaded is
    made once and compared; then all is written beside its place and moved there when it is complete. What killed
    processes left there is cleared away.

    Args:
        contents: what is to be kept.
        folder: a new or empty folder; missing folders above it are made.
        overwrite: replace a folder that was saved before. Nothing else is ever replaced.

    Returns:
        The folder.

    Raises:
        SpecError: an intervention is a function, or does not come back as it is from what its constructor is told and
            its tensors; a weight is not finite; a score is no number. Nothing is written then.
        ArtifactError: the folder holds something already. The very same is no other: it is left as it is.
        OSError: it cannot be written; nothing is left behind.

    >>> from align_transformers import IntervenableConfig, VanillaIntervention
    >>> swap, mlp = VanillaIntervention(), nn.Sequential(nn.Linear(2, 3))
    >>> config = IntervenableConfig(representations={"component": "0.output", "intervention": swap})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sorted(path.name for path in save(Contents(config, [swap], mlp), folder).iterdir())
    ['README.md', 'intervention.json', 'weights.safetensors']
    """
    target = expanded(folder)
    return _save(contents, target, overwrite, target.resolve().name)


def push(
    contents: Contents,
    name: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    message: str | None = None,
) -> str:
    """Put the files that `save` writes into a repository of the model hub, in one commit.

    Args:
        contents: what is to be kept.
        name: `user/name`; made where there is no such repository.
        private: whether a new repository is; the account's default without it.
        revision: the branch to write to, which must exist; the default branch without one.
        token: an access token; without one that of `hf auth login`.
        message: the commit's.

    Returns:
        The commit's hash: `load(name, revision=...)` gives exactly this one back.

    Raises:
        SpecError: as for `save`.
        ArtifactError: `name` is no hub name, or the hub refuses or cannot be reached.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = _save(contents, Path(scratch) / "new", False, name.removeprefix(PREFIX))
        message = message or "Save an intervention with align-transformers"
        return upload(folder, name, files=OWN_FILES, private=private, revision=revision, token=token, message=message)


def _save(contents: Contents, target: Path, overwrite: bool, name: str) -> Path:
    """Save; `name` is what the card tells the reader to load: of a folder its last part, not its path."""
    place = target.resolve()
    clear_leftovers(place.parent, place.name)
    record, tensors = record_of(contents)
    files = {
        RECORD: (json.dumps(record, indent=2, allow_nan=False) + "\n").encode(),
        WEIGHTS: serialize(tensors, metadata={"format": "pt"}),
        CARD: write_card(record, name=name).encode(),
    }
    if _is_free(target, overwrite, files):
        with new_folder(place) as new:
            for file, data in files.items():
                (new / file).write_bytes(data)
            put_folder(new, place)
    return target


def record_of(contents: Contents) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `save` writes: the record, and the tensors by name.

    Both are read as `load` would read them, and what comes back is compared.

    Raises:
        SpecError: as for `save`.
    """
    wanted, given = len(contents.config.representations), len(contents.interventions)
    if wanted != given:
        raise SpecError(f"there are {wanted} representations and {given} interventions: one for each is needed")
    modules = list(dict.fromkeys(contents.interventions))
    numbers = {module: number for number, module in enumerate(modules)}
    names = [_name(contents.interventions.index(module), module) for module in modules]
    tensors: dict[str, Tensor] = {}
    for number, (module, where) in enumerate(zip(modules, names, strict=True)):
        tensors |= {f"{number}.{name}": value for name, value in _tensors(module, where).items()}
    record = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "library_version": library_version(),
        "model": identify_model(contents.model, weights=True),
        "tokenizer": None if contents.tokenizer is None else identify_tokenizer(contents.tokenizer),
        "config": config_to_dict(contents.config, [numbers[one] for one in contents.interventions]),
        "interventions": [_record_of_one(module, where) for module, where in zip(modules, names, strict=True)],
        "metrics": plain_metrics(contents.metrics or {}),
    }
    _rehearse(record, tensors, modules, names)
    return record, tensors


def _name(number: int, module: Intervention) -> str:
    return f"the intervention of representation {number} ({type(module).__name__})"


def _rehearse(
    record: Mapping[str, Any], tensors: Mapping[str, Tensor], modules: Sequence[Intervention], names: Sequence[str]
) -> None:
    """Read a record as `load` does, and refuse what would not come back, or not as it is.

    Raises:
        SpecError: it is so.
    """
    classes = list(dict.fromkeys(type(module) for module in modules))
    own = [kind for kind in classes if OWN.get(kind.__name__) is not kind]
    try:
        plain = parse_json(json.dumps(record, allow_nan=False).encode(), RECORD)
        config = restored(plain["config"], plain["interventions"], tensors, own)
    except AlignError as error:
        raise SpecError(f"this cannot be saved, because it could not be loaded again: {clipped(str(error))}") from error
    for one, written in zip(config.representations, plain["config"]["representations"], strict=True):
        number = written["intervention"]
        lost = difference(modules[number], one.intervention)
        if lost is not None:
            raise SpecError(f"{names[number]} cannot be saved: {lost}")


def _record_of_one(module: Intervention, where: str) -> dict[str, Any]:
    kind = type(module)
    if isinstance(module, FunctionIntervention):
        raise SpecError(
            f"{where} cannot be saved: a function is code, and no code is stored or run when an artifact is loaded. "
            "Write a subclass of Intervention, and hand it to load as classes=[...]"
        )
    try:
        arguments = _lean(kind, plain_arguments(module.arguments(), kind.__name__))
        inspect.signature(kind).bind(**arguments)
    except (SpecError, TypeError) as error:
        raise SpecError(f"{where} cannot be saved: {error}") from error
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    orders = {name: memory_order(value) for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    return {
        "class": written_name(kind),
        "arguments": arguments,
        "training": module.training,
        "frozen": frozen,
        "orders": {name: order for name, order in orders.items() if order != sorted(order)},
    }


def _lean(kind: type[Intervention], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments without the defaults that reach `Intervention` only through the `**kwargs` of a user's class.

    Many fix such an argument themselves, beside the `**kwargs`, and cannot be given it twice.
    """
    usual = inspect.signature(Intervention.__init__).parameters
    through = usual.keys() - inspect.signature(kind).parameters.keys()
    own = OWN.get(kind.__name__) is kind
    return {
        name: value for name, value in arguments.items() if own or name not in through or value != usual[name].default
    }


def _tensors(module: Intervention, where: str) -> dict[str, Tensor]:
    """Return the state as tensors of their own: the file's format has no shared memory and no other values."""
    state = module.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise SpecError(f"{where} cannot be saved: its state {name!r} is a {type(value).__name__}, not a tensor")
        if not is_finite(value):
            raise SpecError(f"{where} cannot be saved: its {name!r} holds NaN or infinite numbers")
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}


def _is_free(target: Path, overwrite: bool, files: Mapping[str, bytes]) -> bool:
    """Whether a place is to be written to: False if it holds the very same already.

    Raises:
        ArtifactError: it holds something else than an artifact that may be replaced.
    """
    if not target.exists():
        return True
    if not target.is_dir():
        raise ArtifactError(f"cannot save to {target}: that is a file, and a folder is wanted")
    held = sorted(os.listdir(target))
    if not held:
        return True
    strange = [name for name in held if name not in OWN_FILES]
    if strange or RECORD not in held:
        raise ArtifactError(f"cannot save to {target}: it holds other files ({', '.join((strange or held)[:5])})")
    if all((target / name).is_file() and (target / name).read_bytes() == data for name, data in files.items()):
        return False
    if not overwrite:
        raise ArtifactError(f"cannot save to {target}: an intervention is saved there; overwrite=True replaces it")
    return True
