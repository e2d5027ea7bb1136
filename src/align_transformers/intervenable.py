"""`IntervenableModel`, the friendly face: a configuration becomes a plan, is bound to the model, and is run."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, overload

from torch import nn

from . import engine, planners, storage
from ._checked import checked
from ._errors import SpecError
from ._summarised import Summarised, Summary
from .applied import applied
from .around import AroundModel
from .binding_cache import BindingCache
from .compose import Call, Timing, compose
from .config import IntervenableConfig, ModelsConfig
from .engine import Bound, Inputs, Planner
from .interventions import TrainableIntervention
from .keywords import forward_keywords, generate_keywords, sorted_out, with_keywords
from .learning import Alignment, Fitted, Scores, evaluate_call, fit_call
from .models.padding import as_alone, warn_of_shift
from .models.sequence import check_tokens
from .outputs import IntervenableGeneration, IntervenableOutput, check_seen, generation_of, output_of
from .positions import read_steps
from .representations import expanded, represent


class IntervenableModel(Summarised, AroundModel):
    """A model together with interventions on its activations. The model itself is never changed.

    A `Trainer` that gets it learns and saves the interventions; its `compute_loss` says how the model is called and
    what the loss is. (`for_training()` is a module that needs none.) What it sets by name, such as
    `config.use_cache`, or asks for, such as gradient checkpointing, it sets and asks for at the model.

    Args:
        config: an `IntervenableConfig`, a `RepresentationConfig`, a dict, or a list of these.
        model: any `nn.Module`; dotted paths address every module, component names the blocks of known families.
        planner: says which passes are run, as for `execute`; default: `planned`.

    Raises:
        UnknownNameError: a component, unit or keyword is misspelt.
        SiteError: the model has no such layer or module.

    >>> import torch
    >>> from align_transformers import VanillaIntervention
    >>> mlp = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> swap = IntervenableModel({"component": "1.output", "intervention_type": VanillaIntervention}, model=mlp)
    >>> base, source = torch.zeros(1, 3), torch.ones(1, 3)
    >>> torch.equal(swap(base, source)[1], mlp(source))
    True
    """

    @checked
    def __init__(self, config: Any, model: nn.Module, *, planner: Planner | None = None) -> None:
        super().__init__(model)
        self.planner = planner
        self.config = ModelsConfig.at(expanded(IntervenableConfig.of(config), model), getattr(model, "config", None))
        self.representations = represent(self.config, model)
        self.interventions = {r.key: r.intervention for r in self.representations}
        self._trained = nn.ModuleList(dict.fromkeys(self.interventions.values()))
        self._bindings = BindingCache(self.config, self.interventions)

    def _summary(self) -> Summary:
        learning = sum(p.numel() for p in self.get_trainable_parameters())
        said = f", {learning} trainable weights" if learning else ""
        facts = ((str(one.site), type(one.intervention).__name__) for one in self.representations)
        return f"IntervenableModel of {type(self.model).__name__}, {self.config.mode}{said}", facts

    @checked
    def forward(
        self,
        base: Inputs,
        sources: Any = None,
        unit_locations: Any = None,
        source_representations: Any = None,
        subspaces: Any = None,
        output_original_output: bool = False,
        return_dict: bool | None = None,
        labels: Any = None,
        **model_kwargs: Any,
    ) -> tuple[Any, Any] | IntervenableOutput:
        """Run the base with the interventions in place.

        Args:
            base: the model's keyword arguments as a dict (or its only argument, a tensor), batch first. The model gets
                them as they are: a batch that is padded on the left needs `position_ids` where the model's positions
                are learned (`grid`, `activations`, `fit`, `evaluate` and `generate` see to that by themselves).
            sources: one dict for all groups, or a list with one a group; `None` in the list skips the group's
                interventions that need a source. A source of one example serves every example of the base.
            unit_locations: where to read and write; see `locate`. `None` is the whole tensor.
            source_representations: constant sources: a tensor for all, a list in order, or a dict by key or number;
                each `(width,)` or broadcastable to `(batch, units, width)`.
            subspaces: `[n_interventions][batch][ids]`; missing outer levels are the same for all.
            output_original_output: also run the base without interventions.
            return_dict: return an `IntervenableOutput` instead of the pair; needed where something is collected.
            labels: handed to the model with the base.
            **model_kwargs: likewise (`use_cache`, `output_hidden_states`, ...): what its signature names.
                `activations_sources` is another name of `source_representations`.

        Returns:
            `(original, counterfactual)`: what the model returned for the plain base (`None` unless asked for) and for
            the edited one.

        Raises:
            AlignError: any of its kinds; wrong arguments are refused before a forward pass is run.

        Warns:
            UserWarning: padding on the left shifts what the model makes of the tokens, for want of `position_ids`.
        """
        model_kwargs |= {} if labels is None else {"labels": labels}
        given, rest = self._sorted_out(model_kwargs, forward_keywords, source_representations)
        call = Call(with_keywords(base, rest), sources, unit_locations, given, subspaces)
        bound = self._bind(call, original=output_original_output)
        check_seen(bound, return_dict)
        for inputs in (call.base, *(sources if isinstance(sources, list | tuple) else [sources])):
            warn_of_shift(self.model, inputs)
        outcome = planners.execute(bound, self.planner)
        pair = outcome.outputs.get("original"), outcome.outputs["base"]
        return output_of(pair, outcome, self.interventions) if return_dict else pair

    @checked
    def generate(
        self,
        base: Annotated[Mapping[str, Any], "Of a text tokenizer(text, return_tensors='pt') makes one"],
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

        Generated tokens are numbered from 0; an edit at token k acts when it is processed, so on what comes after it.
        The last is never processed; the logits of token 0 are at the prompt's end. Sources run once, before all that.

        Args:
            base: the prompts, as for `forward`; left-padded where lengths differ.
            sources: as for `forward`; they get `position_ids` where they need some.
            unit_locations: as for `forward`; base positions are positions of the prompt. Without
                `intervene_on_prompt` a base position may only be 0: the token that is being processed.
            source_representations: as for `forward`.
            subspaces: as for `forward`.
            intervene_on_prompt: edit the prompt's positions (all of them without `unit_locations`).
            steps: which generated tokens to edit: a number, several, or `"all"`. Default: all, or none with
                `intervene_on_prompt`.
            output_original_output: also generate without interventions.
            return_dict: return an `IntervenableGeneration` instead of the pair; needed where something is collected.
            **generate_kwargs: handed to the model's `generate`: what this, its configuration or `forward` names.

        Returns:
            `(original, intervened)`: what the model's `generate` returned (token ids, usually).
        """
        source_representations, generate_kwargs = self._sorted_out(
            generate_kwargs, generate_keywords, source_representations
        )
        timing = Timing(intervene_on_prompt, read_steps(steps, () if intervene_on_prompt else "all"))
        call = Call(base, sources, unit_locations, source_representations, subspaces, timing)
        # refuses what is wrong, before anything is run to see what padding does
        check_seen(self._bind(call), return_dict)
        bound = self._bind(replace(call, sources=as_alone(self.model, sources)))  # as generation does with the prompts
        original = engine.generate_plain(self.model, base, generate_kwargs) if output_original_output else None
        outcome = engine.generate(bound, generate_kwargs, self.planner or planners.DEFAULT)
        pair = original, outcome.outputs["base"]
        return generation_of(pair, outcome, self.interventions) if return_dict else pair

    applied = applied

    @overload
    def train(self, mode: bool = True) -> IntervenableModel: ...

    @overload
    def train(
        self,
        mode: Iterable[Any] | Literal[True] = True,
        compute_loss: Callable[..., Any] | None = None,
        compute_metrics: Callable[..., Any] | None = None,
        inputs_collator: Callable[[Any], Any] | None = None,
        *,
        train_dataloader: Iterable[Any] | None = None,
        **options: Any,
    ) -> Fitted: ...

    def train(
        self,
        mode: bool | Iterable[Any] = True,
        compute_loss: Callable[..., Any] | None = None,
        compute_metrics: Callable[..., Any] | None = None,
        inputs_collator: Callable[[Any], Any] | None = None,
        *,
        train_dataloader: Iterable[Any] | None = None,
        **options: Any,
    ) -> IntervenableModel | Fitted:
        """With a data loader, `train_alignment`; else switch between training and eval mode, as every module does.

        Args:
            mode: the mode; or the data loader.
            compute_loss: as for `train_alignment`.
            compute_metrics: likewise.
            inputs_collator: likewise.
            train_dataloader: the data loader, by name.
            **options: as for `train_alignment`.

        Returns:
            What came of the fit; without a data loader the model itself.

        Raises:
            SpecError: there is something to train with, but no data loader.
        """
        loader = train_dataloader if isinstance(mode, bool) else mode
        if loader is not None:
            return self.train_alignment(loader, compute_loss, compute_metrics, inputs_collator, **options)
        if options or compute_loss is not None or compute_metrics is not None or inputs_collator is not None:
            raise SpecError("training an alignment needs data: train_dataloader=...")
        super().train(bool(mode))
        return self

    def train_alignment(
        self,
        train_dataloader: Iterable[Any],
        compute_loss: Callable[..., Any] | None = None,
        compute_metrics: Callable[..., Any] | None = None,
        inputs_collator: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> Fitted:
        """Learn the parameters of the interventions; the model is frozen, and afterwards as it was.

        Args:
            train_dataloader: gives batches: dicts with `input_ids`, `source_input_ids`, `labels`,
                `source_0->base.0.pos` (where the source is read), `source_0->base.1.pos` (where the base is written)
                and more; see `align_transformers.learning.batches`.
            compute_loss: `(logits, labels)` -> the loss, with the logits as the model gives them; default: the
                cross-entropy at each example's last real token.
            compute_metrics: `([logits], [labels])` -> a dict of numbers; the first is followed. Default: IIA there.
            inputs_collator: makes such a dict of what the loader gives.
            **options: further arguments of `fit`: `epochs`, `lr`, `validation`, `progress`, ...

        Returns:
            The history and the best weights.
        """
        return fit_call(self, train_dataloader, compute_loss, compute_metrics, inputs_collator, options)

    def evaluate(
        self,
        eval_dataloader: Iterable[Any] | None = None,
        compute_metrics: Callable[..., Any] | None = None,
        inputs_collator: Callable[[Any], Any] | None = None,
        *,
        train_dataloader: Iterable[Any] | None = None,
        **options: Any,
    ) -> Scores:
        """Measure the interventions on data; `evaluate_alignment` and `eval_alignment` are names of the same.

        Args:
            eval_dataloader: gives batches, as for `train_alignment`.
            compute_metrics: as for `train_alignment`.
            inputs_collator: likewise.
            train_dataloader: another name of `eval_dataloader`.
            **options: further arguments of `align_transformers.evaluate`.

        Returns:
            A mapping from metrics to their means over all examples; it has intervals, subsets and hard masks, too.
        """
        loader = train_dataloader if eval_dataloader is None else eval_dataloader
        return evaluate_call(self, loader, compute_metrics, inputs_collator, options)

    evaluate_alignment = evaluate
    eval_alignment = evaluate

    def for_training(self, **options: Any) -> Alignment:
        """Return what learns as a module whose `forward(**batch)` gives a loss: for a `Trainer`, Accelerate, or a loop.

        Args:
            **options: arguments of `Alignment`: `loss`, `positions`, `collator`, `forward`.
        """
        return Alignment(self, **options)

    def hardened(self) -> IntervenableModel:
        """Return the same interventions as they are to be used after a fit: frozen copies, their masks hard."""
        hard = {one: one.hardened() if isinstance(one, TrainableIntervention) else one for one in self._trained}
        built = {"intervention_type": None, "subspace_partition": None, "low_rank_dimension": None}
        listed = [
            replace(spec, intervention=hard[one.intervention], source_representation=None, **built)
            for spec, one in zip(self.config.representations, self.representations, strict=True)
        ]
        return IntervenableModel(replace(self.config, representations=listed), self.model)

    def get_trainable_parameters(self) -> list[nn.Parameter]:
        """Return each parameter of the interventions that requires a gradient, once."""
        return [p for p in self._trained.parameters() if p.requires_grad]

    @checked
    def save(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
        tokenizer: Any = None,
        overwrite: bool = False,
        save_directory: str | os.PathLike[str] | None = None,
    ) -> Path:
        """Write the interventions to a folder from which `load` gets them back, bit for bit; the model is not saved.

        Args:
            folder: a new or empty folder.
            metrics: scores by name, for the record and the model card.
            tokenizer: what the inputs were made with, if that matters.
            overwrite: replace a folder that was saved before; nothing else is ever replaced.
            save_directory: another name of `folder`.

        Raises:
            SpecError: an intervention is a function, or does not tell its constructor arguments; no folder, or two.
            ArtifactError: the folder holds something already.
        """
        target = folder if save_directory is None else save_directory
        if target is None or (folder is not None and save_directory is not None):
            raise SpecError("say once where the interventions go: save(folder)")
        return storage.save(self._contents(metrics, tokenizer), target, overwrite=overwrite)

    @checked
    def push_to_hub(
        self, name: str, *, metrics: Mapping[str, Any] | None = None, tokenizer: Any = None, **options: Any
    ) -> str:
        """Put what `save` writes into a repository `user/name` of the model hub; return the commit's hash.

        Args:
            name: `user/name`.
            metrics: as for `save`.
            tokenizer: as for `save`.
            **options: of `storage.push`: `private`, `revision`, `token`, `message`.

        Raises:
            ArtifactError: the hub refuses, or cannot be reached.
        """
        return storage.push(self._contents(metrics, tokenizer), name, **options)

    @classmethod
    @checked
    def load(cls, folder_or_hub_name: str | os.PathLike[str], *, model: nn.Module, **options: Any) -> IntervenableModel:
        """Load interventions that were saved here or by pyvene, from a folder or from `user/name` on the model hub.

        Nothing that a file names is imported or run. The model has to be the one that they were made with.

        Args:
            folder_or_hub_name: a folder; or `user/name`, where there is no folder of that name. A missing folder is
                never taken for a hub name in silence.
            model: the model to intervene on.
            **options: of `storage.load`: `classes`, `strict`, `waive`, `tokenizer`, `revision`, `token`, `cache_dir`.

        Raises:
            ArtifactError: it is not there, is damaged, names an unknown class, or was made with another model.

        Warns:
            UserWarning: with `strict=False`, about everything that differs.
        """
        return cls(storage.load(folder_or_hub_name, model=model, **options).config, model)

    from_pretrained = load

    def _contents(self, metrics: Mapping[str, Any] | None, tokenizer: Any) -> storage.Contents:
        return storage.Contents(self.config, list(self.interventions.values()), self.model, metrics, tokenizer)

    def _bind(self, call: Call, *, original: bool = False) -> Bound:
        """Return the plan of a call, bound; a call like the last one is bound as that was."""
        several = call.sources if isinstance(call.sources, list | tuple) else [call.sources]
        for name, inputs in (("the base", call.base), *(("a source", one) for one in several)):
            check_tokens(self.model, inputs, name)

        def bind() -> Bound:
            composed = compose(self.config, self.representations, call, original=original)
            return engine.bind(self.model, composed.plan, composed.inputs, composed.interventions, composed.constants)

        return self._bindings.bound(self.model, call, original, bind)

    def _sorted_out(
        self, keywords: Mapping[str, Any], names: Callable[[nn.Module], Iterable[str]], source_representations: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Return the constant sources, under whichever name they were given, and the model's keywords."""
        if not keywords:
            return source_representations, {}
        ours = dict.fromkeys(inspect.signature(self.generate).parameters.keys() | {"return_dict"})
        ours["source_representations"] = source_representations
        found, rest = sorted_out(keywords, ours, names(self.model))
        return found["source_representations"], rest
