"""Edits of the latents of sparse autoencoders."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from .._errors import SpecError
from ..subspaces import Choice, Dictionary, Partition, coordinate_mask, read_dictionary, read_saelens
from .base import Intervention, SourceKind

LatentOperation = Literal["swap", "add", "ablate", "clamp"]
"""What is done to a latent: it becomes the source's, `value` is added, it becomes zero, it becomes `value`."""

Self = TypeVar("Self", bound="DictionaryIntervention")


class DictionaryIntervention(Intervention):
    """Base class of edits of the latents of a frozen dictionary.

    The base moves by what the decoder makes of the latents' change. So its reconstruction error is kept, and where no
    latent changes the result is the base, bit for bit. The same dictionary is used for every unit
    (`keep_last_dim=True`): it was trained on single vectors.

    Args:
        embed_dim: width of the vectors.
        latent_dim: how many latents; by default `low_rank_dimension`, which a configuration can give.
        operation: `swap`: the chosen latents become the source's; `add`: `value` is added to them; `ablate`: they
            become zero; `clamp`: they become `value`. Only `swap` needs a source.
        value: of `add` and `clamp`, in units of the latents.
        latents: the numbers of the latents that are edited when a call chooses no subspaces; `None` for all.
        include_error: keep the base's reconstruction error; False returns what the decoder alone makes.
        subtract_decoder_bias: whether the decoder's bias is subtracted before encoding.
        **kwargs: as for `Intervention`; a partition is one of the latents.

    Raises:
        SpecError: the operation is unknown, a latent does not exist, or the number of latents is not given.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        latent_dim: int | None = None,
        operation: LatentOperation = "swap",
        value: float = 0.0,
        latents: Sequence[int] | None = None,
        include_error: bool = True,
        subtract_decoder_bias: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)  # without embed_dim: a partition is one of the latents, of which there are more
        self.embed_dim = embed_dim
        count = self.low_rank_dimension if latent_dim is None else latent_dim
        if count is None:
            raise SpecError(f"{type(self).__name__} needs latent_dim (in a configuration: low_rank_dimension)")
        if operation not in get_args(LatentOperation):
            raise SpecError(f"operation is one of {', '.join(get_args(LatentOperation))}; found {operation!r}")
        if latents is not None and (not latents or any(not 0 <= latent < count for latent in latents)):
            raise SpecError(f"latents are numbers from 0 to {count - 1}, at least one; found {list(latents)}")
        self.limit_partition(count)
        self.latent_dim, self.operation, self.value = count, operation, value
        self.latents = None if latents is None else sorted({int(latent) for latent in latents})
        self.include_error, self.subtract_decoder_bias = include_error, subtract_decoder_bias
        self.source_kind: SourceKind = "run" if operation == "swap" else "none"
        self.dictionary = Dictionary(
            embed_dim,
            count,
            thresholds=self.activation() == "jumprelu",
            subtract_decoder_bias=subtract_decoder_bias,
        )

    @classmethod
    @abstractmethod
    def activation(cls) -> str:
        """Return what its latents are made with: `relu` or `jumprelu`."""

    @classmethod
    def from_state_dict(cls: type[Self], state: Mapping[str, Tensor], **options: Any) -> Self:
        """Make one of the weights of a dictionary.

        Args:
            state: `W_enc` `(width, latents)`, `b_enc`, `W_dec` `(latents, width)`, `b_dec` and, for JumpReLU,
                `threshold`; or the layers `encoder` and `decoder` as `nn.Linear` saves them.
            **options: as for the class.

        Raises:
            SpecError: something is missing or too much, or shapes do not fit.
        """
        found = read_dictionary(state)
        jumps = cls.activation() == "jumprelu"
        if ("threshold" in found) != jumps:
            raise SpecError(
                f"{cls.__name__} has {'a' if jumps else 'no'} threshold, the state dict has "
                f"{'one' if 'threshold' in found else 'none'}: JumpReLUAutoencoderIntervention has one, "
                "AutoencoderIntervention has none"
            )
        width, latents = found["W_enc"].shape
        one = cls(embed_dim=width, latent_dim=latents, **options)
        one.dictionary.load_state_dict(found, assign=True)
        return one

    @classmethod
    def from_saelens(cls: type[Self], folder: str | os.PathLike[str], **options: Any) -> Self:
        """Make one of a folder as SAELens writes it: `cfg.json` and `sae_weights.safetensors`.

        Args:
            folder: on this machine.
            **options: as for the class.

        Raises:
            SpecError: a file is missing, or the autoencoder is of another kind.
        """
        settings, tensors = read_saelens(folder)
        if settings["activation"] != cls.activation():
            raise SpecError(
                f"{folder} holds a dictionary with {settings['activation']}; {cls.__name__} has {cls.activation()}"
            )
        return cls.from_state_dict(tensors, **{"subtract_decoder_bias": settings["subtract_decoder_bias"], **options})

    def encode(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... latents"]:
        """Return the latents of `x`."""
        return self.dictionary.read(x)

    def decode(self, latents: Float[Tensor, "... latents"]) -> Float[Tensor, "... width"]:
        """Return what the decoder makes of latents."""
        return self.dictionary.write(latents)

    def chosen(self, base: Tensor, subspaces: Choice | None) -> Tensor | None:
        """Mark the latents that a call edits: those of its subspaces, or else `latents`."""
        if subspaces is None and self.latents is not None:
            mask = coordinate_mask(((0,),), Partition((tuple(self.latents),)), base.shape[-1])
            return mask.to(base.device).expand_as(base)
        return super().chosen(base, subspaces)

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return the base with its chosen latents edited."""
        latents = self.encode(base)
        change = self.restricted(self._edited(latents, base, source) - latents, subspaces)
        if not self.include_error:
            return self.decode(latents + change).to(base.dtype)
        return (base.to(change.dtype) + self.dictionary.write(change, bias=False)).to(base.dtype)

    def _edited(self, latents: Tensor, base: Tensor, source: Tensor | None) -> Tensor:
        """Return all latents as the operation makes them."""
        if self.operation == "swap":
            return self.encode(self.given(base, source))
        if self.operation == "add":
            return latents + self.value
        return torch.full_like(latents, self.value if self.operation == "clamp" else 0.0)


@final
class AutoencoderIntervention(DictionaryIntervention):
    """Edit the latents of a sparse autoencoder with ReLU (Bricken et al. 2023; Cunningham et al. 2023).

    The arguments are those of `DictionaryIntervention`; without `from_state_dict` or `from_saelens` its weights are
    random. Cunningham et al.: arXiv:2309.08600.

    >>> sae = AutoencoderIntervention(embed_dim=2, latent_dim=4)
    >>> base = torch.randn(1, 1, 2)
    >>> torch.equal(sae(base, base), base)
    True
    """

    @classmethod
    def activation(cls) -> str:
        """Return `relu`."""
        return "relu"


@final
class JumpReLUAutoencoderIntervention(DictionaryIntervention):
    """Edit the latents of a sparse autoencoder with JumpReLU (Rajamanoharan et al. 2024, arXiv:2407.14435).

    A latent is zero up to a threshold of its own. The arguments are those of `DictionaryIntervention`; without
    `from_state_dict` or `from_saelens` its weights are random.

    >>> steer = JumpReLUAutoencoderIntervention(embed_dim=2, latent_dim=4, operation="clamp", value=3.0, latents=[1])
    >>> steer(torch.randn(1, 1, 2)).shape
    torch.Size([1, 1, 2])
    """

    @classmethod
    def activation(cls) -> str:
        """Return `jumprelu`."""
        return "jumprelu"
