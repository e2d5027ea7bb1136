"""Edits of the latents of sparse autoencoders."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, final

from jaxtyping import Float
from torch import Tensor

from .._checked import checked
from .._errors import SpecError
from ..operations import Clamp, Operation, Shift, SourceKind, Zero
from ..subspaces import Choice, Dictionary
from ..subspaces.dictionary import Activation
from .edit import edited
from .intervention import Intervention
from .static import SWAP

LatentOperation = Literal["swap", "add", "ablate", "clamp"]
"""What is done to a latent: it becomes the source's, `value` is added, it becomes zero, it becomes `value`."""

_ZERO = Zero()

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

    @checked
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
        if latents is not None and (not latents or any(not 0 <= latent < count for latent in latents)):
            raise SpecError(f"latents are numbers from 0 to {count - 1}, at least one; found {list(latents)}")
        self.limit_partition(count)
        self.latent_dim, self.operation, self.value = count, operation, value
        self.latents = None if latents is None else sorted({int(latent) for latent in latents})
        self._usual = None if self.latents is None else tuple(self.latents)
        self.include_error, self.subtract_decoder_bias = include_error, subtract_decoder_bias
        self.source_kind: SourceKind = "run" if operation == "swap" else "none"
        self.dictionary = Dictionary(
            embed_dim,
            count,
            activation=self.activation(),
            subtract_decoder_bias=subtract_decoder_bias,
            include_error=include_error,
        )

    @classmethod
    @abstractmethod
    def activation(cls) -> Activation:
        """Return what its latents are made with: `relu` or `jumprelu`."""

    @classmethod
    @checked
    def from_state_dict(cls: type[Self], state: Mapping[str, Tensor], **options: Any) -> Self:
        """Make one of the weights of a dictionary.

        Args:
            state: `W_enc` `(width, latents)`, `b_enc`, `W_dec` `(latents, width)`, `b_dec` and, for JumpReLU,
                `threshold`; or the layers `encoder` and `decoder` as `nn.Linear` saves them.
            **options: as for the class.

        Raises:
            SpecError: something is missing or too much, or shapes do not fit.
        """
        found = Dictionary.from_state_dict(state)
        if found.activation != cls.activation():
            jumps = cls.activation() == "jumprelu"
            raise SpecError(
                f"{cls.__name__} has {'a' if jumps else 'no'} threshold, the state dict has "
                f"{'none' if jumps else 'one'}: JumpReLUAutoencoderIntervention has one, AutoencoderIntervention has "
                "none; SubspaceIntervention(operation, Dictionary.from_state_dict(state)) takes any"
            )
        return cls._of(found, options)

    @classmethod
    @checked
    def from_saelens(cls: type[Self], folder: str | os.PathLike[str], **options: Any) -> Self:
        """Make one of a folder as SAELens writes it: `cfg.json` and `sae_weights.safetensors`.

        Args:
            folder: on this machine.
            **options: as for the class.

        Raises:
            SpecError: a file is missing, or the autoencoder is of another kind.
        """
        found = Dictionary.from_saelens(folder)
        if (found.activation, found.normalise, found.inputs) != (cls.activation(), "none", None):
            what = "transcoder" if found.inputs else "dictionary"
            raise SpecError(
                f"{folder} holds a {what} with {found.activation} and normalisation {found.normalise!r}; "
                f"{cls.__name__} has {cls.activation()} and 'none': "
                "SubspaceIntervention(operation, Dictionary.from_saelens(folder)) takes any"
            )
        return cls._of(found, {"subtract_decoder_bias": found.subtract_decoder_bias, **options})

    @classmethod
    def _of(cls: type[Self], found: Dictionary, options: Mapping[str, Any]) -> Self:
        one = cls(embed_dim=found.width, latent_dim=found.size, **options)
        one.dictionary.load_state_dict(found.state_dict(), assign=True)
        return one

    def encode(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... latents"]:
        """Return the latents of `x`."""
        return self.dictionary.encode(x)

    def decode(self, latents: Float[Tensor, "... latents"]) -> Float[Tensor, "... width"]:
        """Return what the decoder makes of latents."""
        return self.dictionary.decode(latents)

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return the base with its chosen latents edited."""
        return edited(self, self._made(), self.dictionary.basis(), base, source, subspaces)

    def _made(self) -> Operation:
        """Return what is done to the latents."""
        if self.operation == "swap":
            return SWAP
        if self.operation == "ablate":
            return _ZERO
        return Shift(self.value) if self.operation == "add" else Clamp(self.value)


@final
class AutoencoderIntervention(DictionaryIntervention):
    """Edit the latents of a sparse autoencoder with ReLU (Bricken et al. 2023; Cunningham et al. 2023).

    The arguments are those of `DictionaryIntervention`; without `from_state_dict` or `from_saelens` its weights are
    random. Cunningham et al.: arXiv:2309.08600.

    >>> import torch
    >>> sae = AutoencoderIntervention(embed_dim=2, latent_dim=4)
    >>> base = torch.randn(1, 1, 2)
    >>> torch.equal(sae(base, base), base)
    True
    """

    @classmethod
    def activation(cls) -> Activation:
        """Return `relu`."""
        return "relu"


@final
class JumpReLUAutoencoderIntervention(DictionaryIntervention):
    """Edit the latents of a sparse autoencoder with JumpReLU (Rajamanoharan et al. 2024, arXiv:2407.14435).

    A latent is zero up to a threshold of its own. The arguments are those of `DictionaryIntervention`; without
    `from_state_dict` or `from_saelens` its weights are random.

    >>> import torch
    >>> steer = JumpReLUAutoencoderIntervention(embed_dim=2, latent_dim=4, operation="clamp", value=3.0, latents=[1])
    >>> steer(torch.randn(1, 1, 2)).shape
    torch.Size([1, 1, 2])
    """

    @classmethod
    def activation(cls) -> Activation:
        """Return `jumprelu`."""
        return "jumprelu"
