"""What may be wrong with a subspace that seems to work: each check has its numbers and one sentence, and no verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor

from ..._checked import checked
from ..._errors import SpecError
from ...learning.scores import Interval
from .statistics import entity_bootstraps

_BEYOND = 0.95
"""Quantile of the distances of clean activations past which a patched one is far off."""
_LEAST_SHRUNK = 0.001
"""Weight of the identity in a covariance."""
_LEAST_KEPT = 0.99
"""Share of answers that a swap with the base itself has to leave; sums in another order may turn a few."""


@dataclass(frozen=True)
class Check:
    """What one check found.

    Args:
        flag: its name, such as `exceeds container` or `memorised`.
        raised: whether there is reason to doubt.
        numbers: by name; of an interval also its ends, `<name>_low` and `<name>_high`.
        explanation: one sentence.
    """

    flag: str
    raised: bool
    numbers: Mapping[str, float]
    explanation: str


def _ends(**intervals: Interval) -> dict[str, float]:
    """Return intervals as numbers by name."""
    found: dict[str, float] = {}
    for name, one in intervals.items():
        found |= {name: one.mean, f"{name}_low": one.low, f"{name}_high": one.high}
    return found


def _said(interval: Interval) -> str:
    """Return an interval in words."""
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


@checked
def against_container(
    subspace: Shaped[np.ndarray, " pairs"],
    container: Shaped[np.ndarray, " pairs"],
    base_entities: Integer[np.ndarray, " pairs"],
    source_entities: Integer[np.ndarray, " pairs *sources"],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Check:
    """Compare the effect of a swap in a subspace with that of a swap of all of its container, pair by pair.

    Raised where the interval of the difference is above 0: the subspace then works by what the container does not do.
    It is the mark of the illusion of a dormant and a disconnected direction; it is legitimate where the container
    carries something else that undoes the effect, such as where an answer stands.

    Args:
        subspace: effect of the subspace on each pair: a hit, or how far the output moved, `(n,)`.
        container: effect of the full-vector swap on the same pairs, `(n,)`.
        base_entities: as for `entity_bootstrap`.
        source_entities: as for `entity_bootstrap`.
        resamples: of the bootstrap.
        confidence: of the intervals.
        seed: of the draws.

    Raises:
        SpecError: as for `entity_bootstrap`.

    Makelov et al. 2023, arXiv:2311.17030.

    >>> pairs = np.arange(6)
    >>> against_container(np.ones(6), np.zeros(6), pairs, pairs[::-1]).raised
    True
    """
    first, second = subspace.astype(np.float64), container.astype(np.float64)
    if first.shape != second.shape:
        raise SpecError(f"the effects are of the same pairs; found {len(first)} and {len(second)}")
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    inner, outer, difference = entity_bootstraps(
        np.stack([first, second, first - second]),
        base_entities,
        source_entities,
        **options,  # type: ignore[arg-type]
    )
    raised = difference.low > 0
    return Check(
        "exceeds container",
        raised,
        _ends(subspace=inner, container=outer, difference=difference),
        f"the subspace has an effect of {_said(inner)} and all of its container {_said(outer)}: the difference, "
        f"{_said(difference)}, is {'' if raised else 'not '}above 0",
    )


@checked
def off_manifold(
    clean: Float[Tensor, "examples width"], patched: Float[Tensor, "pairs width"], *, seed: int = 0
) -> Check:
    """Compare patched activations with clean ones by their norms and by Mahalanobis distances.

    d(x)^2 = (x - m)^T C^-1 (x - m), with mean and shrunk covariance (Ledoit and Wolf) of one half of the clean
    activations; clean ones are measured by the half that they are not in, patched ones by both, averaged. Raised where
    more than half of the patched ones are farther out than 95 % of the clean ones.

    Args:
        clean: activations of unedited runs, one a distinct input, at least four.
        patched: activations after the edit.
        seed: of the halves.

    Raises:
        SpecError: there are too few, the widths differ, or the clean activations do not vary.

    Ledoit and Wolf 2004, doi:10.1016/S0047-259X(03)00096-4.

    >>> clean = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    >>> off_manifold(clean, clean[:50]).raised, off_manifold(clean, clean[:50] + 9).raised
    (False, True)
    """
    known, edited = clean.detach().cpu().double(), patched.detach().cpu().double()
    if len(known) < 4 or not len(edited) or known.shape[1] != edited.shape[1]:
        raise SpecError(
            f"distances need four clean activations or more and a patched one of the same width; found "
            f"{tuple(clean.shape)} and {tuple(patched.shape)}"
        )
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    inside, outside = torch.empty(len(known), dtype=torch.double), torch.zeros(len(edited), dtype=torch.double)
    for fitted, other in (halves, halves[::-1]):
        mean = known[fitted].mean(0)
        factor = torch.linalg.cholesky(shrunk_covariance(known[fitted]))
        inside[other] = _distances(known[other] - mean, factor)
        outside += _distances(edited - mean, factor) / 2
    beyond = (outside > inside.quantile(_BEYOND)).double().mean().item()
    norms = (edited.norm(dim=1).mean() / known.norm(dim=1).mean()).item()
    distances = (outside.median() / inside.median()).item()
    return Check(
        "off manifold",
        beyond > 0.5,
        {"norm_ratio": norms, "distance_ratio": distances, "beyond": beyond},
        f"patched activations are {norms:.2f} times as long as clean ones and {distances:.2f} times as far from their "
        f"mean; {beyond:.0%} of them are farther out than {_BEYOND:.0%} of the clean ones",
    )


def _distances(centred: Tensor, factor: Tensor) -> Tensor:
    """Return the lengths of vectors under the inverse of a covariance, whose Cholesky factor is given."""
    return torch.linalg.solve_triangular(factor, centred.T, upper=False).norm(dim=0)


def shrunk_covariance(states: Float[Tensor, "examples width"]) -> Float[Tensor, "width width"]:
    """Return the covariance of activations, shrunk towards a multiple of the identity (Ledoit and Wolf).

    (1 - a) S + a mu I, with mu = tr S / d, a = b / |S - mu I|^2 and b = sum |x x^T - S|^2 / n^2; a is at least 0.001,
    so that there is an inverse, and at most 1.

    Args:
        states: one example a line.

    Raises:
        SpecError: all are equal.

    >>> shrunk_covariance(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).tolist()
    [[0.999..., 0.0], [0.0, 0.0005...]]
    """
    count, width = states.shape
    centred = states - states.mean(0)
    covariance = centred.T @ centred / count
    scale = covariance.diagonal().mean()
    if not scale > 0:
        raise SpecError(f"the {count} clean activations are all equal: there is no distance from what does not vary")
    apart = (covariance**2).sum() - width * scale**2
    spread = ((centred.norm(dim=1) ** 4).sum() - count * (covariance**2).sum()) / count**2
    shrunk = min(1.0, max(_LEAST_SHRUNK, (spread / apart).item())) if apart > 0 else 1.0
    return (1 - shrunk) * covariance + shrunk * scale * torch.eye(width, dtype=states.dtype)


def memorised(train: Interval, held_out: Interval) -> Check:
    """Compare the score on entities of the fit with that on others; raised where it is above it, intervals apart.

    Args:
        train: score on pairs of the entities that the fit saw.
        held_out: score on pairs of others.

    >>> ones, pairs = np.array([[1] * 4, [0] * 4]), np.arange(4)
    >>> memorised(*entity_bootstraps(ones, pairs, pairs[::-1])).explanation
    'entities of the fit score 1.00 [1.00, 1.00], others 0.00 [0.00, 0.00]: the intervals are apart'
    """
    raised = train.low > held_out.high
    return Check(
        "memorised",
        raised,
        _ends(train=train, held_out=held_out),
        f"entities of the fit score {_said(train)}, others {_said(held_out)}: "
        f"the intervals {'are apart' if raised else 'overlap' if train.high >= held_out.low else 'are the other way'}",
    )


def by_heart(train: Interval, permuted: Interval) -> Check:
    """Compare a fit with one to labels that are permuted by entity; raised where that learns them about as well.

    Args:
        train: score in training, on the true labels.
        permuted: score of the other fit on its own labels.

    >>> rows, pairs = np.array([[1] * 4, [1, 0, 1, 1]]), np.arange(4)
    >>> by_heart(*entity_bootstraps(rows, pairs, pairs[::-1])).raised
    True
    """
    raised = permuted.high >= train.low
    return Check(
        "by heart",
        raised,
        _ends(train=train, permuted=permuted),
        f"the fit reaches {_said(train)} in training, and one to labels permuted by entity {_said(permuted)} on these: "
        f"{'it can learn entities by heart' if raised else 'the labels matter'}",
    )


@checked
def trivial(same: Bool[np.ndarray, " pairs"], score: Interval) -> Check:
    """Say what an edit that does nothing scores; raised where the score cannot be told from that.

    Args:
        same: whether the label of the causal model is the base's, for each pair that was scored.
        score: on these pairs.

    Raises:
        SpecError: there is no pair.

    >>> pairs = np.arange(4)
    >>> half = entity_bootstraps(np.array([[1, 1, 0, 0]]), pairs, pairs[::-1])[0]
    >>> trivial(np.array([True, True, False, False]), half).raised
    True
    """
    if not len(same):
        raise SpecError("a share of trivial pairs needs pairs; found none")
    share = float(same.mean())
    raised = share > 0 and score.low <= share
    return Check(
        "trivial",
        raised,
        _ends(score=score) | {"trivial": share},
        f"in {share:.0%} of the pairs the label is the base's, so that an edit that does nothing scores {share:.2f}; "
        f"the score is {_said(score)}",
    )


def base_alone(guessed: Bool[np.ndarray, " pairs"], score: Interval) -> Check:
    """Say what an answer scores that is made of the base's alone; raised where the score cannot be told from that.

    Of two answers without trivial pairs it is always the other one: a network that ignores the source, and says the
    other answer of any base that is disturbed, scores 1.

    Args:
        guessed: whether the label is what most often was the label of bases with this answer, of pairs of the fit.
        score: on these pairs.

    >>> pairs = np.arange(4)
    >>> every = entity_bootstraps(np.ones((1, 4)), pairs, pairs[::-1])[0]
    >>> base_alone(np.ones(4, dtype=bool), every).raised
    True
    """
    share = float(guessed.mean())
    raised = share > 0 and score.low <= share
    return Check(
        "base alone",
        raised,
        _ends(score=score) | {"base_alone": share},
        f"the base's answer alone tells {share:.0%} of the labels, whatever the source is; the score is {_said(score)}",
    )


def self_swap(kept: float) -> Check:
    """Say how often a swap with the base itself leaves the answer; raised where it changes more than one in a hundred.

    Args:
        kept: share of the pairs.

    >>> self_swap(1.0).raised, self_swap(0.5).raised
    (False, True)
    """
    return Check(
        "self-swap",
        kept < _LEAST_KEPT,
        {"kept": kept},
        f"where the source is the base itself, {kept:.0%} of the answers stay: what the edit does is "
        f"{'more than an interchange' if kept < _LEAST_KEPT else 'an interchange'}",
    )


@checked
def against_random_network(score: Interval, *randoms: Interval, chance: float | None = None) -> Check:
    """Compare a score with those of the same fit on networks with new random weights.

    Raised where it is not above the highest of them, intervals apart; given what chance scores, also where that one
    goes half of the way from chance to the score, or farther. Networks differ (a reversible map reaches .68 on one and
    .90 on another), so one of them may let it pass: take several.

    Args:
        score: on the network.
        randoms: on random ones, on pairs of the same kind; at least one.
        chance: what the most frequent label scores.

    Raises:
        SpecError: there is no random network.

    Sutter et al. 2025, arXiv:2507.08802.

    >>> rows, pairs = np.array([[1] * 4, [1, 0, 1, 1]]), np.arange(4)
    >>> against_random_network(*entity_bootstraps(rows, pairs, pairs[::-1])).raised
    True
    """
    if not randoms:
        raise SpecError("a score is compared with those on random networks; found none")
    random = max(randoms, key=lambda one: one.mean)
    raised, numbers = score.low <= max(one.high for one in randoms), _ends(score=score, random=random)
    said = f"the same fit scores {_said(score)} on the network and {_said(random)} on one with random weights"
    if chance is not None:
        reached = (random.mean - chance) / (score.mean - chance) if score.mean > chance else 1.0
        raised, numbers = raised or reached >= 0.5, numbers | {"chance": chance, "reached": reached}
        said += f", which is {reached:.0%} of the way from chance ({chance:.2f}) to the first"
    return Check("random network", raised, numbers, said)
