"""Dictionaries of latents: sparse autoencoders and transcoders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._checked import checked
from .._errors import SpecError
from .basis import Coordinates, uncast
from .partition import Choice
from .saelens import read_dictionary, read_saelens
from .subspace import Subspace

Activation = Literal["relu", "jumprelu", "topk", "gated"]
"""How latents are made of what the encoder gives, z: `relu`: what is above 0; `jumprelu`: what is above a threshold of
its own; `topk`: the k largest; `gated`: a latent is on where z is above 0, and has a magnitude of its own."""

Normalisation = Literal["none", "constant_norm_rescale", "layer_norm"]
"""What is done to a vector before it is encoded, and undone after: nothing; it gets the length sqrt(width); it is
centred and divided by its standard deviation."""

_EPSILON = 1e-5  # SAELens adds it to the standard deviation that it divides by, and not to the one it multiplies by


@final
class Dictionary(Subspace):
    """A frozen sparse autoencoder, or transcoder: latents are read from a vector and written back.

    Latents are made (`activation`) of `(x - b_dec) @ W_enc + b_enc`. A change of latents moves the vector by what the
    decoder `W_dec` makes of it, so its reconstruction error is kept. Made by hand its weights are random;
    `from_saelens` and `from_state_dict` read trained ones.

    A transcoder (`inputs`) reads the latents off a module's input, and its decoder writes to the module's output. In a
    model both are of one width; an intervention that is called by hand may have two.

    Args:
        width: coordinates of the vectors; of a transcoder, of the module's output.
        latents: how many latents.
        activation: see `Activation` (JumpReLU: arXiv:2407.14435; TopK: arXiv:2406.04093; gated: arXiv:2404.16014).
        k: of `topk`.
        normalise: see `Normalisation`.
        subtract_decoder_bias: whether `b_dec` is subtracted before encoding; a transcoder never does it.
        include_error: False: an edited vector is what the decoder makes of its latents, without the error.
        inputs: makes it a transcoder: the width of the module's input.
        skip: a transcoder's output has `W_skip @ x`, too, which matters without the error only.

    Raises:
        SpecError: an argument is unknown, or does not go with another.

    >>> dictionary = Dictionary(2, 3)
    >>> dictionary.read(torch.zeros(1, 2)).shape
    torch.Size([1, 3])
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor
    b_gate: Tensor
    b_mag: Tensor
    r_mag: Tensor
    W_skip: Tensor
    width: int
    size: int

    @checked
    def __init__(
        self,
        width: int,
        latents: int,
        *,
        activation: Activation = "relu",
        k: int | None = None,
        normalise: Normalisation = "none",
        subtract_decoder_bias: bool = True,
        include_error: bool = True,
        inputs: int | None = None,
        skip: bool = False,
    ) -> None:
        super().__init__(width, latents)
        if width < 1 or latents < 1 or (inputs is not None and inputs < 1):
            raise SpecError(f"a dictionary has latents of vectors; asked for {latents} latents of width {width}")
        if (activation == "topk") != (k is not None) or (k is not None and not 1 <= k <= latents):
            raise SpecError(f"topk has a k, from 1 to the {latents} latents, and no other activation has; found k={k}")
        if skip and inputs is None:
            raise SpecError("only a transcoder has a skip connection: give the width of its inputs")
        self.activation, self.k, self.normalise, self.inputs, self.skip = activation, k, normalise, inputs, skip
        self.subtract_decoder_bias, self.include_error = subtract_decoder_bias, include_error
        columns = nn.functional.normalize(torch.randn(latents, width), dim=-1)
        rows = columns if inputs is None else nn.functional.normalize(torch.randn(latents, inputs), dim=-1)
        self.register_buffer("W_enc", rows.T.contiguous())
        for name in {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}.get(
            activation, ("b_enc",)
        ):
            self.register_buffer(name, torch.zeros(latents))
        self.register_buffer("W_dec", columns)
        self.register_buffer("b_dec", torch.zeros(width))
        if skip and inputs is not None:
            self.register_buffer("W_skip", torch.zeros(width, inputs))

    @classmethod
    @checked
    def from_state_dict(cls, state: Mapping[str, Tensor], **options: Any) -> Dictionary:
        """Make one of the weights of a dictionary.

        Args:
            state: see `read_dictionary`; a `threshold` makes it `jumprelu`, `b_gate` makes it `gated`.
            **options: as for the class, without the shapes; `k` makes it `topk`; `transcoder=True` a transcoder, which
                a `W_skip` and unequal widths do, too.

        Raises:
            SpecError: something is missing or too much, or shapes do not fit.
        """
        transcoder = bool(options.pop("transcoder", False))
        found = read_dictionary(state, transcoder=transcoder)
        inputs, (latents, width) = len(found["W_enc"]), found["W_dec"].shape
        kinds = {"threshold": "jumprelu", "b_gate": "gated"}
        activation = next((kind for name, kind in kinds.items() if name in found), "relu")
        shapes: dict[str, Any] = {"activation": "topk" if options.get("k") is not None else activation}
        if transcoder or "W_skip" in found:
            shapes |= {"inputs": inputs, "skip": "W_skip" in found}
        one = cls(width, latents, **shapes, **options)
        one.load_state_dict(found, assign=True)
        return one

    @classmethod
    @checked
    def from_saelens(
        cls, folder: str | os.PathLike[str], *, scaling_factor: float | None = None, include_error: bool = True
    ) -> Dictionary:
        """Make one of a folder as SAELens writes it: `cfg.json` and `sae_weights.safetensors`.

        Standard, JumpReLU, TopK, BatchTopK and gated autoencoders are read, their normalisations, and transcoders with
        ReLU or JumpReLU, with a skip connection or without.

        Args:
            folder: on this machine.
            scaling_factor: of `expected_average_only_in`: what vectors are multiplied by before they are encoded, for
                weights into which it is not folded. SAELens takes it from its list of releases.
            include_error: as for the class.

        Raises:
            SpecError: a file is missing, or the dictionary is of another kind.
        """
        settings, tensors = read_saelens(folder, scaling_factor=scaling_factor)
        return cls.from_state_dict(tensors, **settings, include_error=include_error)

    def arguments(self) -> dict[str, Any]:
        """Return all arguments."""
        names = "activation", "k", "normalise", "subtract_decoder_bias", "include_error", "inputs", "skip"
        return {"width": self.width, "latents": self.size, **{name: getattr(self, name) for name in names}}

    def basis(self, base: Tensor | None = None, choice: Choice | None = None) -> Latents:
        """Return the latents; of a transcoder `base` is what the module reads."""
        return Latents(self, None if self.inputs is None else base)

    def encode(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... latents"]:
        """Return the latents of `x`, in the precision of the dictionary or that of `x`, whichever is higher.

        Raises:
            SpecError: `x` has another width.
        """
        if x.shape[-1] != len(self.W_enc):
            raise SpecError(f"the dictionary is one of width {len(self.W_enc)}; the vectors have {x.shape[-1]}")
        x = x.to(torch.promote_types(x.dtype, self.W_enc.dtype))
        inner = self._normalised(x)[0]
        if self.subtract_decoder_bias and self.inputs is None:
            inner = inner - self.b_dec.to(x)
        with uncast(x):
            before = inner @ self.W_enc.to(x)
        return self._activated(before)

    def decode(self, latents: Float[Tensor, "... latents"], of: Tensor | None = None) -> Float[Tensor, "... width"]:
        """Return what the decoder makes of latents.

        Args:
            latents: `(..., latents)`.
            of: the vectors whose latents they were: they say what a normalisation undoes, and what is skipped.
        """
        written = self._product(latents) + self.b_dec.to(latents)
        if of is None or (self.inputs is None and self.normalise == "none"):
            return written
        x = of.to(latents)
        if self.inputs is not None:
            with uncast(x):
                return written + x @ self.W_skip.T.to(x) if self.skip else written
        _, centre, scale = self._normalised(x)
        return written * scale + centre

    def lift(self, change: Float[Tensor, "... latents"], of: Tensor | None = None) -> Float[Tensor, "... width"]:
        """Return what a change of latents changes in the vectors; for `of` see `decode`."""
        step = self._product(change)
        if of is None or self.inputs is not None or self.normalise == "none":
            return step
        return step * self._normalised(of.to(change))[2]

    def _product(self, latents: Tensor) -> Tensor:
        with uncast(latents):
            return latents @ self.W_dec.to(latents)

    def _normalised(self, x: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """Return vectors normalised, where their centre was, and what undoes their scaling."""
        if self.normalise == "constant_norm_rescale":
            scale = (x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5).clamp_min(torch.finfo(x.dtype).tiny)
            return x / scale, 0.0, scale
        if self.normalise == "layer_norm":
            centre = x.mean(-1, keepdim=True)
            deviation = (x - centre).std(-1, keepdim=True)
            return (x - centre) / (deviation + _EPSILON), centre, deviation
        return x, 0.0, 1.0

    def _activated(self, before: Tensor) -> Tensor:
        """Return the latents of what the encoder gives without its bias."""
        if self.activation == "gated":
            magnitude = torch.relu(before * self.r_mag.to(before).exp() + self.b_mag.to(before))
            return torch.where(before + self.b_gate.to(before) > 0, magnitude, 0)
        before = before + self.b_enc.to(before)
        latents = torch.relu(before)
        if self.activation == "jumprelu":
            return torch.where(before > self.threshold.to(before), latents, 0)
        if self.k is None:
            return latents
        largest = before.topk(self.k, dim=-1).indices
        return torch.zeros_like(latents).scatter(-1, largest, latents.gather(-1, largest))


@final
@dataclass(frozen=True, eq=False)
class Latents(Coordinates):
    """The latents of a dictionary.

    Args:
        dictionary: whose.
        of: what a transcoder reads them off.
    """

    dictionary: Dictionary
    of: Tensor | None = None

    def read(self, x: Float[Tensor, " ..."]) -> Float[Tensor, " ..."]:
        """Return the latents of `x`."""
        return self.dictionary.encode(x)

    def moved(self, x: Float[Tensor, " ..."], change: Tensor, at: Tensor | None = None) -> Float[Tensor, " ..."]:
        """Return `x` moved by what the decoder makes of the change; without the error, what it makes of the latents."""
        of = x if self.of is None else self.of
        if self.dictionary.include_error:
            return (x.to(change.dtype) + self.dictionary.lift(change, of)).to(x.dtype)
        return self.dictionary.decode((self.read(of) if at is None else at) + change, of).to(x.dtype)
