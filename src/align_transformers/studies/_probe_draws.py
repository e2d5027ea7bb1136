"""Labelled prompts for a probe: folds that keep groups together, control labels, partners, and means over groups."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._errors import SpecError
from .._optional import optional

Fold = tuple[np.ndarray, np.ndarray]
"""Numbers of the prompts that are trained on, and of those that are tested."""
_TRIES = 100


@dataclass(frozen=True, eq=False)
class LabelledPrompts:
    """What is known of each prompt, as numbers from 0.

    Args:
        classes: the labels that there are, in ascending order.
        labels: of each prompt the number of its class.
        groups: prompts of one group stand in one fold; groups are the independent unit of intervals.
        types: prompts of one type have one control label.
    """

    classes: tuple[Any, ...]
    labels: np.ndarray
    groups: np.ndarray
    types: np.ndarray

    @classmethod
    def of(
        cls, labels: Sequence[Any], groups: Sequence[Any] | None, types: Sequence[Any] | None, texts: Sequence[Hashable]
    ) -> LabelledPrompts:
        """Number labels, groups and types.

        Args:
            labels: one for each prompt.
            groups: likewise; `None`: equal prompts are a group.
            types: likewise; `None`: the groups.
            texts: the prompts, to tell equal ones.

        Raises:
            SpecError: they are not as many as prompts, there is one class or one type only, or equal prompts stand in
                several groups.
        """
        count = len(texts)
        classes, numbers = _numbered("labels", labels, count)
        same = _numbered("prompts", texts, count)[1]
        own = same if groups is None else _numbered("groups", groups, count)[1]
        kinds, of_types = ((), own) if types is None else _numbered("types", types, count)
        if len(classes) < 2:
            raise SpecError(f"labels of at least two classes are needed; found only {classes[0]!r}")
        if of_types.max() < 1:
            raise SpecError(
                f"control labels go by type, and all prompts are of one ({kinds or 'they are one group'}): give types= "
                "of which there are several"
            )
        for text in range(same.max() + 1):
            where = np.flatnonzero(same == text)
            if len(set(own[where])) > 1:
                first, second = where[0], where[own[where] != own[where[0]]][0]
                raise SpecError(
                    f"prompts {first} and {second} are equal and stand in different groups: a probe would be tested "
                    "on what it was trained on"
                )
        return cls(classes, numbers, own, of_types)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_groups(self) -> int:
        """How many groups there are."""
        return int(self.groups.max()) + 1

    @property
    def n_types(self) -> int:
        """How many types there are."""
        return int(self.types.max()) + 1

    def counts(self) -> dict[str, int]:
        """Return how many prompts there are of each class."""
        return {str(name): int((self.labels == number).sum()) for number, name in enumerate(self.classes)}


def _numbered(what: str, values: Iterable[Any], count: int) -> tuple[tuple[Any, ...], np.ndarray]:
    """Return the different values in ascending order, and the number of each prompt's."""
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    if len(listed) != count:
        raise SpecError(f"{what} has {len(listed)} entries, but there are {count} prompts: give one for each")
    try:
        known = sorted(set(listed), key=lambda value: (type(value).__name__, value))
    except TypeError as error:
        raise SpecError(f"{what} are texts, numbers or tuples of these; found {listed[0]!r:.80}") from error
    numbers = {value: number for number, value in enumerate(known)}
    return tuple(known), np.array([numbers[value] for value in listed])


