"""Probes of the activations at one place: how well they read labels, and the directions along which they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .._errors import SpecError, UnknownNameError, near_misses
from .._optional import optional
from ..subspaces import Basis, Choice, Subspace
from ..subspaces.concepts import leace
from ._probe_draws import Fold, LabelledPrompts, ProbeDraw

Erasure = Literal["direction", "leace"]
KINDS = ("swap", "means_swap", "random_swap", "erase")
"""What is done along directions that were fitted: each fold of each draw has one for each."""


def estimator_of(asked: Any, seed: int) -> Any:
    """Return a classifier of scikit-learn that has not been fitted.

    Args:
        asked: `logistic_regression`, `difference_of_means`, or one of the user's.
        seed: of what it draws, where it has no seed of its own.

    Raises:
        UnknownNameError: no such name.
        SpecError: it is no classifier with a decision function.
    """
    base = optional("sklearn.base", extra="probes")
    if asked == "logistic_regression":
        return optional("sklearn.pipeline", extra="probes").make_pipeline(
            UnitScale(),
            optional("sklearn.linear_model", extra="probes").LogisticRegression(max_iter=1000),
        )
    if asked == "difference_of_means":
        return NearestMean()
    if isinstance(asked, str):
        known = ["logistic_regression", "difference_of_means"]
        raise UnknownNameError(f"there is no estimator {asked!r}; {near_misses(asked, known)}")
    if not hasattr(asked, "fit") or not hasattr(asked, "decision_function") or isinstance(asked, type):
        raise SpecError(
            "estimator is a classifier of scikit-learn with a decision_function, such as LogisticRegression() or a "
            f"pipeline that ends in one; found {asked!r:.80}"
        )
    own = base.clone(asked)
    names = [name for name, value in own.get_params().items() if name.endswith("random_state") and value is None]
    return own.set_params(**dict.fromkeys(names, seed % 2**32))


class UnitScale:
    """Divides by the standard deviation of all numbers at once, so that lengths and angles stay what they are.

    With each coordinate divided by its own, the direction that is found is one of little variance: it moves no state.
    """

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return no parameters: there are none."""
        return {}

    def fit(self, x: np.ndarray, labels: Any = None) -> UnitScale:
        """Take mean and deviation."""
        self.mean_ = x.mean(0)
        self.scale_ = float((x - self.mean_).std()) or 1.0
        return self

    def fit_transform(self, x: np.ndarray, labels: Any = None) -> np.ndarray:
        """Fit and transform."""
        return self.fit(x).transform(x)

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Return the scaled rows."""
        scaled: np.ndarray = (x - self.mean_) / self.scale_
        return scaled


class NearestMean:
    """The classifier of the nearest mean, whose direction is the difference of means; cloned as estimators are."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return no parameters: there are none."""
        return {}

    def fit(self, x: np.ndarray, labels: np.ndarray) -> NearestMean:
        """Take the means."""
        self.classes_ = np.unique(labels)
        self.means_ = np.stack([x[labels == one].mean(0) for one in self.classes_])
        return self

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        """Return scores: half the squared distance from each mean, less what is the same for all."""
        scores: np.ndarray = (np.square(self.means_).sum(1) / 2 - x @ self.means_.T) * -1
        return scores

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the class whose mean is nearest."""
        found: np.ndarray = self.classes_[self.decision_function(x).argmax(1)]
        return found


@dataclass(frozen=True, eq=False)
class PlaceFit:
    """What probes at one place tell in one draw.

    Args:
        correct: for each prompt whether the probe that did not see its group is right.
        seen: the same where the probe saw other prompts of its type.
        control: whether a probe of control labels is, likewise.
        cosines: for each fold that of the directions of the probe and of the difference of means.
        into: what is read, by kind: of each fold `(width, rank)`.
        back: along what is written, by kind: of each fold `(rank, width)`.
    """

    correct: np.ndarray
    seen: np.ndarray
    control: np.ndarray
    cosines: tuple[float, ...]
    into: Mapping[str, tuple[np.ndarray, ...]]
    back: Mapping[str, tuple[np.ndarray, ...]]


def fit_place(x: np.ndarray, prompts: LabelledPrompts, draw: ProbeDraw, estimator: Any, erasure: Erasure) -> PlaceFit:
    """Fit the probes of one place.

    Args:
        x: `(prompts, width)` activations, float64.
        prompts: their labels.
        draw: of folds and control labels.
        estimator: what is fitted, each time anew.
        erasure: how what is erased is found.

    Raises:
        SpecError: the estimator's decision function is not linear.
    """
    labels = prompts.labels
    correct, fitted = _tested(x, labels, draw.folds, estimator)
    seen = correct if draw.seen is draw.folds else _tested(x, labels, draw.seen, estimator)[0]
    control = _tested(x, draw.control, draw.seen, estimator)[0]
    rank, random = len(prompts.classes) - 1, np.random.default_rng([*draw.seed, 1])
    into: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    back: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    cosines = []
    for (train, _), probe in zip(draw.folds, fitted, strict=True):
        own = _axes(_contrasts(probe, x[train]), rank)
        means = _axes(_centred_means(x[train], labels[train]), rank)
        anywhere = _random_axes(x.shape[1], rank, random)
        erased = (own, own.T) if erasure == "direction" else _leace(x[train], labels[train], rank)
        pairs = ((own, own.T), (means, means.T), (own, anywhere.T), erased)
        for kind, (reads, writes) in zip(KINDS, pairs, strict=True):
            into[kind].append(reads)
            back[kind].append(writes)
        if own.any() and means.any():
            cosines.append(float(np.linalg.norm(own.T @ means) / rank**0.5))
    directions = ({kind: tuple(found) for kind, found in one.items()} for one in (into, back))
    return PlaceFit(correct, seen, control, tuple(cosines), *directions)


def _tested(x: np.ndarray, labels: np.ndarray, folds: Sequence[Fold], estimator: Any) -> tuple[np.ndarray, list[Any]]:
    """Return whether each prompt is told right by the probe of the fold that it is tested in, and these probes."""
    clone = optional("sklearn.base", extra="probes").clone
    correct, fitted = np.empty(len(labels)), []
    for train, test in folds:
        fitted.append(clone(estimator).fit(x[train], labels[train]))
        correct[test] = fitted[-1].predict(x[test]) == labels[test]
    return correct, fitted


def _contrasts(probe: Any, x: np.ndarray) -> np.ndarray:
    """Return the gradients of a probe's scores, `(width, classes)` or `(width, 1)`, each less the mean of all classes.

    They are read off the decision function, whatever steps it is made of: it has to be affine.
    """
    origin, step = x.mean(0), float(x.std()) or 1.0
    points = np.concatenate([origin[None], origin + step * np.eye(x.shape[1])])
    at, here = _scores(probe, points), _scores(probe, x)
    slopes = (at[1:] - at[0]) / step
    off = np.abs(at[0] + (x - origin) @ slopes - here).max()
    if off > 1e-5 * max(np.abs(here - at[0]).max(), 1e-9):
        raise SpecError(
            f"the scores of {type(probe).__name__} are no linear function of the activations, so there is no direction "
            "to swap or erase: give an estimator that ends in a linear classifier"
        )
    return slopes


def _scores(probe: Any, x: np.ndarray) -> np.ndarray:
    scores: np.ndarray = probe.decision_function(x)
    return scores[:, None] if scores.ndim == 1 else scores - scores.mean(1, keepdims=True)


def _centred_means(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean of each class less the mean of these, `(width, classes)`."""
    means = np.stack([x[labels == number].mean(0) for number in range(labels.max() + 1)], axis=1)
    return means - means.mean(1, keepdims=True)


