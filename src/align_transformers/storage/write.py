"""Saving: a folder with what an intervention is, its weights, and a page that tells about it."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .._errors import ArtifactError, SpecError
from .._version import library_version
from ..config import IntervenableConfig
from ..hub import PREFIX, upload
from ..interventions import FunctionIntervention, Intervention
from .card import write_card
from .files import CARD, FORMAT, FORMAT_VERSION, OWN_FILES, RECORD, WEIGHTS, expanded
from .identity import identify_model, identify_tokenizer
from .plain import config_to_dict, plain_arguments, plain_metrics
from .saved_intervention import memory_order
from .types import OWN


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
    and tokenizer it is for, the scores), `weights.safetensors`, and a model card, `README.md`. It is written beside its
    place and moved there when it is complete.

    Args:
        contents: what is to be kept.
        folder: a new or empty folder; missing folders above it are made.
        overwrite: replace a folder that was saved before. Nothing else is ever replaced.

    Returns:
        The folder.

    Raises:
        SpecError: an intervention is a function, or does not tell its constructor arguments; a score is no number.
        ArtifactError: the folder holds something already.
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
    _check_free(target, overwrite)
    record, tensors = record_of(contents)

    def fill(place: Path) -> None:
        save_file(tensors, place / WEIGHTS, metadata={"format": "pt"})
        (place / RECORD).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (place / CARD).write_text(write_card(record, name=name), encoding="utf-8")

    return _put_folder(target, fill)


def record_of(contents: Contents) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `save` writes: the record, and the tensors by name.

    Raises:
        SpecError: as for `save`.
    """
    wanted, given = len(contents.config.representations), len(contents.interventions)
    if wanted != given:
        raise SpecError(f"there are {wanted} representations and {given} interventions: one for each is needed")
    modules = list(dict.fromkeys(contents.interventions))
    plain: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for number, module in enumerate(modules):
        first = list(contents.interventions).index(module)
        where = f"the intervention of representation {first} ({type(module).__name__})"
        plain.append(_record_of_one(module, where))
        tensors |= {f"{number}.{name}": value for name, value in _tensors(module, where).items()}
    record = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "library_version": library_version(),
        "model": identify_model(contents.model),
        "tokenizer": None if contents.tokenizer is None else identify_tokenizer(contents.tokenizer),
        "config": config_to_dict(contents.config, [modules.index(one) for one in contents.interventions]),
        "interventions": plain,
        "metrics": plain_metrics(contents.metrics or {}),
    }
    return record, tensors


def _record_of_one(module: Intervention, where: str) -> dict[str, Any]:
    kind = type(module)
    if isinstance(module, FunctionIntervention):
        raise SpecError(
            f"{where} cannot be saved: a function is code, and no code is stored or run when an artifact is loaded. "
            "Write a subclass of Intervention, and hand it to load as classes=[...]"
        )
    if OWN.get(kind.__name__, kind) is not kind:
        raise SpecError(f"{where} cannot be saved: the library has a class of that name; give yours another")
    try:
        arguments = plain_arguments(module.arguments(), kind.__name__)
        inspect.signature(kind).bind(**arguments)
    except (SpecError, TypeError) as error:
        raise SpecError(f"{where} cannot be saved: {error}") from error
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    orders = {name: memory_order(value) for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    return {
        "class": kind.__name__,
        "arguments": arguments,
        "training": module.training,
        "frozen": frozen,
        "orders": {name: order for name, order in orders.items() if order != sorted(order)},
    }


def _tensors(module: Intervention, where: str) -> dict[str, Tensor]:
    """Return the state as tensors of their own: the file's format has no shared memory and no other values."""
    state = module.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise SpecError(f"{where} cannot be saved: its state {name!r} is a {type(value).__name__}, not a tensor")
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}


# --- The folder ------------------------------------------------------------------------------------------------------


def _check_free(target: Path, overwrite: bool) -> None:
    """Refuse a place that holds something else than an artifact that may be replaced."""
    if not target.exists():
        return
    if not target.is_dir():
        raise ArtifactError(f"cannot save to {target}: that is a file, and a folder is wanted")
    held = sorted(os.listdir(target))
    if not held:
        return
    strange = [name for name in held if name not in OWN_FILES]
    if strange or RECORD not in held:
        raise ArtifactError(f"cannot save to {target}: it holds other files ({', '.join((strange or held)[:5])})")
    if not overwrite:
        raise ArtifactError(f"cannot save to {target}: an intervention is saved there; overwrite=True replaces it")


def _put_folder(target: Path, fill: Callable[[Path], None]) -> Path:
    """Make a folder complete beside `target`, then move it there: a reader sees all of it, or what was there before."""
    place = target.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex
    new, old = (place.with_name(f".{place.name}.{unique}.{what}") for what in ("new", "old"))
    new.mkdir()
    try:
        fill(new)
        for path in (*new.iterdir(), new):
            _flush(path)
        if place.exists():
            os.rename(place, old)
        try:
            os.rename(new, place)
        except OSError:
            if old.exists():
                os.rename(old, place)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return target


def _flush(path: Path) -> None:
    """Have the system write a file, or a folder's list of files, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
