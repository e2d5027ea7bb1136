"""Folders that pyvene wrote, or its ancestor align-transformers: `config.json` and a pickled `intkey_*.bin` a module.

The pickles are read with `weights_only=True`, which makes tensors and nothing else.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch
from torch import Tensor

from .._errors import ArtifactError
from ..config import IntervenableConfig, RepresentationConfig
from ..interventions import Intervention
from .files import LEGACY_RECORD, checked_file
from .legacy_types import Entry, convert
from .limits import Limits
from .plain import Kinds, check_record, read_json


@dataclass(frozen=True)
class Dialect:
    """How one generation of the library wrote its configuration.

    Args:
        prefix: of the names in the file.
        types: name of the list of the interventions' classes.
        fields: of a representation, in the order in which they are written.
    """

    prefix: str
    types: str
    fields: tuple[str, ...]


_EARLY = ("layer", "component", "unit", "max_number_of_units", "low_rank_dimension")
_LATE = ("subspace_partition", "group_key", "intervention_link_key", "moe_key")
_CONSTANTS = ("source_representation", "hidden_source_representation")

_DIALECTS = (
    Dialect(
        "", "intervention_types", (*_EARLY, "intervention_type", "intervention", *_LATE, *_CONSTANTS, "latent_dim")
    ),
    Dialect("intervenable_", "intervenable_interventions_type", (*_EARLY, *_LATE, *_CONSTANTS)),
    Dialect("alignable_", "alignable_interventions_type", (*_EARLY, *_LATE[:3])),
)
"""Since 2024; January 2024; 2023."""

_KEYS = (
    "layer_{layer}_comp_{component}_unit_{unit}_nunit_{n}",
    "comp_{component}_unit_{unit}_nunit_{n}",
    "layer.{layer}.comp.{component}.unit.{unit}.nunit.{n}",
    "comp.{component}.unit.{unit}.nunit.{n}",
    "layer.{layer}.repr.{component}.unit.{unit}.nunit.{n}",
)
"""How the name of a module's file was made at one time or another. Between `_` the parts have no `.`."""