def _axes(columns: np.ndarray, rank: int) -> np.ndarray:
    """Return orthonormal columns `(width, rank)` that span the same; where that is less, the others are zero."""
    left, strengths, _ = np.linalg.svd(columns, full_matrices=False)
    kept = left[:, strengths > 1e-9 * max(strengths.max(), 1e-30)][:, :rank]
    return np.pad(kept, ((0, 0), (0, rank - kept.shape[1])))


def _random_axes(width: int, rank: int, random: np.random.Generator) -> np.ndarray:
    """Return orthonormal columns, all directions alike; no more than there can be, the others are zero."""
    columns, triangle = np.linalg.qr(random.standard_normal((width, min(rank, width))))
    columns = columns * np.sign(np.diagonal(triangle))  # else the first coordinate would always be negative
    return np.pad(columns, ((0, 0), (0, rank - columns.shape[1])))


def _leace(x: np.ndarray, labels: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what LEACE reads and takes away."""
    concept = np.eye(labels.max() + 1)[labels]
    found = leace(torch.from_numpy(x), torch.from_numpy(concept))
    into, back = found.into.numpy()[:, :rank], found.back.numpy()[:rank]
    gap = rank - into.shape[1]
    return np.pad(into, ((0, 0), (0, gap))), np.pad(back, ((0, gap), (0, 0)))


@final
class FittedDirections(Subspace):
    """Directions of which each example chooses a member by its subspaces.

    Args:
        into: what is read: `(members, width, rank)`.
        back: along what is written: `(members, rank, width)`.
        origin: where nothing is left to erase: the mean of the activations.
    """

    takes_choice = True
    into: Tensor
    back: Tensor
    origin: Tensor

    def __init__(
        self,
        into: Float[Tensor, "members width rank"],
        back: Float[Tensor, "members rank width"],
        origin: Float[Tensor, " width"],
    ) -> None:
        super().__init__(into.shape[1], into.shape[2])
        for name, value in (("into", into), ("back", back), ("origin", origin)):
            self.register_buffer(name, value)

    def basis(self, base: Tensor | None = None, choice: Choice | None = None) -> Basis:
        """Return the members that the examples choose."""
        members = torch.tensor([part for parts in choice or () for part in parts or ()], device=self.into.device)
        return Basis(self.width, self.into[members], self.back[members], self.origin)
