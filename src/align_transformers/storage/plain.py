"""Configurations, and what an artifact says, as plain data; and the checks that a file says it rightly."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from .._errors import ArtifactError, SpecError
from ..config import IntervenableConfig, RepresentationConfig
from ..interventions import Intervention
from .limits import MOST_BYTES, check_depth

Kinds = tuple[type, ...]

_REPRESENTATION: Mapping[str, Kinds] = {
    "layer": (int, NoneType),
    "component": (str,),
    "unit": (str,),
    "max_number_of_units": (int,),
    "call": (int, NoneType),
    "group_key": (int, str, NoneType),
    "intervention_link_key": (int, str, NoneType),
    "intervention": (int,),
}
CONFIG: Mapping[str, Kinds] = {"model_type": (str, NoneType), "mode": (str,), "representations": (list,)}


def config_to_dict(config: IntervenableConfig, numbers: Sequence[int]) -> dict[str, Any]:
    """Return a configuration as plain data.

    Partition, rank and constant source are the interventions' own: they stand with these and not here.

    Args:
        config: the configuration.
        numbers: for each representation the number of its intervention; representations that share one share a number.

    Raises:
        SpecError: a key is neither a number nor a text.
    """
    representations: list[dict[str, Any]] = []
    for one, number in zip(config.representations, numbers, strict=True):
        plain = {name: getattr(one, name) for name in _REPRESENTATION if name != "intervention"}
        plain["intervention"] = number
        try:
            check_record(plain, _REPRESENTATION, f"representation {len(representations)}")
        except ArtifactError as error:
            raise SpecError(f"this cannot be saved: {error}") from None
        representations.append(plain)
    model_type = None if config.model_type is None else str(config.model_type)
    return {"model_type": model_type, "mode": config.mode, "representations": representations}


def config_from_dict(plain: Any, interventions: Sequence[Intervention]) -> IntervenableConfig:
    """Return the configuration that `config_to_dict` described, with the interventions in their places.

    Raises:
        ArtifactError: it is not such a description, or names an intervention that is not there.
        SpecError, UnknownNameError: as for `IntervenableConfig`.
    """
    record = check_record(plain, CONFIG, "config")
    representations = []
    for number, one in enumerate(record["representations"]):
        where = f"config.representations[{number}]"
        options = dict(check_record(one, _REPRESENTATION, where))
        index = options.pop("intervention")
        if not 0 <= index < len(interventions):
            raise ArtifactError(f"{where}: there is no intervention {index}; there are {len(interventions)}, from 0")
        representations.append(RepresentationConfig(**options, intervention=interventions[index]))
    return IntervenableConfig(model_type=record["model_type"], mode=record["mode"], representations=representations)


def check_record(value: Any, fields: Mapping[str, Kinds], where: str) -> Mapping[str, Any]:
    """Return `value` if it is a dict with exactly these fields, each of one of its kinds.

    Raises:
        ArtifactError: it is not; the message names the field.

    >>> check_record({"layer": True}, {"layer": (int,)}, "config")
    Traceback (most recent call last):
    ...
    align_transformers._errors.ArtifactError: config.layer is int; found True
    """
    if not isinstance(value, dict):
        raise ArtifactError(f"{where} is a dict; found {_short(value)}")
    missing, unknown = fields.keys() - value.keys(), value.keys() - fields.keys()
    if missing or unknown:
        raise ArtifactError(f"{where} lacks {sorted(missing)} and has the unknown {_short(sorted(unknown))}")
    for name, kinds in fields.items():
        if type(value[name]) not in kinds:  # a subclass is another kind: True is no number
            names = " or ".join("null" if kind is NoneType else kind.__name__ for kind in kinds)
            raise ArtifactError(f"{where}.{name} is {names}; found {_short(value[name])}")
    return value


def read_json(path: Path) -> Any:
    """Return what a JSON file says.

    Raises:
        ArtifactError: it is too large, too deep, says something twice, or is no JSON.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ArtifactError(f"{path.name} has {size} bytes; such a file has at most {MOST_BYTES}")
    return parse_json(path.read_bytes(), path.name)


def parse_json(text: bytes, name: str) -> Any:
    """Return what JSON says.

    Args:
        text: in UTF-8.
        name: of the file, for messages.

    Raises:
        ArtifactError: it is too large, too deep, says something twice, or is no JSON.
    """
    if len(text) > MOST_BYTES:
        raise ArtifactError(f"{name} has {len(text)} bytes; such a file has at most {MOST_BYTES}")
    try:
        plain = json.loads(
            text.decode(), parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_each_once
        )
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{name} is not JSON: {_short(str(error))}") from None
    check_depth(plain, name)
    return plain


def plain_arguments(arguments: Any, who: str) -> dict[str, Any]:
    """Return constructor arguments as they will be read: what JSON cannot hold is refused, and tuples become lists.

    Raises:
        SpecError: they are no dict, or hold something that JSON cannot hold.
    """
    try:
        text = json.dumps(arguments, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"{who}.arguments() returns numbers, texts, lists and dicts, and no tensors (the state has them); {error}"
        ) from None
    plain = json.loads(text)
    if not isinstance(plain, dict):
        raise SpecError(f"{who}.arguments() returns a dict; found {_short(arguments)}")
    return plain


def plain_metrics(metrics: Any, where: str = "metrics") -> Any:
    """Return scores as plain data: scalars of NumPy and PyTorch as numbers, and numbers that are none as `None`.

    Raises:
        SpecError: something is neither a number, a text, `None`, nor a list or dict of these.

    >>> import torch
    >>> plain_metrics({"iia": torch.tensor(0.5), "loss": float("nan")})
    {'iia': 0.5, 'loss': None}
    """
    if isinstance(metrics, Mapping):
        return {str(name): plain_metrics(value, f"{where}.{name}") for name, value in metrics.items()}
    if isinstance(metrics, list | tuple):
        return [plain_metrics(value, f"{where}[{number}]") for number, value in enumerate(metrics)]
    value = metrics.item() if getattr(metrics, "shape", None) == () else metrics
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    raise SpecError(f"{where} is a number, a text, or a list or dict of these; found {_short(metrics)}")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_constant(text[:20])


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r:.40} stands there twice")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