_KEY: Kinds = (int, str, NoneType)
_REPRESENTATION: Mapping[str, Kinds] = {
    "layer": (int, NoneType), "component": (str,), "unit": (str,), "max_number_of_units": (int,),
    "low_rank_dimension": (int, NoneType), "subspace_partition": (list, NoneType), "group_key": _KEY,
    "intervention_link_key": _KEY, "latent_dim": (int, NoneType),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class LegacyFolder:
    """What such a folder says.

    Args:
        config: the configuration, with the interventions in their places.
        model_class: name of the model's class; pyvene itself does not tell.
        deviations: in what the interventions differ from those that were saved; nothing as a rule.
    """

    config: IntervenableConfig
    model_class: str | None
    deviations: list[str]


def read_legacy(folder: Path, within: Path) -> LegacyFolder:
    """Read a folder of pyvene's or its ancestor's.

    Args:
        folder: it.
        within: where links may lead.

    Raises:
        ArtifactError: it is no such folder, is damaged, or holds an intervention that cannot be read.
    """
    plain = read_json(checked_file(folder, LEGACY_RECORD, within))
    dialect = next((d for d in _DIALECTS if isinstance(plain, dict) and f"{d.prefix}representations" in plain), None)
    if dialect is None:
        raise ArtifactError(f"{LEGACY_RECORD} in {folder} is not that of saved interventions")
    limits, written = Limits(), _list(plain, f"{dialect.prefix}representations", None)
    limits.count(len(written), f"{LEGACY_RECORD}: {dialect.prefix}representations")
    representations = [_representation(one, number, dialect) for number, one in enumerate(written)]
    for number, one in enumerate(representations):
        limits.partition(one["subspace_partition"], f"{LEGACY_RECORD}, representation {number}: subspace_partition")
    count = len(representations)
    types = _list(plain, dialect.types, count)
    entries = [
        Entry(str(name), one, dimension, source is True)
        for name, one, dimension, source in zip(
            types,
            representations,
            _list(plain, "intervention_dimensions", count),
            _list(plain, "intervention_constant_sources", count),
            strict=True,
        )
    ]
    states = [_state(folder, within, key) if key is not None else None for key in _file_names(folder, representations)]
    modules = _modules(entries, states)
    made = [_configured(one, module) for one, (module, _) in zip(representations, modules, strict=True)]
    model = plain.get(f"{dialect.prefix}model_type")
    model_class = model.removesuffix("'>").rpartition(".")[2] if isinstance(model, str) and model else None
    deviations = [note for _, note in modules if note]
    return LegacyFolder(
        IntervenableConfig(representations=made, mode=plain.get("mode", "parallel")), model_class, deviations
    )


def _representation(written: Any, number: int, dialect: Dialect) -> dict[str, Any]:
    """Return one representation by the names of its fields."""
    where = f"{LEGACY_RECORD}, representation {number}"
    if isinstance(written, list) and 4 <= len(written) <= len(dialect.fields):
        given = dict(zip(dialect.fields, written, strict=False))
    elif isinstance(written, dict):
        given = {str(name).removeprefix(dialect.prefix): value for name, value in written.items()}
    else:
        raise ArtifactError(f"{where} is a list of at most {len(dialect.fields)} fields; found {written!r:.80}")
    if given.get("moe_key") is not None:
        raise ArtifactError(f"{where} names an expert (moe_key={given['moe_key']!r}), which has no counterpart here")
    return dict(check_record({name: given.get(name) for name in _REPRESENTATION}, _REPRESENTATION, where))


def _list(plain: Mapping[str, Any], name: str, count: int | None) -> list[Any]:
    """Return a list of the file; where it has none, one of `None` for each representation."""
    value = plain.get(name)
    if value is None and count is not None:
        return [None] * count
    if not isinstance(value, list) or (count is not None and len(value) != count):
        raise ArtifactError(f"{LEGACY_RECORD}: {name} is a list of {count or 'some'} entries; found {value!r:.80}")
    return value


def _file_names(folder: Path, representations: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """Return for each representation the name of its module's file, of those that are in the folder."""
    held = set(os.listdir(folder))
    seen: Counter[str] = Counter()
    names: list[str | None] = []
    for one in representations:
        keys = [_key(pattern, one) for pattern in _KEYS]
        names.append(next((name for key in keys if (name := f"intkey_{key}#{seen[key]}.bin") in held), None))
        seen.update(keys)
    return names


def _key(pattern: str, one: Mapping[str, Any]) -> str:
    parts = {name: str(one[name]) for name in ("layer", "component", "unit")}
    if "." not in pattern:
        parts = {name: value.replace(".", "_") for name, value in parts.items()}
    return pattern.format(**parts, n=one["max_number_of_units"])


def _state(folder: Path, within: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of a pickle, of which nothing else is made."""
    path = checked_file(folder, name, within)
    try:
        if is_zipfile(path):
            with ZipFile(path) as archive:
                if any(one.compress_type != ZIP_STORED for one in archive.infolist()):
                    raise ValueError("it is compressed, which PyTorch's own files are not")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle that is damaged, or names something else than tensors, fails in many ways
        reason = str(error).strip().splitlines() or ["no reason given"]
        raise ArtifactError(f"{name} holds something else than tensors, or is damaged: {reason[0][:160]}") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ArtifactError(f"{name} is a dict of tensors; found {type(state).__name__}")
    for key, value in state.items():
        # A pickle can name shapes of any size over one number: what is made of such a tensor would fill the memory.
        held = value.untyped_storage().nbytes() if value.layout is torch.strided and value.device.type == "cpu" else 0
        if value.numel() * value.element_size() > held:
            raise ArtifactError(f"{name}: {str(key)[:80]!r} is {tuple(value.shape)}, and the file holds less")
    return {str(key): value for key, value in state.items()}


def _modules(
    entries: Sequence[Entry], states: Sequence[dict[str, Tensor] | None]
) -> list[tuple[Intervention, str | None]]:
    """Return the intervention of each representation; linked ones share the first's."""
    linked: dict[Any, tuple[Intervention, str | None]] = {}
    found = []
    for entry, state in zip(entries, states, strict=True):
        link = entry.representation["intervention_link_key"]
        made = linked.get(link) if link is not None else None
        if made is None:
            made = convert(entry, state or {})
        if link is not None:
            linked[link] = made
        found.append(made)
    return found


def _configured(one: Mapping[str, Any], intervention: Intervention) -> RepresentationConfig:
    """Return the representation with its intervention; beside a dotted path a layer says nothing."""
    return RepresentationConfig(
        layer=None if "." in one["component"] else one["layer"],
        component=one["component"],
        unit=one["unit"],
        max_number_of_units=one["max_number_of_units"],
        group_key=one["group_key"],
        intervention_link_key=one["intervention_link_key"],
        intervention=intervention,
    )
