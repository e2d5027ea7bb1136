"""The fixed table: what each of pyvene's interventions is here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from .. import interventions as ours
from .._errors import AlignError, ArtifactError
from ..interventions import Intervention

StateDict = Mapping[str, Tensor]

_ORTHONORMAL = 1e-3  # float32 matrix exponentials of a long fit stay well below; a matrix that was spoilt does not


@dataclass(frozen=True, eq=False)
class Entry:
    """What a configuration says of one intervention.

    Args:
        type_name: as it is written: `<class 'pyvene.models.interventions.VanillaIntervention'>`.
        representation: its fields by name.
        dimension: how many of its first coordinates are swapped, or which latents; `None` for all.
        constant: whether it carries its source.
    """

    type_name: str
    representation: Mapping[str, Any]
    dimension: Any
    constant: bool


def convert(entry: Entry, state: StateDict) -> tuple[Intervention, str | None]:
    """Return the intervention here that does the same, and in what it differs (`None`: in nothing).

    Args:
        entry: what the configuration says.
        state: the module's tensors; none where the file is missing.

    Raises:
        ArtifactError: there is no counterpart, or the tensors do not fit; the message says which.
    """
    name = _NAMES.get(entry.type_name)
    if name is None:
        known = ", ".join(sorted(_MAKERS))
        raise ArtifactError(
            f"unknown intervention {entry.type_name!r} in a folder of pyvene's. Known in the modules "
            f"{' and '.join(_MODULES)}: {known}. Nothing is imported by name"
        )
    if name in _REFUSED:
        raise ArtifactError(f"pyvene's {name} cannot be read: {_REFUSED[name]}")
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            made, deviation = _MAKERS[name](entry, state)
    except KeyError as error:
        raise ArtifactError(f"pyvene's {name}: its file is missing, or lacks {error}") from None
    except (AlignError, RuntimeError, ValueError, TypeError) as error:
        raise ArtifactError(f"pyvene's {name} cannot be read: {error}") from error
    if entry.constant and "source_representation" in state:
        made.set_source_representation(state["source_representation"])
    elif entry.constant and made.source_kind == "run":
        raise ArtifactError(f"pyvene's {name} has a constant source, and no file holds it")
    return made, deviation


def _options(entry: Entry, width: int | None) -> dict[str, Any]:
    """Return the arguments that all interventions take.

    Args:
        entry: what the configuration says.
        width: of the vectors; where it is not known, the number of swapped coordinates is left alone.
    """
    one = entry.representation
    options: dict[str, Any] = {"embed_dim": width, "subspace_partition": one["subspace_partition"]}
    if one["max_number_of_units"] > 1:
        options["keep_last_dim"] = False  # there the units of an example are one vector
    if type(entry.dimension) is int and width is not None and entry.dimension < width:
        options["interchange_dim"] = entry.dimension
    return options


def _static(kind: Callable[..., Intervention]) -> Maker:
    def make(entry: Entry, state: StateDict) -> tuple[Intervention, None]:
        width = int(state["embed_dim"]) if "embed_dim" in state else None
        options = _options(entry, width)
        # Of an intervention without a file the width is known only from here: usually all coordinates are swapped.
        return kind(**{name: value for name, value in options.items() if value is not None}), None

    return make


def _rotation(state: StateDict) -> Tensor:
    """Return the matrix of `torch.nn.utils.parametrizations.orthogonal`, built by PyTorch as it was there."""
    free = state["rotate_layer.parametrizations.weight.original"]
    width, k = free.shape
    if k > width:
        raise ValueError(f"it has {k} columns of {width} coordinates, which cannot be orthogonal")
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.eye(width, k, dtype=free.dtype))
    orthogonal(layer, orthogonal_map="matrix_exp" if width == k else "householder")
    start = "rotate_layer."
    layer.load_state_dict({name.removeprefix(start): value for name, value in state.items() if name.startswith(start)})
    columns = layer.weight.detach()
    error = float((columns.T @ columns - torch.eye(k, dtype=columns.dtype)).abs().max())
    if not error < _ORTHONORMAL:
        raise ValueError(f"its columns are not orthonormal (off by {error:.2g}), so nothing here does the same")
    return columns


def _rotated(entry: Entry, state: StateDict) -> tuple[Intervention, None]:
    columns = _rotation(state)
    made = ours.RotatedSpaceIntervention(**_options(entry, len(columns)))
    made.rotate_layer.set_weight(columns)
    return made, None


def _low_rank(entry: Entry, state: StateDict) -> tuple[Intervention, None]:
    columns = _rotation(state)
    options = _options(entry, len(columns))
    options.pop("interchange_dim", None)  # which this class of pyvene's does not look at
    made = ours.LowRankRotatedSpaceIntervention(low_rank_dimension=columns.shape[1], **options)
    made.rotate_layer.set_weight(columns)
    return made, None


def _boundless(entry: Entry, state: StateDict) -> tuple[Intervention, str]:
    columns = _rotation(state)
    made = ours.BoundlessRotatedSpaceIntervention(
        temperature=float(state["temperature"]), **_without_dimension(entry, len(columns))
    )
    made.rotate_layer.set_weight(columns)
    made.boundary.copy_(state["intervention_boundaries"].reshape(()))
    return made, (
        "pyvene's mask has a left factor sigmoid(i / temperature), which leaves coordinate 0 half-swapped at every "
        "temperature and others more so at high ones; the mask here has not"
    )


def _masked_rotated(entry: Entry, state: StateDict) -> tuple[Intervention, None]:
    columns = _rotation(state)
    made = ours.SigmoidMaskRotatedSpaceIntervention(
        temperature=float(state["temperature"]), **_without_dimension(entry, len(columns))
    )
    made.rotate_layer.set_weight(columns)
    made.mask.copy_(state["masks"])
    return made, None


def _masked(entry: Entry, state: StateDict) -> tuple[Intervention, None]:
    mask = state["mask"]
    made = ours.SigmoidMaskIntervention(temperature=float(state["temperature"]), **_without_dimension(entry, len(mask)))
    made.mask.copy_(mask)
    return made, None


def _without_dimension(entry: Entry, width: int) -> dict[str, Any]:
    """Return the arguments of masked interventions, which choose their coordinates themselves."""
    return {
        name: value for name, value in _options(entry, width).items() if name == "embed_dim" or name == "keep_last_dim"
    }


def _autoencoder(entry: Entry, state: StateDict) -> tuple[Intervention, None]:
    layers = {name: state[f"autoencoder.{name}"] for name in _LAYERS}
    latents = entry.dimension if isinstance(entry.dimension, list) else [entry.dimension]
    made = ours.AutoencoderIntervention.from_state_dict(
        {
            "W_enc": layers["encoder.0.weight"].T.clone(),
            "b_enc": layers["encoder.0.bias"],
            "W_dec": layers["decoder.0.weight"].T.clone(),
            "b_dec": layers["decoder.0.bias"],
        },
        latents=[int(latent) for latent in latents],
        include_error=False,
        keep_last_dim=entry.representation["max_number_of_units"] == 1,
    )
    return made, None


def _jumprelu(entry: Entry, state: StateDict) -> tuple[Intervention, None]:
    weights = {name: state[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
    made = ours.JumpReLUAutoencoderIntervention.from_state_dict(
        weights,
        include_error=False,
        subtract_decoder_bias=False,
        subspace_partition=entry.representation["subspace_partition"],
        interchange_dim=entry.dimension if type(entry.dimension) is int else None,
    )
    return made, None


Maker = Callable[[Entry, StateDict], "tuple[Intervention, str | None]"]

_LAYERS = ("encoder.0.weight", "encoder.0.bias", "decoder.0.weight", "decoder.0.bias")

_MAKERS: Mapping[str, Maker] = MappingProxyType(
    {
        "VanillaIntervention": _static(ours.VanillaIntervention),
        "AdditionIntervention": _static(ours.AdditionIntervention),
        "SubtractionIntervention": _static(ours.SubtractionIntervention),
        "ZeroIntervention": _static(ours.ZeroIntervention),
        "CollectIntervention": _static(ours.CollectIntervention),
        "SkipIntervention": _static(ours.SkipIntervention),
        "RotatedSpaceIntervention": _rotated,
        "LowRankRotatedSpaceIntervention": _low_rank,
        "BoundlessRotatedSpaceIntervention": _boundless,
        "SigmoidMaskRotatedSpaceIntervention": _masked_rotated,
        "SigmoidMaskIntervention": _masked,
        "AutoencoderIntervention": _autoencoder,
        "JumpReLUAutoencoderIntervention": _jumprelu,
    }
)
_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "PCARotatedSpaceIntervention": "its components were not saved; fit it again with fit_pca",
        "NoiseIntervention": "its noise was not saved, and is made otherwise here",
        "LambdaIntervention": "a function is code, and was not saved",
    }
)
_MODULES = ("pyvene.models.interventions", "models.interventions")
"""Where pyvene and its ancestor keep them."""

_NAMES: Mapping[str, str] = MappingProxyType(
    {f"<class '{module}.{name}'>": name for module in _MODULES for name in (*_MAKERS, *_REFUSED)}
)
