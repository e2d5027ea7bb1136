"""Frozen interventions fitted from labelled activations: steering vectors, probe directions, erasure."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, TypeVar, final

from jaxtyping import Float
from torch import Tensor

from .._checked import checked
from .._errors import SpecError
from ..operations import Mean, Operation, Shift, SourceKind, Zero
from ..subspaces import Basis, Choice
from ..subspaces.concepts import Eraser, ErasureMethod, difference_of_means, fit_eraser, kept_in, linear_probe
from .edit import edited
from .intervention import Intervention, SourcelessIntervention
from .static import SWAP

DirectionOperation = Literal["add", "swap", "ablate"]
"""What is done along a direction: `strength` times the vector is added; what the base has along it becomes what the
source has; what the base has along it becomes zero, or the mean."""

_ERASER = ("mean", "into", "back")
_ZERO = Zero()

Self = TypeVar("Self", bound="DirectionIntervention")


class DirectionIntervention(Intervention):
    """Base class of edits along one fitted, frozen direction. The same one is used for every unit.

    Args:
        embed_dim: width of the vectors.
        operation: `add`: `strength` times the fitted vector is added, at its fitted length; `swap`: the base's
            coordinate along it becomes the source's; `ablate`: the coordinate becomes zero. Only `swap` needs a source.
        strength: of `add`; negative steers away.
        keep_mean: `ablate` to the mean coordinate of the activations it was fitted from, instead of zero.
        **kwargs: as for `Intervention`; the only coordinate is the one along the direction, so an example for which
            subspaces name no part is left alone.

    Raises:
        SpecError: the operation is unknown; as for `Intervention`.
    """

    vector: Tensor | None
    mean: Tensor | None

    @checked
    def __init__(
        self,
        *,
        embed_dim: int,
        operation: DirectionOperation = "add",
        strength: float = 1.0,
        keep_mean: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(embed_dim=embed_dim, **kwargs)
        self.limit_partition(1)
        self.operation, self.strength, self.keep_mean = operation, strength, keep_mean
        self.source_kind: SourceKind = "run" if operation == "swap" else "none"
        for name in ("vector", "mean"):
            self.register_buffer(name, None)

    @property
    def direction(self) -> Float[Tensor, " width"]:
        """The direction, of length 1.

        Raises:
            SpecError: it has not been fitted.
        """
        (vector,) = self._kept_vectors("vector")
        return vector / vector.norm()

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return the base edited along the direction."""
        basis = Basis.orthonormal(self.direction.unsqueeze(1))
        return edited(self, self._made(basis, basis.promoted(base)), basis, base, source, subspaces)

    def _made(self, basis: Basis, base: Tensor) -> Operation:
        """Return what is done to the coordinate along the direction, in the precision of `base`."""
        vector, mean = self._kept_vectors("vector", "mean")
        if self.operation == "swap":
            return SWAP
        if self.operation == "add":
            return Shift(self.strength * vector.norm().to(base))
        return Mean(basis.read(mean.to(base))) if self.keep_mean else Zero()

    def _kept_vectors(self, *names: str) -> list[Tensor]:
        return self._fitted("direction", names, "fit(activations, labels)")

    @classmethod
    @abstractmethod
    @checked
    def fit(cls: type[Self], activations: Float[Tensor, "n width"], labels: Tensor, **options: Any) -> Self:
        """Fit the direction to labelled activations."""

    @classmethod
    def _along(cls: type[Self], vector: Tensor, activations: Tensor, options: dict[str, Any]) -> Self:
        """Make one of a fitted vector.

        Raises:
            SpecError: the vector is zero: there is no direction.
        """
        if not float(vector.norm()) > 0:
            raise SpecError("the activations of both classes are alike: there is no direction between them")
        one = cls(embed_dim=len(vector), **options)
        one.register_buffer("vector", kept_in(vector, activations))
        one.register_buffer("mean", kept_in(activations.detach().double().mean(0), activations))
        return one


@final
class DifferenceOfMeansIntervention(DirectionIntervention):
    """The difference of the means of two classes: a steering vector (CAA; Rimsky et al. 2023, arXiv:2312.06681).

    The arguments are those of `DirectionIntervention`; by default `strength` times the difference is added.

    >>> import torch
    >>> activations, labels = torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1])
    >>> DifferenceOfMeansIntervention.fit(activations, labels, strength=0.5)(torch.zeros(1, 1, 2)).tolist()
    [[[1.0, 0.0]]]
    """

    @classmethod
    @checked
    def fit(
        cls, activations: Float[Tensor, "n width"], labels: Tensor, **options: Any
    ) -> DifferenceOfMeansIntervention:
        """Take the mean of the class of the larger label less that of the other.

        Args:
            activations: one row an example.
            labels: `(n,)`, of two classes: booleans or numbers.
            **options: as for the class.

        Raises:
            SpecError: there are not two classes, or their means are equal.
        """
        return cls._along(difference_of_means(activations.detach().double(), labels), activations, options)


