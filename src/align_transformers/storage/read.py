"""Loading: from a folder or the model hub. Nothing that a file names is imported or run."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .._errors import AlignError, ArtifactError, SpecError
from .._summarised import Summarised, Summary, numbers
from ..config import IntervenableConfig
from ..hub import PREFIX, Snapshot, download
from ..models import find_slot
from .doubts import differences, model_doubts, report, waived_checks
from .files import (
    FORMAT,
    LEGACY_FILES,
    LEGACY_RECORD,
    OWN_FILES,
    READABLE,
    RECORD,
    WEIGHTS,
    checked_file,
    local_folder,
)
from .identity import Identity, identify_model, identify_tokenizer
from .legacy import read_legacy
from .limits import clipped
from .plain import Kinds, check_record, read_json
from .saved_intervention import is_finite, restored
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
    "shapes": (dict,), "weights_hash": _TEXT,
}  # fmt: skip
_TOKENIZER: Mapping[str, Kinds] = {
    "class": (str,), "name": _TEXT, "vocabulary_size": (str,), "vocabulary_hash": (str,)
}  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Artifact(Summarised):
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

    def _summary(self) -> Summary:
        facts = [(str(one.site), type(one.intervention).__name__) for one in self.config.representations]
        scores = {name: value for name, value in self.metrics.items() if isinstance(value, int | float)}
        facts += [("scores", numbers(scores))] if scores else []
        return f"Artifact from {self.origin}, made on {self.model.get('class', 'a model')}", facts


def load(
    name_or_path: str | os.PathLike[str],
    *,
    model: nn.Module,
    classes: Sequence[type] = (),
    strict: bool = True,
    waive: Collection[str] = (),
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
        model: the model to intervene on. It must be the one that the interventions were made with: same class,
            configuration, shapes, dtypes and weights. Where these are the same, its name and revision do not matter;
            where the values of the weights are not known, another name is warned of, and another revision refused.
        classes: your own intervention classes that the folder may name.
        strict: False waives all checks of `waive`.
        waive: names of checks that only warn: of the model `class`, `config`, `shapes`, `dtypes`, `weights`,
            `revision`; `tokenizer`; `finite`: that no saved weight is NaN or infinite; `pyvene`: that something here
            does just the same. The error of a check says its name.
        tokenizer: compared with the saved one, if both are given.
        revision: a branch, tag or commit of the hub's repository.
        token: an access token for the hub; without one that of `hf auth login`.
        cache_dir: for downloads, instead of the hub's own cache.

    Raises:
        ArtifactError: it is not there, is damaged, asks for too much, names an unknown class, or was made with another
            model.
        SpecError: `classes` holds no intervention class; a check is unknown; a revision is asked of a folder.

    Warns:
        UserWarning: about everything that differs and is waived.

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
    waived = waived_checks(waive, strict)
    folder = local_folder(name_or_path)
    origin, within = str(folder), folder
    if folder is None:
        snapshot = _fetch(os.fspath(name_or_path), revision, token, cache_dir)
        folder, within, origin = snapshot.folder, snapshot.within, f"{snapshot.name} at {snapshot.commit}"
    elif revision is not None:
        raise SpecError(f"revision={revision!r} is for the hub, and {os.fspath(name_or_path)!r} is a folder here")
    assert within is not None
    try:
        if not (folder / RECORD).exists() and (folder / LEGACY_RECORD).exists():
            return _read_legacy(folder, within, origin, model, waived)
        return _read_own(folder, within, origin, model, classes, waived, tokenizer)
    except (AlignError, OSError, RecursionError, MemoryError) as error:
        raise ArtifactError(clipped(str(error) or type(error).__name__)) from None


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
    waived: Collection[str],
    tokenizer: Any,
) -> Artifact:
    record = read_record(checked_file(folder, RECORD, within))
    saved: Identity = dict(check_record({"weights_hash": None, **record["model"]}, _MODEL, "model"))
    report(
        model_doubts(saved, identify_model(model, weights=saved["weights_hash"] is not None)), *_ANOTHER_MODEL, waived
    )
    if record["tokenizer"] is not None:
        told = check_record(record["tokenizer"], _TOKENIZER, "tokenizer")
        if tokenizer is not None:
            lines = differences(told, identify_tokenizer(tokenizer))
            report({"tokenizer": lines}, "this was saved with another tokenizer", "Load it with that tokenizer", waived)
    tensors = _read_weights(checked_file(folder, WEIGHTS, within))
    report(*_not_finite(tensors), waived)
    config = restored(record["config"], record["interventions"], tensors, classes)
    return Artifact(config, record["metrics"], saved, record["tokenizer"], record["library_version"], origin)


def _read_legacy(folder: Path, within: Path, origin: str, model: nn.Module, waived: Collection[str]) -> Artifact:
    legacy = read_legacy(folder, within)
    saved: Identity = {} if legacy.model_class is None else {"class": legacy.model_class}
    widths = differences(_widths(legacy.config), _widths(legacy.config, model))
    doubts = {**model_doubts(saved, identify_model(model)), "shapes": widths}
    report(doubts, *_ANOTHER_MODEL, waived)
    different = {"pyvene": legacy.deviations}
    report(different, "this is not quite what pyvene saved", "Nothing here does the same", waived)
    modules = [one.intervention for one in legacy.config.representations]
    report(
        *_not_finite({f"{n}.{key}": v for n, one in enumerate(modules) for key, v in one.state_dict().items()}), waived
    )
    return Artifact(legacy.config, {}, saved, None, "pyvene", origin)


_ANOTHER_MODEL = "this was saved with another model", "Load it with that model"


def _not_finite(tensors: Mapping[str, Tensor]) -> tuple[dict[str, list[str]], str, str]:
    """Return which weights hold NaN or infinite numbers, as `report` takes it."""
    spoilt = [name for name, value in tensors.items() if not is_finite(value)]
    lines = [f"the weights {name!r:.80} hold NaN or infinite numbers" for name in spoilt[:3]]
    return {"finite": lines}, "this was spoilt before it was saved", "Make it again"


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


def read_record(path: Path) -> Mapping[str, Any]:
    """Return what `intervention.json` says, its outline checked.

    Args:
        path: of the file.

    Raises:
        ArtifactError: it is damaged, of another format, or of a later version.
    """
    plain = read_json(path)
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise ArtifactError(f"{path.name} is not of the format {FORMAT!r}")
    version = plain.get("format_version")
    if type(version) is not int or version not in READABLE:
        raise ArtifactError(
            f"{path.name} has format_version {version!r:.20}, written by align-transformers "
            f"{plain.get('library_version')!r:.20}; this library reads up to {READABLE[-1]}: use that version"
        )
    return check_record(plain, _RECORD, path.name)


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ArtifactError(
            f"{path.name} is not a safetensors file ({str(error)[:120]}); pickles are never read in its place"
        ) from None
