"""Pairs of prompts that a circuit was not found on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..._errors import SpecError
from ...models.sequence import examples_of
from .._pairs import Pairs
from .._prompts import Prompts, Tokens
from .hashes import pair_hashes


def seen_pairs(pairs: Pairs, facts: Mapping[str, Any]) -> list[bool] | None:
    """Return which pairs a circuit was found on; `None` where that is not known.

    Args:
        pairs: of prompts.
        facts: of the circuit; under `pair_hashes` what `pair_hashes` said of those.
    """
    if "pair_hashes" not in facts:
        return None
    known = set(facts["pair_hashes"])
    return [one in known for one in pair_hashes(pairs)]


@dataclass(frozen=True)
class HeldOut:
    """Which pairs are measured.

    Args:
        which: their numbers.
        seen: which of all pairs the circuit was found on; `None`: not known.
    """

    which: tuple[int, ...]
    seen: Sequence[bool] | None

    @classmethod
    def of(cls, pairs: Pairs, facts: Mapping[str, Any], *, leave: bool) -> HeldOut:
        """Return which pairs to measure.

        Args:
            pairs: that there are.
            facts: of the circuit.
            leave: leave out those on which it was found, if others remain.
        """
        seen = seen_pairs(pairs, facts)
        new = [n for n, was in enumerate(seen or [False] * len(pairs)) if not was]
        return cls(tuple(new if leave and new else range(len(pairs))), seen)

    def facts(self, count: int) -> dict[str, Any]:
        """Return what is to be known of it.

        Args:
            count: of pairs that were given.
        """
        if self.seen is None:
            why = "not known: the circuit does not say on which pairs it was found"
            return {"held_out": None, "given": count, "seen": None, "measured_seen": None, "note": why}
        used = sum(self.seen[one] for one in self.which)
        note = "the circuit was found on other pairs"
        if used:
            note = f"not held out: the circuit was found on {used} of the {len(self.which)} pairs it is measured on"
        elif any(self.seen):
            note = f"{sum(self.seen)} of {count} pairs, on which the circuit was found, are left out"
        return {
            "held_out": not used, "given": count, "seen": sum(self.seen), "measured_seen": used, "note": note
        }  # fmt: skip


def chosen(values: Any, which: Sequence[int], count: int) -> Any:
    """Return entries of a list with one for each pair; anything else stands for all pairs and is as it is.

    Args:
        values: a list, or not.
        which: numbers of pairs.
        count: of all pairs.

    Raises:
        SpecError: the list has not one for each pair.
    """
    if not isinstance(values, list):
        return values
    if len(values) != count:
        raise SpecError(f"there are {len(values)} values for {count} pairs: give one for all, or one for each")
    return [values[one] for one in which]


def some_pairs(pairs: Pairs, which: Sequence[int]) -> Pairs:
    """Return some of the pairs.

    Args:
        pairs: of prompts.
        which: their numbers.
    """
    return replace(pairs, base=_some(pairs.base, which), source=_some(pairs.source, which))


def _some(prompts: Prompts, which: Sequence[int]) -> Prompts:
    return replace(
        prompts,
        inputs=dict(examples_of(prompts.inputs, which)),
        texts=tuple(prompts.texts[one] for one in which),
        sequences={name: _tokens(tokens, which) for name, tokens in prompts.sequences.items()},
        fields=[prompts.fields[one] for one in which] if prompts.fields else (),
        answers=None if prompts.answers is None else [prompts.answers[one] for one in which],
    )


def _tokens(tokens: Tokens, which: Sequence[int]) -> Tokens:
    return replace(
        tokens,
        ids=tuple(tokens.ids[one] for one in which),
        texts=tuple(tokens.texts[one] for one in which),
        starts=tuple(tokens.starts[one] for one in which),
    )