@final
class LinearProbeIntervention(DirectionIntervention):
    """The direction of a linear probe, a logistic regression (Alain and Bengio 2016, arXiv:1610.01644).

    The arguments are those of `DirectionIntervention`, but by default the coordinate along the direction is swapped.
    The vector is of length 1 and points to the class of the larger label.

    >>> import torch
    >>> activations, labels = torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1])
    >>> probe = LinearProbeIntervention.fit(activations, labels)
    >>> probe(torch.zeros(1, 1, 2), torch.full((1, 1, 2), 3.0)).tolist()
    [[[3.0, 0.0]]]
    """

    @checked
    def __init__(self, *, embed_dim: int, operation: DirectionOperation = "swap", **kwargs: Any) -> None:
        super().__init__(embed_dim=embed_dim, operation=operation, **kwargs)
        self.threshold: Tensor | None
        self.register_buffer("threshold", None)

    @classmethod
    @checked
    def fit(
        cls, activations: Float[Tensor, "n width"], labels: Tensor, *, l2: float = 1e-3, **options: Any
    ) -> LinearProbeIntervention:
        """Fit a logistic regression.

        Args:
            activations: one row an example.
            labels: `(n,)`, of two classes: booleans or numbers.
            l2: see `logistic_regression`.
            **options: as for the class.

        Raises:
            SpecError: there are not two classes, or nothing tells them apart.
        """
        found = linear_probe(activations, labels, l2=l2)
        one = cls._along(found.vector, activations, options)
        one.register_buffer("threshold", kept_in(found.threshold, activations))
        return one

    def predict(self, activations: Float[Tensor, "... width"]) -> Tensor:
        """Return for each vector whether the probe takes it to be of the class of the larger label.

        Raises:
            SpecError: it has not been fitted.
        """
        (threshold,) = self._fitted("threshold", ["threshold"], "fit(activations, labels)")
        direction = self.direction
        return activations.to(direction.dtype) @ direction > threshold


@final
class ErasureIntervention(SourcelessIntervention):
    """Erase a concept by an affine projection: `x - (x - mean) @ into @ back`, fitted beforehand and frozen.

    LEACE (Belrose et al. 2023, arXiv:2306.03819) is the smallest change after which no linear classifier finds the
    concept; INLP (Ravfogel et al. 2020, arXiv:2004.07667) projects the directions of trained classifiers away: as it is
    published with `mean` 0, which moves the mean activation; `fit(keep_mean=True)` does not. The same one is applied to
    each unit.

    Args:
        embed_dim: width of the vectors.
        method: `leace` or `inlp`.
        **kwargs: as for `Intervention`; a partition is one of the erased directions.

    Raises:
        SpecError: the method is unknown; as for `Intervention`.

    >>> import torch
    >>> activations, labels = torch.tensor([[0.0, 1.0], [2.0, 3.0], [1.0, 0.0], [3.0, 2.0]]), torch.tensor([0, 0, 1, 1])
    >>> erased = ErasureIntervention.fit(activations, labels)(activations.unsqueeze(1)).squeeze(1)
    >>> torch.allclose(erased[:2].mean(0), erased[2:].mean(0), atol=1e-6)
    True
    """

    mean: Tensor | None
    into: Tensor | None
    back: Tensor | None

    @checked
    def __init__(self, *, embed_dim: int, method: ErasureMethod = "leace", **kwargs: Any) -> None:
        super().__init__(embed_dim=embed_dim, **kwargs)
        self.method = method
        for name in _ERASER:
            self.register_buffer(name, None)

    @classmethod
    @checked
    def fit(
        cls,
        activations: Float[Tensor, "n width"],
        labels: Tensor,
        *,
        method: ErasureMethod = "leace",
        rounds: int = 20,
        l2: float = 1e-3,
        keep_mean: bool = False,
        **options: Any,
    ) -> ErasureIntervention:
        """Fit what erases the labels.

        Args:
            activations: one row an example. What is fitted is kept in their precision, at least float32: covariances
                vanish to rounding, so give float64 where that matters.
            labels: `(n,)` of two or more classes; for LEACE also `(n, c)`, any features.
            method: `leace` or `inlp`.
            rounds: of INLP, at most.
            l2: of INLP's classifiers.
            keep_mean: of INLP: what is erased becomes that of the mean activation. As published it becomes 0, so the
                mean moves, too. LEACE always keeps the mean.
            **options: as for the class.

        Raises:
            SpecError: labels do not fit, or nothing linear is there to be erased.
        """
        one = cls(embed_dim=activations.shape[1], method=method, **options)
        found = fit_eraser(activations, labels, method=method, rounds=rounds, l2=l2)
        one.limit_partition(found.into.shape[1])
        for name in _ERASER:
            one.register_buffer(name, getattr(found, name))
        if keep_mean:
            one.register_buffer("mean", kept_in(activations.detach().double().mean(0), activations))
        return one

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return the base with the concept erased.

        Raises:
            SpecError: it has not been fitted.
        """
        eraser = Eraser(*self._fitted("eraser", _ERASER, "fit(activations, labels)"))
        return edited(self, _ZERO, eraser.basis(), base, source, subspaces)
