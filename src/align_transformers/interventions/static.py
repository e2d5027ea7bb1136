"""Interventions without parameters: swap, add, subtract, zero, mean, noise, skip, collect."""

from __future__ import annotations

from typing import Any, ClassVar, final

from torch import Tensor

from .._checked import checked
from ..operations import Add, Collect, Mean, Noise, SourceKind, Subtract, Swap, Zero
from ..subspaces import WHOLE, Choice
from .edit import edited
from .intervention import ConstantSourceIntervention, Intervention, SourcelessIntervention

SWAP = Swap()
_ADD, _SUBTRACT, _ZERO, _COLLECT = Add(), Subtract(), Zero(), {detach: Collect(detach) for detach in (False, True)}


@final
class VanillaIntervention(Intervention):
    """Interchange intervention: the base's value becomes the source's (Geiger et al. 2020, arXiv:2004.14623).

    >>> import torch
    >>> VanillaIntervention()(torch.zeros(1, 1, 2), torch.ones(1, 1, 2)).tolist()
    [[[1.0, 1.0]]]
    """

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return `source`."""
        return edited(self, SWAP, WHOLE, base, source, subspaces)


@final
class AdditionIntervention(Intervention):
    """Add the source to the base (steering vectors).

    >>> import torch
    >>> AdditionIntervention(source_representation=torch.ones(2))(torch.zeros(1, 1, 2)).tolist()
    [[[1.0, 1.0]]]
    """

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return `base + source`."""
        return edited(self, _ADD, WHOLE, base, source, subspaces)


@final
class SubtractionIntervention(Intervention):
    """Subtract the source from the base.

    >>> import torch
    >>> SubtractionIntervention()(torch.ones(1, 1, 2), torch.ones(1, 1, 2)).tolist()
    [[[0.0, 0.0]]]
    """

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return `base - source`."""
        return edited(self, _SUBTRACT, WHOLE, base, source, subspaces)


@final
class ZeroIntervention(ConstantSourceIntervention):
    """Zero ablation.

    >>> import torch
    >>> ZeroIntervention(subspace_partition=[[0, 1], [1, 3]])(torch.ones(1, 1, 3), subspaces=((1,),)).tolist()
    [[[1.0, 0.0, 0.0]]]
    """

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return zeros."""
        return edited(self, _ZERO, WHOLE, base, source, subspaces)


@final
class MeanIntervention(ConstantSourceIntervention):
    """Mean ablation: the value becomes the mean of activations collected before.

    Args:
        activations: `(..., width)`; the mean is over all axes but the last. Or give the mean itself as
            `source_representation`, `(width,)`, here or in the call.
        **kwargs: as for `Intervention`.

    >>> import torch
    >>> MeanIntervention(activations=torch.tensor([[0.0, 2.0], [2.0, 4.0]]))(torch.zeros(1, 1, 2)).tolist()
    [[[1.0, 3.0]]]
    """

    source_kind: SourceKind = "constant"
    tensor_arguments: ClassVar[tuple[str, ...]] = ("source_representation", "activations")

    @checked
    def __init__(self, *, activations: Tensor | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if activations is not None:
            self.set_source_representation(Mean.of(activations).values)

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return the mean."""
        return edited(self, SWAP, WHOLE, base, source, subspaces)


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

    >>> import torch
    >>> noise = NoiseIntervention(noise_level=3.0, std=0.1, seed=1)
    >>> torch.equal(noise(torch.zeros(1, 2, 4)), noise(torch.zeros(1, 5, 4))[:, :2])
    True
    """

    @checked
    def __init__(self, *, noise_level: float = 3.0, std: float = 1.0, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.noise_level, self.std, self.seed = noise_level, std, seed

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return `base + noise_level * std * noise`."""
        noise = Noise(self.noise_level, self.std, self.seed)
        return edited(self, noise, WHOLE, base, source, subspaces)


@final
class SkipIntervention(Intervention):
    """Skip the module: its output becomes the input that it had on the source run.

    >>> import torch
    >>> SkipIntervention()(torch.zeros(1, 1, 2), torch.ones(1, 1, 2)).tolist()
    [[[1.0, 1.0]]]
    """

    reads_module_input = True

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return `source`, which the engine read at the module's input."""
        return edited(self, SWAP, WHOLE, base, source, subspaces)


@final
class CollectIntervention(SourcelessIntervention):
    """Look, do not touch: the value comes back in `collected_activations`.

    Where gradients are on, the pass goes on with the very tensor that comes back, so that `torch.autograd.grad` with
    respect to it is that of a hook. Parts of a vector, and what a module called several times gave, are copies beside
    the graph of the output: gradients of them reach the model, but none of the output reaches them.

    Args:
        detach: give copies that hold no graph.
        **kwargs: as for `Intervention`.

    >>> import torch
    >>> CollectIntervention(subspace_partition=[[0, 1], [1, 3]])(torch.ones(1, 1, 3), subspaces=((1,),)).shape
    torch.Size([1, 1, 2])
    """

    writes = False

    @checked
    def __init__(self, *, detach: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.detach = detach

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return `base`, or its chosen coordinates side by side, in ascending order.

        Raises:
            SpecError: the examples' subspaces differ in size.
        """
        return edited(self, _COLLECT[self.detach], WHOLE, base, source, subspaces)
