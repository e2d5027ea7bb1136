"""What calls of an `IntervenableModel` give back with `return_dict=True`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .engine import Effect


@dataclass(frozen=True, eq=False)
class IntervenableOutput:
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


@dataclass(frozen=True, eq=False)
class IntervenableGeneration:
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
