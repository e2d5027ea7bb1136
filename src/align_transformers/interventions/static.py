"""Interventions without parameters: swap, add, subtract, zero, mean, noise, skip, collect."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor

from .._errors import SpecError
from ..subspaces import Choice
from .base import ConstantSourceIntervention, Intervention, SourceKind, SourcelessIntervention


@final
class VanillaIntervention(Intervention):
    """Interchange intervention: the base's value becomes the source's (Geiger et al. 2020, arXiv:2004.14623).

    >>> VanillaIntervention()(torch.zeros(1, 1, 2), torch.ones(1, 1, 2)).tolist()
    [[[1.0, 1.0]]]
    """

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return `source`."""
        return self.within(base, self.given(base, source), subspaces)


@final
class AdditionIntervention(Intervention):
    """Add the source to the base (steering vectors).

    >>> AdditionIntervention(source_representation=torch.ones(2))(torch.zeros(1, 1, 2)).tolist()
    [[[1.0, 1.0]]]
    """

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return `base + source`."""
        return self.within(base, base + self.given(base, source), subspaces)


@final
class SubtractionIntervention(Intervention):
    """Subtract the source from the base.

    >>> SubtractionIntervention()(torch.ones(1, 1, 2), torch.ones(1, 1, 2)).tolist()
    [[[0.0, 0.0]]]
    """

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return `base - source`."""
        return self.within(base, base - self.given(base, source), subspaces)


@final
class ZeroIntervention(ConstantSourceIntervention):
    """Zero ablation.

    >>> ZeroIntervention(subspace_partition=[[0, 1], [1, 3]])(torch.ones(1, 1, 3), subspaces=((1,),)).tolist()
    [[[1.0, 0.0, 0.0]]]
    """

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return zeros."""
        return self.within(base, torch.zeros_like(base), subspaces)


@final
class MeanIntervention(ConstantSourceIntervention):
    """Mean ablation: the value becomes the mean of activations collected before.

    Args:
        activations: `(..., width)`; the mean is over all axes but the last. Or give the mean itself as
            `source_representation`, `(width,)`, here or in the call.
        **kwargs: as for `Intervention`.

    >>> MeanIntervention(activations=torch.tensor([[0.0, 2.0], [2.0, 4.0]]))(torch.zeros(1, 1, 2)).tolist()
    [[[1.0, 3.0]]]
    """

    source_kind: SourceKind = "constant"
    tensor_arguments: ClassVar[tuple[str, ...]] = ("source_representation", "activations")

    def __init__(self, *, activations: Tensor | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if activations is not None:
            self.set_source_representation(activations.reshape(-1, activations.shape[-1]).mean(0))

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return the mean."""
        return self.within(base, self.given(base, source), subspaces)


@final
class NoiseIntervention(SourcelessIntervention):
    """Add Gaussian noise, the same at every call (Meng et al. 2022, arXiv:2202.05262).

    The k-th unit gets the same noise in every example, however many examples and units there are, so that what happens
    to an example does not depend on its batch, and runs can be compared pairwise. For several samples vary `seed`.

    Args:
        noise_level: how many standard deviations.
        std: the standard deviation that `noise_level` counts in, in units of the activation; causal tracing takes that
            of the subject tokens' embeddings.
        seed: of the noise.
        **kwargs: as for `Intervention`.

    >>> noise = NoiseIntervention(noise_level=3.0, std=0.1, seed=1)
    >>> torch.equal(noise(torch.zeros(1, 2, 4)), noise(torch.zeros(1, 5, 4))[:, :2])
    True
    """

    def __init__(self, *, noise_level: float = 3.0, std: float = 1.0, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.noise_level, self.std, self.seed = noise_level, std, seed

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return `base + noise_level * std * noise`."""
        generator = torch.Generator().manual_seed(self.seed)
        units = base[0].numel() // max(base.shape[-1], 1) if len(base) else 0
        drawn = [torch.randn(base.shape[-1], generator=generator) for _ in range(units)]
        noise = torch.stack(drawn).view(base.shape[1:]) if drawn else torch.zeros(base.shape[1:])
        return self.within(base, base + (noise * (self.noise_level * self.std)).to(base), subspaces)


@final
class SkipIntervention(Intervention):
    """Skip the module: its output becomes the input that it had on the source run.

    >>> SkipIntervention()(torch.zeros(1, 1, 2), torch.ones(1, 1, 2)).tolist()
    [[[1.0, 1.0]]]
    """

    reads_module_input: ClassVar[bool] = True

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return `source`, which the engine read at the module's input."""
        return self.within(base, self.given(base, source), subspaces)


@final
class CollectIntervention(SourcelessIntervention):
    """Look, do not touch: the value comes back in `collected_activations`.

    >>> CollectIntervention(subspace_partition=[[0, 1], [1, 3]])(torch.ones(1, 1, 3), subspaces=((1,),)).shape
    torch.Size([1, 1, 2])
    """

    writes: ClassVar[bool] = False

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return `base`, or its chosen coordinates side by side, in ascending order.

        Raises:
            SpecError: the examples' subspaces differ in size.
        """
        mask = self.chosen(base, subspaces)
        if mask is None:
            return base
        sizes = sorted(set(mask.sum(-1).flatten().tolist()))
        if len(sizes) > 1:
            raise SpecError(f"subspaces of {sizes} coordinates cannot be collected in one call: choose equal sizes")
        return base[mask].view(*base.shape[:-1], sizes[0] if sizes else 0)
