"""What calls of an `IntervenableModel` give back with `return_dict=True`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._errors import PlanError
from ._summarised import Summarised, Summary
from .engine import Bound, Collected, Effect, Outcome


class _Told(Summarised):
    """What shows which outputs there are, and what every edit did."""

    original_outputs: Any
    collected_activations: Sequence[Any]
    effects: tuple[Effect, ...]

    def _summary(self) -> Summary:
        facts = [
            (one.name, f"{one.site}: fired {one.fired}, changed {one.rows} rows by {one.change:.3g}")
            for one in self.effects
        ]
        kept = ["original and intervened" if self.original_outputs is not None else "intervened"]
        kept += [f"{len(self.collected_activations)} collected"] if self.collected_activations else []
        return f"{type(self).__name__}: {', '.join(kept)}", facts


@dataclass(frozen=True, eq=False, repr=False)
class IntervenableOutput(_Told):
    """What a call gives back with `return_dict=True`.

    Args:
        original_outputs: what the model returned for the unedited base; `None` unless asked for.
        intervened_outputs: what it returned for the edited base.
        collected_activations: for each collecting intervention, in order, `(batch, units, width)`; zeros at padding.
            The units of a module that is called several times stand one call after the other.
        collected_masks: for each of these `(batch, units)`, False at padding.
        effects: the ledger: what every edit did.
    """

    original_outputs: Any
    intervened_outputs: Any
    collected_activations: list[Tensor]
    collected_masks: list[Tensor]
    effects: tuple[Effect, ...]


@dataclass(frozen=True, eq=False, repr=False)
class IntervenableGeneration(_Told):
    """What `generate` gives back with `return_dict=True`.

    Args:
        original_outputs: what `generate` of the model returned without edits; `None` unless asked for.
        intervened_outputs: what it returned with them.
        collected_activations: for each collecting intervention one tensor a step, `(rows, units, width)`: first the
            prompt's positions, if it has any, then each generated token.
        collected_masks: likewise `(rows, units)`, False at padding.
        effects: the ledger: what every edit did.
    """

    original_outputs: Any
    intervened_outputs: Any
    collected_activations: list[list[Tensor]]
    collected_masks: list[list[Tensor]]
    effects: tuple[Effect, ...]


def check_seen(bound: Bound, return_dict: bool | None) -> None:
    """Refuse to collect what the caller would not get to see.

    Args:
        bound: the plan of a call.
        return_dict: what the call says; `False` is the word of somebody who wants nothing but the outputs.

    Raises:
        PlanError: something is collected, and nothing is said of `return_dict`.
    """
    if return_dict is not None:
        return
    for one in bound.edits.values():
        if not one.intervention.writes:
            raise PlanError(
                f"{type(one.intervention).__name__} at {one.edit.site} collects, but a pair has only outputs: with "
                "return_dict=True there are collected_activations (with return_dict=False they are not wanted)"
            )


def output_of(pair: tuple[Any, Any], outcome: Outcome, keys: Iterable[str]) -> IntervenableOutput:
    """Return what a call gives back.

    Args:
        pair: the outputs.
        outcome: of its plan.
        keys: of the interventions, in order.
    """
    seen = _collected(outcome, keys)
    values, masks = [_joined(one.values) for one in seen], [_joined(one.real) for one in seen]
    return IntervenableOutput(*pair, values, masks, outcome.effects)


def generation_of(pair: tuple[Any, Any], outcome: Outcome, keys: Iterable[str]) -> IntervenableGeneration:
    """Return what `generate` gives back.

    Args:
        pair: the outputs.
        outcome: of its plan.
        keys: of the interventions, in order.
    """
    seen = _collected(outcome, keys)
    values, masks = [list(one.values) for one in seen], [list(one.real) for one in seen]
    return IntervenableGeneration(*pair, values, masks, outcome.effects)


def _collected(outcome: Outcome, keys: Iterable[str]) -> list[Collected]:
    return [outcome.collected[key] for key in keys if key in outcome.collected]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Return what the calls of a module gave as one tensor."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)
