"""Dictionaries of latents: sparse autoencoders, and the layouts in which their weights are found."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from .._errors import SpecError
from .basis import uncast

NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
"""What the weights of a dictionary are called here, in SAELens and in TransformerLens; and `threshold`."""

_AS_LINEAR: Mapping[str, tuple[str, bool]] = {
    "encoder.weight": ("W_enc", True),
    "encoder.bias": ("b_enc", False),
    "decoder.weight": ("W_dec", True),
    "decoder.bias": ("b_dec", False),
    "bias": ("b_dec", False),
}
"""What they are called where the layers are `nn.Linear`, whose weights are transposed."""

_ACTIVATIONS = {"standard": "relu", "jumprelu": "jumprelu"}


@final
class Dictionary(nn.Module):
    """A frozen sparse autoencoder: latents are read from a vector and written back to it.

    Latents are `relu(z)` of `z = (x - b_dec) @ W_enc + b_enc`, zero where `z` is not above the threshold.

    Args:
        width: coordinates of the vectors.
        latents: how many latents.
        thresholds: keep a threshold for each latent (JumpReLU, Rajamanoharan et al. 2024, arXiv:2407.14435).
        subtract_decoder_bias: whether `b_dec` is subtracted before encoding.

    >>> dictionary = Dictionary(2, 3)
    >>> dictionary.read(torch.zeros(1, 2)).shape
    torch.Size([1, 3])
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor | None

    def __init__(
        self, width: int, latents: int, *, thresholds: bool = False, subtract_decoder_bias: bool = True
    ) -> None:
        super().__init__()
        if width < 1 or latents < 1:
            raise SpecError(f"a dictionary has latents of vectors; asked for {latents} latents of width {width}")
        self.subtract_decoder_bias = subtract_decoder_bias
        columns = nn.functional.normalize(torch.randn(latents, width), dim=-1)
        self.register_buffer("W_enc", columns.T.contiguous())
        self.register_buffer("b_enc", torch.zeros(latents))
        self.register_buffer("W_dec", columns)
        self.register_buffer("b_dec", torch.zeros(width))
        self.register_buffer("threshold", torch.zeros(latents) if thresholds else None)

    def read(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... latents"]:
        """Return the latents of `x`, in the precision of the dictionary or that of `x`, whichever is higher.

        Raises:
            SpecError: `x` has another width.
        """
        if x.shape[-1] != len(self.W_enc):
            raise SpecError(f"the dictionary is one of width {len(self.W_enc)}; the vectors have {x.shape[-1]}")
        x = x.to(torch.promote_types(x.dtype, self.W_enc.dtype))
        inner = x - self.b_dec.to(x) if self.subtract_decoder_bias else x
        with uncast(x):
            before = inner @ self.W_enc.to(x) + self.b_enc.to(x)
        latents = torch.relu(before)
        return latents if self.threshold is None else torch.where(before > self.threshold.to(x), latents, 0)

    def write(self, latents: Float[Tensor, "... latents"], bias: bool = True) -> Float[Tensor, "... width"]:
        """Return what the decoder makes of latents; without the bias, what a change of latents changes."""
        with uncast(latents):
            written = latents @ self.W_dec.to(latents)
        return written + self.b_dec.to(latents) if bias else written


def read_dictionary(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a dictionary under the names used here.

    Args:
        state: a state dict with `W_enc` `(width, latents)`, `b_enc`, `W_dec` `(latents, width)`, `b_dec` and perhaps
            `threshold`, or with the layers `encoder` and `decoder` as `nn.Linear` saves them.

    Raises:
        SpecError: something is missing or not understood, or shapes do not fit.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        target, transposed = _AS_LINEAR.get(name, (name, False))
        found[target] = (value.T if transposed else value).detach().clone().contiguous()
    missing = [name for name in NAMES if name not in found]
    strange = sorted(found.keys() - {*NAMES, "threshold"})
    if missing or strange:
        raise SpecError(
            f"the state dict of a dictionary has {', '.join(NAMES)} and perhaps threshold, or encoder.weight, "
            f"encoder.bias, decoder.weight, decoder.bias; found {', '.join(sorted(state))}"
        )
    width, latents = found["W_enc"].shape
    wanted = {"b_enc": (latents,), "W_dec": (latents, width), "b_dec": (width,), "threshold": (latents,)}
    for name, shape in wanted.items():
        if name in found and tuple(found[name].shape) != shape:
            raise SpecError(
                f"{name} has shape {tuple(found[name].shape)}; with W_enc {(width, latents)} it has {shape}"
            )
    return found


def read_saelens(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a folder as SAELens writes it: `cfg.json` and `sae_weights.safetensors`.

    Returns:
        `{"activation": "relu" or "jumprelu", "subtract_decoder_bias": ...}`, and the weights as `read_dictionary`
        returns them.

    Raises:
        SpecError: a file is missing, or the autoencoder is of a kind that is not supported; it says which.
    """
    place = Path(folder)
    missing = [name for name in ("cfg.json", "sae_weights.safetensors") if not (place / name).is_file()]
    if missing:
        raise SpecError(f"{place} is no folder of SAELens: it has no {' and no '.join(missing)}")
    cfg = json.loads((place / "cfg.json").read_text(encoding="utf-8"))
    architecture, scaling = cfg.get("architecture", "standard"), cfg.get("normalize_activations", "none")
    function = cfg.get("activation_fn", cfg.get("activation_fn_str", "relu"))
    if architecture not in _ACTIVATIONS or function != "relu":
        raise SpecError(
            f"{place}: architecture {architecture!r} with activation {function!r} is not supported; known: "
            f"{', '.join(_ACTIVATIONS)}, with activation 'relu'"
        )
    # SAELens itself takes "expected_average_only_in" as "none" here: its factor is in the weights already.
    if scaling not in ("none", "expected_average_only_in"):
        raise SpecError(f"{place}: normalize_activations={scaling!r} is not supported; known: 'none'")
    settings = {
        "activation": _ACTIVATIONS[architecture],
        "subtract_decoder_bias": bool(cfg.get("apply_b_dec_to_input", True)),
    }
    tensors = load_file(place / "sae_weights.safetensors")
    tensors.pop("scaling_factor", None)  # of a fine-tuning that is only applied where its configuration asks for it
    return settings, read_dictionary(tensors)