@dataclass(frozen=True, eq=False)
class ProbeDraw:
    """What chance decides, the same at all places.

    Args:
        folds: by groups.
        seen: folds in which a type stands on both sides, where it has several prompts.
        control: for each prompt a class that was drawn for its type.
        partners: for each prompt one of another class that is tested in the same fold.
        tested_in: for each prompt the fold that it is tested in.
        seed: of what is drawn later.
    """

    folds: tuple[Fold, ...]
    seen: tuple[Fold, ...]
    control: np.ndarray
    partners: np.ndarray
    tested_in: np.ndarray
    seed: tuple[int, int]

    @classmethod
    def of(cls, prompts: LabelledPrompts, folds: int, seed: int, number: int) -> ProbeDraw:
        """Draw.

        Args:
            prompts: what is known of them.
            folds: how many.
            seed: of all draws.
            number: of this draw.

        Raises:
            SpecError: a class cannot stand in every fold.
        """
        random = np.random.default_rng([seed, number])
        by_group = _held_out(prompts, folds, random)
        tested_in = np.empty(len(prompts), int)
        for fold, (_, test) in enumerate(by_group):
            tested_in[test] = fold
        repeated = np.bincount(prompts.types).max() > 1
        seen = _spread(prompts, folds, random) if repeated else by_group
        partners = np.empty(len(prompts), int)
        for _, test in by_group:
            for prompt in test:
                others = test[prompts.labels[test] != prompts.labels[prompt]]
                partners[prompt] = others[random.integers(len(others))]
        return cls(by_group, seen, _control(prompts, seen, random), partners, tested_in, (seed, number))


def _held_out(prompts: LabelledPrompts, folds: int, random: np.random.Generator) -> tuple[Fold, ...]:
    """Return folds by groups, with every class in each."""
    for number, name in enumerate(prompts.classes):
        groups = len(set(prompts.groups[prompts.labels == number]))
        if groups < folds:
            raise SpecError(
                f"label {name!r} is in {groups} groups of prompts, so that it is not in each of {folds} folds: give "
                f"prompts of more groups, or folds={groups}" + ("" if groups > 1 else ", which has to be at least 2")
            )
    selection = optional("sklearn.model_selection", extra="probes")
    maker = selection.StratifiedGroupKFold(folds, shuffle=True, random_state=int(random.integers(2**31)))
    found = tuple(maker.split(prompts.labels, prompts.labels, prompts.groups))
    for train, test in found:
        for part in (train, test):
            missing = set(range(len(prompts.classes))) - set(prompts.labels[part])
            if missing:
                raise SpecError(
                    f"{folds} folds that keep groups together have one without label "
                    f"{prompts.classes[min(missing)]!r}: give fewer folds, or more and smaller groups"
                )
    return found


def _spread(prompts: LabelledPrompts, folds: int, random: np.random.Generator) -> tuple[Fold, ...]:
    """Return folds over which the prompts of each type are spread, with every class to be learned in each."""
    for _ in range(_TRIES):
        order = random.permutation(len(prompts))
        order = order[np.argsort(prompts.types[order], kind="stable")]
        fold_of = np.empty(len(prompts), int)
        fold_of[order] = np.arange(len(prompts)) % folds
        found = tuple((np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(folds))
        if all(len(set(prompts.labels[train])) == len(prompts.classes) for train, _ in found):
            return found
    raise SpecError(f"{len(prompts)} prompts are too few to spread types and labels over {folds} folds: give more")


def _control(prompts: LabelledPrompts, folds: Sequence[Fold], random: np.random.Generator) -> np.ndarray:
    """Return a label for each type, drawn from those of the prompts; there are at least two to be learned."""
    for _ in range(_TRIES):
        drawn: np.ndarray = random.choice(prompts.labels, size=prompts.n_types)[prompts.types]
        if all(len(set(drawn[train])) > 1 for train, _ in folds):
            return drawn
    raise SpecError(f"{prompts.n_types} types are too few for control labels that can be learned: give more")


def mean_over_groups(
    values: np.ndarray, groups: np.ndarray, seed: int, draws: int = 1000, level: float = 0.95
) -> tuple[float, float | None, float | None]:
    """Return a mean over prompts and its bootstrap interval over groups, which are drawn whole.

    Args:
        values: one for each prompt.
        groups: the number of each prompt's, from 0.
        seed: of the draws.
        draws: how many.
        level: of the interval.

    >>> mean_over_groups(np.array([1.0, 1.0, 0.0]), np.array([0, 0, 0]), 0)
    (0.666..., None, None)
    """
    middle = float(values.mean())
    sums, sizes = np.bincount(groups, weights=values), np.bincount(groups)
    if len(sums) < 2:
        return middle, None, None
    drawn = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return middle, float(low), float(high)
