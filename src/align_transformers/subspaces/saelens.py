"""The layouts in which the weights of dictionaries are found: state dicts, and folders of SAELens."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from .._errors import SpecError

_PLAIN = ("W_enc", "b_enc", "W_dec", "b_dec")
_GATED = ("W_enc", "b_gate", "b_mag", "r_mag", "W_dec", "b_dec")

_AS_LINEAR: Mapping[str, tuple[str, bool]] = {
    "encoder.weight": ("W_enc", True),
    "encoder.bias": ("b_enc", False),
    "decoder.weight": ("W_dec", True),
    "decoder.bias": ("b_dec", False),
    "bias": ("b_dec", False),
}
"""What weights are called where the layers are `nn.Linear`, whose weights are transposed."""

_KINDS = ("standard", "jumprelu", "topk", "batchtopk", "matryoshka_batchtopk", "gated")
_NORMALISATIONS = {
    "none": "none",
    False: "none",
    None: "none",
    # A factor that SAELens itself leaves out here: it is in the weights, or in its list of releases.
    "expected_average_only_in": "none",
    "constant_norm_rescale": "constant_norm_rescale",
    "layer_norm": "layer_norm",
}


def read_dictionary(state: Mapping[str, Tensor], *, transcoder: bool = False) -> dict[str, Tensor]:
    """Return the weights of a dictionary under the names used here.

    Args:
        state: a state dict with `W_enc` `(inputs, latents)`, `b_enc`, `W_dec` `(latents, width)`, `b_dec`, and perhaps
            `threshold` and `W_skip` `(width, inputs)`; a gated one has `b_gate`, `b_mag` and `r_mag` instead of
            `b_enc`; or with the layers `encoder` and `decoder` as `nn.Linear` saves them.
        transcoder: whether inputs and width may differ; a `W_skip` says so, too.

    Raises:
        SpecError: something is missing or not understood, or shapes do not fit.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        target, transposed = _AS_LINEAR.get(name, (name, False))
        found[target] = (value.T if transposed else value).detach().clone().contiguous()
    wanted = _GATED if "b_gate" in found else _PLAIN
    missing = [name for name in wanted if name not in found]
    strange = sorted(found.keys() - {*wanted, "threshold", "W_skip"})
    if missing or strange:
        raise SpecError(
            f"the state dict of a dictionary has {', '.join(_PLAIN)} and perhaps threshold, or encoder.weight, "
            "encoder.bias, decoder.weight, decoder.bias; a gated one has b_gate, b_mag, r_mag, no b_enc; a transcoder "
            f"may have W_skip; found {', '.join(sorted(state))}"
        )
    transcoder = transcoder or "W_skip" in found
    (inputs, latents), width = found["W_enc"].shape, found["b_dec"].shape[-1]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("b_enc", "threshold", "b_gate", "b_mag", "r_mag"), (latents,))
    width = width if transcoder else inputs
    shapes |= {"W_dec": (latents, width), "b_dec": (width,), "W_skip": (width, inputs)}
    for name, shape in shapes.items():
        if name in found and tuple(found[name].shape) != shape:
            raise SpecError(
                f"{name} has shape {tuple(found[name].shape)}; with W_enc {(inputs, latents)} it has {shape}"
                + ("" if transcoder else "; for a transcoder say transcoder=True")
            )
    return found


def read_saelens(
    folder: str | os.PathLike[str], *, scaling_factor: float | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a folder as SAELens writes it: `cfg.json` and `sae_weights.safetensors`.

    What only rescales the weights (`finetuning_scaling_factor`, `rescale_acts_by_decoder_norm`, `scaling_factor`) is
    folded into them. `reshape_activations` says how heads lie side by side, which they do here in any case.

    Args:
        folder: on this machine.
        scaling_factor: see `Dictionary.from_saelens`.

    Returns:
        Options of `Dictionary.from_state_dict`, and the weights for it.

    Raises:
        SpecError: a file is missing, or the dictionary is of a kind that is not supported; it says which.
    """
    place = Path(folder)
    missing = [name for name in ("cfg.json", "sae_weights.safetensors") if not (place / name).is_file()]
    if missing:
        raise SpecError(f"{place} is no folder of SAELens: it has no {' and no '.join(missing)}")
    cfg = json.loads((place / "cfg.json").read_text(encoding="utf-8"))
    settings = _settings(cfg, str(place))
    tensors = load_file(place / "sae_weights.safetensors")
    factors = tensors.pop("scaling_factor", None)  # of a fine-tuning; only applied where the configuration says so
    if cfg.get("finetuning_scaling_factor") and factors is not None:
        tensors["W_dec"] = tensors["W_dec"] * factors.unsqueeze(1)
    if "topk_threshold" in tensors:  # of BatchTopK while it is trained; afterwards it is a JumpReLU
        tensors["threshold"] = tensors.pop("topk_threshold").to(tensors["b_enc"]).expand_as(tensors["b_enc"])
    if cfg.get("rescale_acts_by_decoder_norm"):
        norms = tensors["W_dec"].norm(dim=-1)
        tensors |= {name: tensors[name] * norms for name in ("W_enc", "b_enc")}
        tensors["W_dec"] = tensors["W_dec"] / norms.unsqueeze(1)
    if scaling_factor is not None:
        if cfg.get("normalize_activations") != "expected_average_only_in" or settings["transcoder"]:
            raise SpecError(f"{place}: scaling_factor is for autoencoders with 'expected_average_only_in'")
        tensors["W_enc"] = tensors["W_enc"] * scaling_factor
        tensors |= {name: tensors[name] / scaling_factor for name in ("W_dec", "b_dec")}
    return settings, tensors


def _settings(cfg: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the options of `Dictionary.from_state_dict` that a configuration means."""
    architecture, scaling = str(cfg.get("architecture", "standard")), cfg.get("normalize_activations", "none")
    kind = architecture.removesuffix("transcoder").removesuffix("_").removesuffix("skip").removesuffix("_")
    kind, transcodes = kind or "standard", architecture.endswith("transcoder") or "d_out" in cfg
    function = cfg.get("activation_fn", cfg.get("activation_fn_str", "relu"))
    tops = kind == "topk" or (kind == "standard" and function == "topk")
    if kind not in _KINDS or function not in (("relu", "topk") if tops else ("relu",)):
        raise SpecError(
            f"{place}: architecture {architecture!r} with activation {function!r} is not supported; known: "
            f"{', '.join(_KINDS)}, transcoders of these, with activation 'relu' or 'topk'"
        )
    if not isinstance(scaling, str | bool | None) or scaling not in _NORMALISATIONS:
        known = ", ".join(repr(name) for name in _NORMALISATIONS if isinstance(name, str))
        raise SpecError(f"{place}: normalize_activations={scaling!r} is not supported; known: {known}")
    k = (cfg.get("k") or (cfg.get("activation_fn_kwargs") or {}).get("k")) if tops else None
    if tops and type(k) is not int:
        raise SpecError(f"{place}: a topk dictionary says what k is; found {k!r}")
    return {
        "k": k,
        "normalise": _NORMALISATIONS[scaling],
        "subtract_decoder_bias": bool(cfg.get("apply_b_dec_to_input", True)) and not transcodes,
        "transcoder": transcodes,
    }
