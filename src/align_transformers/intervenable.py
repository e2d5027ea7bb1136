"""`IntervenableModel`, the friendly face: a configuration becomes a plan, is bound to the model, and is run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from . import engine
from ._errors import SpecError, UnknownNameError
from .compose import Call, Composed, Representation, Timing, compose
from .config import IntervenableConfig, RepresentationConfig
from .engine import Bound, Collected, Effect, Inputs, Outcome
from .engine.steps import find_place
from .interventions import Intervention, build_intervention
from .locations import Addressed
from .models import Slot
from .positions import Steps
from .sites import Site


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


class IntervenableModel(nn.Module):
    """A model together with interventions on its activations. The model itself is never changed.

    Args:
        config: an `IntervenableConfig`, a `RepresentationConfig`, a dict, or a list of these.
        model: any `nn.Module`; dotted paths address every module, component names the blocks of known families.

    Raises:
        UnknownNameError: a component, unit or keyword is misspelt.
        SiteError: the model has no such layer or module.

    >>> from align_transformers import VanillaIntervention
    >>> mlp = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> swap = IntervenableModel({"component": "1.output", "intervention_type": VanillaIntervention}, model=mlp)
    >>> base, source = torch.zeros(1, 3), torch.ones(1, 3)
    >>> torch.equal(swap(base, source)[1], mlp(source))
    True
    """

    def __init__(self, config: Any, model: nn.Module) -> None:
        super().__init__()
        self.config = IntervenableConfig.of(config)
        self.model = model
        self.representations = _represent(self.config, model)
        self.interventions = {r.key: r.intervention for r in self.representations}
        self._trained = nn.ModuleList(dict.fromkeys(self.interventions.values()))

    def forward(
        self,
        base: Inputs,
        sources: Any = None,
        unit_locations: Any = None,
        source_representations: Any = None,
        subspaces: Any = None,
        output_original_output: bool = False,
        return_dict: bool | None = None,
        **model_kwargs: Any,
    ) -> tuple[Any, Any] | IntervenableOutput:
        """Run the base with the interventions in place.

        Args:
            base: the model's keyword arguments as a dict (or its only argument, a tensor), batch first.
            sources: one dict for all groups, or a list with one a group; `None` in the list skips the group's
                interventions that need a source. A source of one example serves every example of the base.
            unit_locations: where to read and write; see `locate`. `None` is the whole tensor.
            source_representations: constant sources: a tensor for all, a list in order, or a dict by key or number;
                each `(width,)` or broadcastable to `(batch, units, width)`.
            subspaces: `[n_interventions][batch][ids]`; missing outer levels are the same for all.
            output_original_output: also run the base without interventions.
            return_dict: return an `IntervenableOutput` instead of the pair.
            **model_kwargs: handed to the model with the base (`labels`, `use_cache`, `output_hidden_states`, ...).

        Returns:
            `(original, counterfactual)`: what the model returned for the plain base (`None` unless asked for) and for
            the edited one.

        Raises:
            AlignError: any of its kinds; wrong arguments are refused before a forward pass is run.
        """
        _refuse_misspelt(model_kwargs, self.forward, self.model.forward)
        call = Call(_with_kwargs(base, model_kwargs), sources, unit_locations, source_representations, subspaces)
        outcome = engine.execute(
            self._bind(compose(self.config, self.representations, call, original=output_original_output))
        )
        pair = outcome.outputs.get("original"), outcome.outputs["base"]
        if not return_dict:
            return pair
        seen = self._collected(outcome)
        values, masks = [_joined(one.values) for one in seen], [_joined(one.real) for one in seen]
        return IntervenableOutput(*pair, values, masks, outcome.effects)

    def generate(
        self,
        base: Mapping[str, Any],
        sources: Any = None,
        unit_locations: Any = None,
        source_representations: Any = None,
        subspaces: Any = None,
        *,
        intervene_on_prompt: bool = False,
        steps: int | Sequence[int] | str | None = None,
        output_original_output: bool = False,
        return_dict: bool | None = None,
        **generate_kwargs: Any,
    ) -> tuple[Any, Any] | IntervenableGeneration:
        """Generate with the model's own `generate` while the interventions are in place.

        Generated tokens are numbered from 0; an edit at token k acts when that token is processed, so it changes the
        tokens after it. The last generated token is never processed. Sources run once, before the generation.

        Args:
            base: the prompts, as for `forward`; left-padded where lengths differ.
            sources: as for `forward`.
            unit_locations: as for `forward`; base positions are positions of the prompt. Without
                `intervene_on_prompt` a base position may only be 0: the token that is being processed.
            source_representations: as for `forward`.
            subspaces: as for `forward`.
            intervene_on_prompt: edit the prompt's positions (all of them without `unit_locations`).
            steps: which generated tokens to edit: a number, several, or `"all"`. Default: all, or none with
                `intervene_on_prompt`.
            output_original_output: also generate without interventions.
            return_dict: return an `IntervenableGeneration` instead of the pair.
            **generate_kwargs: handed to the model's `generate`.

        Returns:
            `(original, intervened)`: what the model's `generate` returned (token ids, usually).
        """
        _refuse_misspelt(generate_kwargs, self.generate, self.model.forward)
        timing = Timing(intervene_on_prompt, _read_steps(steps, intervene_on_prompt))
        call = Call(base, sources, unit_locations, source_representations, subspaces, timing)
        bound = self._bind(compose(self.config, self.representations, call))
        original = engine.generate_plain(self.model, base, generate_kwargs) if output_original_output else None
        outcome = engine.generate(bound, generate_kwargs)
        if not return_dict:
            return original, outcome.outputs["base"]
        seen = self._collected(outcome)
        values, masks = [list(one.values) for one in seen], [list(one.real) for one in seen]
        return IntervenableGeneration(original, outcome.outputs["base"], values, masks, outcome.effects)

    def get_trainable_parameters(self) -> list[nn.Parameter]:
        """Return each parameter of the interventions that requires a gradient, once."""
        return [p for p in self._trained.parameters() if p.requires_grad]

    def _bind(self, composed: Composed) -> Bound:
        return engine.bind(self.model, composed.plan, composed.inputs, self.interventions, composed.constants)

    def _collected(self, outcome: Outcome) -> list[Collected]:
        return [outcome.collected[key] for key in self.interventions if key in outcome.collected]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Return what the calls of a module gave as one tensor."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def _refuse_misspelt(keywords: Mapping[str, Any], ours: Callable[..., Any], models: Callable[..., Any]) -> None:
    """Refuse a keyword that is nearly one of ours: transformers' models swallow those that they do not know.

    Raises:
        UnknownNameError: the model's forward pass does not name it, and one of `ours` is nearly spelt so.
    """
    if not keywords:
        return
    known = [name for name in inspect.signature(ours).parameters if len(name) > 4]
    for keyword in keywords.keys() - inspect.signature(models).parameters.keys():
        close = get_close_matches(keyword, known, n=1, cutoff=0.8)
        if close:
            raise UnknownNameError(f"no argument {keyword!r}: did you mean {close[0]!r}?")


def _with_kwargs(base: Inputs, model_kwargs: Mapping[str, Any]) -> Inputs:
    """Return the base together with further keyword arguments of the model."""
    if not model_kwargs:
        return base
    if not isinstance(base, Mapping):
        raise SpecError(f"the base is one tensor, so {sorted(model_kwargs)} cannot go with it: pass the base as a dict")
    return {**base, **model_kwargs}


def _read_steps(steps: int | Sequence[int] | str | None, on_prompt: bool) -> Steps:
    if steps is None:
        return () if on_prompt else "all"
    if isinstance(steps, str):
        if steps != "all":
            raise SpecError(f"steps is a number, several numbers, or 'all'; found {steps!r}")
        return "all"
    return (steps,) if isinstance(steps, int) else tuple(int(step) for step in steps)


def _represent(config: IntervenableConfig, model: nn.Module) -> list[Representation]:
    """Return the representations with their sites found and their interventions built; linked ones share a module."""
    linked: dict[Any, Intervention] = {}
    found = []
    for number, (spec, representation) in enumerate(zip(config.specs(), config.representations, strict=True)):
        site = Site(representation.component, representation.layer, representation.call)
        slot = find_place(model, site)
        link = representation.intervention_link_key
        intervention = linked.get(link) if link is not None else None
        if intervention is None:
            intervention = build_intervention(spec, _options(representation, slot))
        if link is not None:
            linked[link] = intervention
        addressed = Addressed(representation.unit, representation.max_number_of_units)
        found.append(Representation(_key(representation, number), site, intervention, addressed))
    return found


def _options(representation: RepresentationConfig, slot: Slot) -> dict[str, Any]:
    """Return the constructor arguments that a representation gives its intervention."""
    width = slot.width
    if representation.unit in ("h", "h.pos") and slot.heads is not None:
        width = slot.heads.shape[1] * representation.max_number_of_units
    return {
        "embed_dim": width,
        "subspace_partition": representation.subspace_partition,
        "low_rank_dimension": representation.low_rank_dimension,
        "source_representation": representation.source_representation,
    }


def _key(representation: RepresentationConfig, number: int) -> str:
    layer = "" if representation.layer is None else f"layer.{representation.layer}."
    units = f"unit.{representation.unit}.nunit.{representation.max_number_of_units}"
    return f"{layer}comp.{representation.component}.{units}#{number}"
