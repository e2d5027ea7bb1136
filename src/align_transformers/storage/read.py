"""Loading: from a folder or the model hub. Nothing that a file names is imported or run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .._errors import ArtifactError, SpecError
from ..config import IntervenableConfig
from ..hub import PREFIX, Snapshot, download
from ..models import find_slot
from .files import (
    FORMAT,
    FORMAT_VERSION,
    LEGACY_FILES,
    LEGACY_RECORD,
    OWN_FILES,
    RECORD,
    WEIGHTS,
    checked_file,
    local_folder,
)
from .identity import Identity, differences, identify_model, identify_tokenizer
from .legacy import read_legacy
from .plain import Kinds, check_record, config_from_dict, read_json
from .saved_intervention import build, split_by_number
from .types import known_types

_TEXT: Kinds = (str, NoneType)
_RECORD: Mapping[str, Kinds] = {
    "format": (str,),
    "format_version": (int,),
    "library_version": (str,),
    "model": (dict,),
    "tokenizer": (dict, NoneType),
    "config": (dict,),
    "interventions": (list,),
    "metrics": (dict,),
}
_MODEL: Mapping[str, Kinds] = {
    "class": (str,), "name": _TEXT, "revision": _TEXT, "config_hash": _TEXT, "dtypes": (list,), "shapes_hash": (str,),
    "shapes": (dict,),
}  # fmt: skip
_TOKENIZER: Mapping[str, Kinds] = {
    "class": (str,), "name": _TEXT, "vocabulary_size": (str,), "vocabulary_hash": (str,)
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Artifact:
    """What was saved.

    Args:
        config: where the interventions act; it holds them, ready for use.
        metrics: the scores that were saved with them.
        model: which model they were made with; of a folder of pyvene's at most its class.
        tokenizer: which tokenizer; `None` where it was not said.
        library_version: of the library that saved them.
        origin: the folder, or the hub's name and commit.
    """

    config: IntervenableConfig
    metrics: Mapping[str, Any]
    model: Identity
    tokenizer: Identity | None
    library_version: str
    origin: str


def load(
    name_or_path: str | os.PathLike[str],
    *,
    model: nn.Module,
    classes: Sequence[type] = (),
    strict: bool = True,
    tokenizer: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Artifact:
    """Read a folder that `save` wrote (or pyvene, or its ancestor), or a repository of the model hub.

    Interventions come back on the CPU, in the mode and with the dtypes they were saved in.

    Args:
        name_or_path: a folder; or `user/name` on the hub, where no folder of that name is there, nor a folder `user`;
            `hf://user/name` always means the hub.
        model: the model to intervene on. It must be the one that the interventions were made with: same class, name,
            revision, configuration, shapes and dtypes. The values of its weights are not compared.
        classes: your own intervention classes that the folder may name.
        strict: False warns about another model or tokenizer, and goes on.
        tokenizer: compared with the saved one, if both are given.
        revision: a branch, tag or commit of the hub's repository.
        token: an access token for the hub; without one that of `hf auth login`.
        cache_dir: for downloads, instead of the hub's own cache.

    Raises:
        ArtifactError: it is not there, is damaged, names an unknown class, or was made with another model.
        SpecError: `classes` holds no intervention class; a revision is asked of a folder.

    Warns:
        UserWarning: with `strict=False`, about everything that differs.

    >>> import tempfile
    >>> from align_transformers import IntervenableConfig, ZeroIntervention
    >>> from align_transformers.storage import Contents, save
    >>> zero, mlp = ZeroIntervention(), nn.Sequential(nn.Linear(2, 3))
    >>> config = IntervenableConfig(representations={"component": "0.output", "intervention": zero})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     artifact = load(save(Contents(config, [zero], mlp, {"iia": 0.9}), folder), model=mlp)
    >>> artifact.config.representations[0].intervention, artifact.metrics
    (ZeroIntervention(), {'iia': 0.9})
    """
    known_types(classes)
    folder = local_folder(name_or_path)
    origin, within = str(folder), folder
    if folder is None:
        snapshot = _fetch(os.fspath(name_or_path), revision, token, cache_dir)
        folder, within, origin = snapshot.folder, snapshot.within, f"{snapshot.name} at {snapshot.commit}"
    elif revision is not None:
        raise SpecError(f"revision={revision!r} is for the hub, and {os.fspath(name_or_path)!r} is a folder here")
    assert within is not None
    if not (folder / RECORD).exists() and (folder / LEGACY_RECORD).exists():
        return _read_legacy(folder, within, origin, model, strict)
    return _read_own(folder, within, origin, model, classes, strict, tokenizer)


def _fetch(
    name: str, revision: str | None, token: str | bool | None, cache_dir: str | os.PathLike[str] | None
) -> Snapshot:
    """Return the files of a hub repository; where there are none, say that a folder was looked for first."""
    files = (*OWN_FILES, *LEGACY_FILES)
    try:
        return download(name.removeprefix(PREFIX), files=files, revision=revision, token=token, cache_dir=cache_dir)
    except ArtifactError as error:
        if name.startswith(PREFIX):
            raise
        where = Path(name).absolute()
        raise ArtifactError(f"{error}. The hub was asked because there is no folder {name!r} here ({where})") from None


def _read_own(
    folder: Path,
    within: Path,
    origin: str,
    model: nn.Module,
    classes: Sequence[type],
    strict: bool,
    tokenizer: Any,
) -> Artifact:
    record = _read_record(checked_file(folder, RECORD, within))
    _compare(check_record(record["model"], _MODEL, "model"), identify_model(model), "model", strict)
    if record["tokenizer"] is not None:
        saved = check_record(record["tokenizer"], _TOKENIZER, "tokenizer")
        if tokenizer is not None:
            _compare(saved, identify_tokenizer(tokenizer), "tokenizer", strict)
    states = split_by_number(_read_weights(checked_file(folder, WEIGHTS, within)), len(record["interventions"]))
    interventions = [
        build(one, states[number], classes, f"interventions[{number}]")
        for number, one in enumerate(record["interventions"])
    ]
    config = config_from_dict(record["config"], interventions)
    return Artifact(config, record["metrics"], record["model"], record["tokenizer"], record["library_version"], origin)


def _read_legacy(folder: Path, within: Path, origin: str, model: nn.Module, strict: bool) -> Artifact:
    legacy = read_legacy(folder, within)
    saved: Identity = {} if legacy.model_class is None else {"class": legacy.model_class}
    _compare(saved | _widths(legacy.config), identify_model(model) | _widths(legacy.config, model), "model", strict)
    _report(legacy.deviations, "this is not quite what pyvene saved", "Nothing here does the same", strict)
    return Artifact(legacy.config, {}, saved, None, "pyvene", origin)


def _widths(config: IntervenableConfig, model: nn.Module | None = None) -> dict[str, str]:
    """Return by place the width of the vectors that its intervention takes, or of those that the model has there."""
    found = {}
    for one in config.representations:
        taken, units = one.intervention.embed_dim, 1 if one.intervention.keep_last_dim else one.max_number_of_units
        if taken is None:
            continue
        slot = None if model is None else find_slot(model, one.site)
        width = None if slot is None else slot.width
        if slot is not None and slot.heads is not None and one.unit in ("h", "h.pos"):
            width = slot.heads.shape[1]
        found[f"width at {one.site}"] = str(taken if width is None else width * units)
    return found


def _read_record(path: Path) -> Mapping[str, Any]:
    """Return what `intervention.json` says, its outline checked."""
    plain = read_json(path)
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise ArtifactError(f"{path.name} is not of the format {FORMAT!r}")
    version = plain.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path.name} has format_version {version!r}, written by align-transformers "
            f"{plain.get('library_version')!r}; this library reads {FORMAT_VERSION}: use the version that wrote it"
        )
    return check_record(plain, _RECORD, path.name)


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ArtifactError(
            f"{path.name} is not a safetensors file ({str(error)[:120]}); pickles are never read in its place"
        ) from None


def _compare(saved: Mapping[str, Any], found: Mapping[str, Any], what: str, strict: bool) -> None:
    """Refuse another model or tokenizer, or warn of it."""
    _report(differences(saved, found), f"this was saved with another {what}", f"Load it with that {what}", strict)


def _report(lines: Sequence[str], what: str, advice: str, strict: bool) -> None:
    """Raise or warn, if there is anything to tell."""
    if not lines:
        return
    message = "\n  ".join((f"{what}:", *lines))
    if strict:
        raise ArtifactError(f"{message}\n{advice}, or pass strict=False to go on all the same")
    warnings.warn(f"{message}\nstrict=False: going on all the same", UserWarning, stacklevel=6)
