"""Every public function gets wrong types in the place of each argument: what comes of it is no error but of ours."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import new_model, tokens
from tests.untyped import untyped
from torch import nn
from transformers import GPT2Config

import align_transformers as at
from align_transformers import AlignError, operations, subspaces
from align_transformers.interventions.intervention import Intervention

WRONG: tuple[Any, ...] = (
    None, True, -1, 3.5, "nonsense", [object()], ["Spain"], [[3], [6]], {"a": 1}, object(), torch.ones(2, 2),
)  # fmt: skip
"""What is not of the type that is wanted, wherever it is put; functions are not among them, as only a call tells."""

RESULTS = {
    "AlignmentResult", "AppliedEdits", "Bound", "CircuitGraph", "Collected", "Comparison", "Description", "Effect",
    "Fitted", "IntervenableGeneration", "IntervenableOutput", "Interval", "Outcome", "Planner", "Scan", "Scores",
    "Step", "COMPONENTS",
}  # fmt: skip
"""What is handed out, and made by nobody else."""
ABSTRACT = {"ConstantSourceIntervention", "Intervention", "SourcelessIntervention", "TrainableIntervention"}
MODULES = {"operations", "subspaces"}


@lru_cache(maxsize=1)
def model() -> nn.Module:
    return new_model("gpt2")


@lru_cache(maxsize=4)
def face(kind: type = at.VanillaIntervention, **options: Any) -> at.IntervenableModel:
    return at.IntervenableModel(
        {"layer": 2, "component": "block_output", "intervention_type": kind, **options}, model()
    )


def learner() -> at.IntervenableModel:
    return face(at.LowRankRotatedSpaceIntervention, low_rank_dimension=2)


def batch() -> dict[str, Any]:
    where = torch.tensor([[2], [2]])
    sides = {"source_0->base.0.pos": where, "source_0->base.1.pos": where}
    return {
        "input_ids": tokens(2, 4, 1)["input_ids"],
        "source_input_ids": tokens(2, 4, 2)["input_ids"],
        "labels": torch.tensor([5, 6]),
        **sides,
    }


def words() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"?": 0, "a": 1, "b": 2}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def site() -> at.Site:
    return at.Site("mlp_output", 0)


def adder() -> at.CausalModel:
    return at.CausalModel(["a", "b"], {"a": range(3)}, {"b": ["a"]}, {"b": lambda a: a + 1})


SUMS = at.CausalModel(
    ["a", "b", "sum"], {"a": range(5), "b": range(5)}, {"sum": ["a", "b"]}, {"sum": lambda a, b: a + b}
)
PARTS = at.CounterfactualDataset.sample(SUMS, 2000, variables="a", seed=0)


NODES = at.graph(model())


def numbers_of(one: dict[str, Any]) -> list[float]:
    return [float(one["a"]), float(one["b"])]


def pairs() -> at.CounterfactualDataset:
    return at.CounterfactualDataset.sample(adder(), 40, variables="a", seed=0)


def plan() -> at.Plan:
    return at.Plan((at.Run("base", "x"),), ("base",), at.Logits((4,)))


def table() -> at.Table:
    rows = [{"component": "block_output", "layer": n, "position": 1, "recovered": 0.5} for n in range(2)]
    return at.Table.from_rows(rows, meta={})


def bound() -> at.Bound:
    return at.bind(model(), plan(), {"x": tokens(1, 3)}, {})


PROMPTS = {"model": model(), "base": tokens(1, 3, 1), "source": tokens(1, 3, 2)}
SWEPT = {"components": ["mlp_output"], "layers": [2], "planner": at.one_by_one, "progress": None}
DATA = {"model": model(), "data": tokens(2, 3), "site": site()}
LOGITS = {"logits": torch.zeros(2, 5), "labels": torch.tensor([1, 2])}
LOADER = {"loader": [batch()], "collator": None}

CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "grid": (at.grid, {**PROMPTS, **SWEPT, "positions": [1], "answers": (4, 5), "tokenizer": None,
                       "metric": None, "metrics": None, "heads": None, "neurons": None,
                       "directions": ["noise"], "last": None, "at": -1, "top": 0,
                       "window": 1, "align": None, "columns": None, "store": None, "screen": None, "seed": 0}),
    "attribution": (at.attribution, {**PROMPTS, **SWEPT, "positions": [1], "answers": (4, 5), "tokenizer": None,
                    "metric": None, "heads": None, "neurons": None, "directions": ["noise"], "last": None, "at": -1,
                    "window": 1, "align": None, "columns": None, "method": "atp", "rule": "true", "along": "inputs",
                    "points": 2, "drop": False, "verify": 2, "seed": 0}),
    "edge_attribution": (at.edge_attribution, {
        **PROMPTS, "tokenizer": None, "columns": None, "method": "eap", "rule": "true", "points": 2, "metric": None,
        "answers": (4, 5), "at": -1, "heads": True, "experts": True, "verify": None, "at_once": 2, "seed": 0,
        "progress": None}),
    "Circuit": (at.Circuit, {"graph": NODES, "kept": torch.zeros(len(NODES), dtype=torch.bool),
                "scores": torch.zeros(len(NODES)), "facts": {"seed": 0}}),
    "circuit": (at.circuit, {
        **PROMPTS, "method": "eap", "level": "edges", "heads": True, "experts": True, "edges": 3, "nodes": None,
        "neurons": None, "threshold": None,
        "select": "top", "signed": False, "orders": ("backward",), "points": 2, "steps": 1, "rate": 0.1,
        "ablation": "resample", "reference": None, "metric": None, "answers": (4, 5), "tokenizer": None,
        "columns": None, "at": -1, "at_once": 2, "seed": 0, "store": None, "progress": None}),
    "evaluate_circuit": (at.evaluate_circuit, {
        **PROMPTS, "circuit": at.Circuit.of(NODES, [("input", "logits")]), "tokenizer": None,
        "columns": None, "ablation": None, "reference": None, "metric": None, "answers": (4, 5), "at": -1,
        "held_out": True, "sizes": (0.5, 1.0), "controls": 1, "minimality": False, "truth": [("input", "logits")],
        "at_once": 2, "seed": 0, "progress": None}),
    "graph": (at.graph, {"model": model(), "heads": True, "per_query_head": False, "experts": True}),
    "score": (at.score, {"model": model(), "prompts": tokens(2, 3), "metric": at.accuracy(3),
                         "metrics": None, "tokenizer": None, "columns": None, "at": -1, "store": None,
                         "progress": None, "planner": None}),
    "causal_tracing": (at.causal_tracing, {"model": model(), "prompts": tokens(1, 4), "subject": [1], **SWEPT,
                       "tokenizer": None, "positions": [2], "window": 1, "noise": 3.0,
                       "absolute": False, "draws": 1, "seed": 0, "counterfactual": None,
                       "severed": (), "severed_at": "all", "answers": 5, "columns": None, "store": None}),
    "path_patching": (at.path_patching, {**PROMPTS, "planner": at.one_by_one, "progress": None, "receivers": "m1",
                      "senders": ["m0"], "through": (), "freeze": "all", "positions": None,
                      "receiver_positions": None, "per_query_head": False, "tokenizer": None,
                      "metric": None, "metrics": None, "answers": (4, 5), "last": None, "at": -1,
                      "align": None, "columns": None, "store": None}),
    "logit_lens": (at.logit_lens, {"model": model(), "prompts": tokens(1, 3), "components": ["mlp_output"],
                   "layers": [2], "positions": [1], "answers": 4, "top": 1, "tokenizer": None, "columns": None,
                   "store": None, "progress": None, "planner": at.one_by_one}),
    "scan": (at.scan, {"model": model(), "prompt": "a b", "against": "b b", "tokenizer": words(), "answers": ("a", "b"),
                       "top": 1, "verify": 0, "seed": 0, "progress": None, "planner": at.one_by_one}),
    "probe": (at.probe, {
        "model": model(), "prompts": tokens(4, 3), "labels": [0, 1, 0, 1], "components": ["mlp_output"],
        "layers": [2], "positions": [1], "groups": None, "types": None, "estimator": "difference_of_means",
        "columns": None, "erasure": "direction", "folds": 2, "draws": 1, "answers": [4, 5, 4, 5], "metric": None,
        "at": -1, "seed": 0, "tokenizer": None, "store": None, "progress": None, "planner": at.one_by_one}),
    "causal_scrubbing": (at.causal_scrubbing, {
        "model": model(), "prompts": tokens(2, 3), "hypothesis": [at.Claim(at.Site("mlp_output", 0), [0, 0])],
        "answers": 4, "metric": None, "draws": 1, "seed": 0, "together": False, "tokenizer": None, "columns": None,
        "store": None, "progress": None, "planner": at.one_by_one}),
    "direct_logit_attribution": (at.direct_logit_attribution, {
        "model": model(), "prompts": tokens(1, 3), "answers": 4, "against": 5, "heads": True, "at": -1,
        "tokenizer": None, "columns": None, "planner": at.one_by_one}),
    "align": (lambda **k: at.align(k.pop("model"), k.pop("causal_model"), k.pop("data"), encode=numbers_of, **k), {
        "model": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 9)), "causal_model": SUMS, "data": PARTS,
        "tokenizer": None, "label": None, "variables": ["a"], "sites": "0.output", "layers": "all", "heads": None,
        "positions": None, "methods": ["swap"], "ranks": 1, "seeds": 1, "loss": "all", "batch_size": 4,
        "search": "all", "controls": [], "draws": 2, "only_solved": False, "random_model": None, "memory": 2**20,
        "resamples": 2, "confidence": 0.9, "seed": 0, "store": None, "progress": None}),
    "steer": (at.steer, {
        "model": model(), "prompts": tokens(1, 3), "metric": at.logit_difference(4, 5), "layers": [0],
        "direction": torch.ones(32), "positive": None, "negative": None, "read_at": -1,
        "component": "block_output", "doses": [1.0], "positions": [1], "generated": True, "skip_first": True,
        "max_new_tokens": 1, "temperature": None, "control": False, "seed": 0, "batch_size": 4,
        "tokenizer": None, "progress": None, "planner": at.one_by_one}),
    "CausalModel": (at.CausalModel, {
        "variables": ["a", "b"], "values": {"a": [0, 1]}, "parents": {"b": ["a"]}, "functions": {"b": int},
        "timesteps": None, "equiv_classes": None}),
    "causal_model": (at.causal_model, {"function": None, "values": {"a": [0, 1]}}),
    "CounterfactualDataset": (at.CounterfactualDataset, {
        "causal_model": adder(), "base": {"a": [0]}, "sources": {"a": {"a": [1]}}, "where": {"a": [True]},
        "output": "b", "labels": [2], "base_labels": [1], "entity": ("a",), "facts": {}}),
    "sample": (at.CounterfactualDataset.sample, {
        "causal_model": adder(), "size": 4, "variables": ["a"], "output": None, "seed": 0, "balanced": None,
        "where": None, "trivial": False, "entity": None}),
    "of": (at.CounterfactualDataset.of, {
        "causal_model": adder(), "base": [{"a": 0}], "source": [{"a": 1}], "variables": "a", "output": None,
        "trivial": False, "entity": None}),
    "pairs": (at.CounterfactualDataset.pairs, {
        "causal_model": adder(), "inputs": [{"a": 0}, {"a": 1}], "variables": "a", "output": None, "trivial": False,
        "entity": None}),
    "generate_factual_dataset": (lambda **k: adder().generate_factual_dataset(**k), {
        "size": 4, "generator": np.random.default_rng(0), "sampler": None, "where": None, "balanced": None}),
    "generate_counterfactual_dataset": (lambda **k: adder().generate_counterfactual_dataset(**k), {
        "size": 4, "generator": np.random.default_rng(0), "variables": "a", "output": None, "sampler": None,
        "where": None, "balanced": None, "trivial": False, "entity": None}),
    "take": (lambda **k: pairs().take(**k), {"which": [0, 2]}),
    "entities": (lambda **k: pairs().entities(**k), {"side": "base", "by": None}),
    "split": (lambda **k: pairs().split(**k), {"shares": (0.4, 0.3, 0.3), "by": None, "seed": 0}),
    "batches": (lambda **k: pairs().batches(**k), {
        "batch_size": 4, "template": "a", "tokenizer": words(), "encode": None, "label": lambda value: value,
        "positions": 0, "unit": "pos", "interventions": ["a"], "subspaces": None, "seed": 0}),
    "batches of vectors": (lambda **k: pairs().batches(**k), {
        "batch_size": 4, "encode": lambda one: [0.5], "label": None, "subspaces": {"a": 0}}),
    "from_dataset": (at.CounterfactualDataset.from_dataset, {
        "dataset": [{"base": {"a": 0}, "sources": {"a": {"a": 1}}, "where": {"a": True}}], "causal_model": adder(),
        "output": None, "entity": None}),
    "load of pairs": (at.CounterfactualDataset.load, {"folder": "./nothing", "causal_model": adder()}),
    "filter": (lambda **k: pairs().filter(**k), {"keep": [True] * 40, "why": "all"}),
    "OnArrays": (at.OnArrays, {"function": len}),
    "Claim": (at.Claim, {"site": at.Site("mlp_output", 0), "feature": [0, 1], "positions": None, "children": ()}),
    "activations": (at.activations, {**DATA, "positions": "last", "tokenizer": None, "planner": None,
                                     "progress": None}),
    "attention_patterns": (at.attention_patterns, {"model": model(), "prompts": tokens(1, 3), "tokenizer": None,
                           "columns": None, "component": "attention_pattern", "layers": [0], "heads": [1],
                           "positions": [1], "planner": None}),
    "attention_tensor": (at.attention_tensor, {"model": model(), "inputs": tokens(1, 3), "layer": 0,
                         "component": "attention_pattern", "planner": None}),
    "fit_pca": (at.fit_pca, {**DATA, "k": 1, "positions": "all", "tokenizer": None, "standardise": True,
                             "progress": None}),
    "bind": (at.bind, {"model": model(), "plan": plan(), "inputs": {"x": tokens(1, 3)}, "interventions": {},
                       "constants": None}),
    "execute": (at.execute, {"bound": bound(), "planner": None, "ready": None}),
    "describe": (at.describe, {"model": model()}),
    "resolve": (at.resolve, {"model": model(), "example_inputs": None, "overrides": None}),
    "fit": (at.fit, {"intervened": learner(), **LOADER, "epochs": 1, "positions": "last", "lr": 1e-3,
                     "metric_positions": None, "validation": None, "optimizer": None,
                     "scheduler": None, "forward": None, "memory": False, "loss": at.cross_entropy,
                     "metric": at.iia, "checkpoints": None, "resume": False}),
    "evaluate": (at.evaluate, {"intervened": learner(), **LOADER, "metrics": at.iia, "positions": "last",
                               "forward": None, "memory": False, "resamples": 2,
                               "confidence": 0.9, "seed": 0, "progress": None}),
    "compare": (at.compare, {"candidates": {"one": learner()}, **LOADER, "metrics": at.iia,
                             "positions": "last", "random": True, "planner": None,
                             "resamples": 2, "confidence": 0.9, "seed": 0, "progress": None}),
    "precompute": (at.precompute, {"intervened": learner(), **LOADER, "memory": None, "progress": None}),
    "bootstrap": (at.bootstrap, {"values": torch.ones(3), "resamples": 2, "confidence": 0.9,
                                 "seed": 0}),
    "progress_bar": (at.progress_bar, {}),
    "where": (at.where, {"tokenizer": words(), "prompts": ["a b"], "text": "b", "which": "all",
                         "occurrence": None, "fields": None, "attention_mask": None}),
    "load_model": (at.load_model, {"name_or_path": "./nothing", "dtype": "auto", "cache_dir": None,
                                   "device_map": None}),
    "create_gpt2": (at.create_gpt2, {"name": None, "config": GPT2Config(n_layer=1, n_embd=8, n_head=2),
                                     "cache_dir": None}),
    "GRUConfig": (at.GRUConfig, {"h_dim": 4, "n_layer": 1, "include_bias": True,
                                 "pdrop": 0.0, "vocab_size": 4, "num_classes": 2}),
    "TransformerConfig": (at.TransformerConfig, {"h_dim": 4, "n_head": 2, "n_layer": 1, "mlp_dim": 4, "n_outputs": None,
                                                 "head_dim": None, "causal": True, "norm": True, "vocab_size": 4}),
    "MLPConfig": (at.MLPConfig, {"h_dim": 4, "n_layer": 1, "num_classes": 2,
                                 "activation": "relu", "include_bias": True, "pdrop": 0.0}),
    "Metric": (at.Metric, {"name": "m", "function": torch.sum, "tokens": None,
                           "compares": False}),
    "Anchor": (at.Anchor, {"text": "a", "which": "all", "occurrence": None}),
    "Settings": (at.Settings, {name: getattr(at.Settings(), name) for name in vars(at.Settings())}),
    "Site": (at.Site, {"component": "mlp_output", "layer": 0, "call": None}),
    "Positions": (at.Positions, {"rows": ((1,),), "heads": None, "steps": ()}),
    "Constant": (at.Constant, {"name": "c"}),
    "Read": (at.Read, {"run": "r", "site": site(), "positions": at.Positions(), "examples": None}),
    "Edit": (at.Edit, {"name": "e", "site": site(), "intervention": "i", "positions": at.Positions(),
                       "subspace": None, "source": None}),
    "Run": (at.Run, {"name": "r", "input": "x", "edits": (), "examples": None}),
    "Logits": (at.Logits, {"tokens": None, "at": (), "answers_of": ()}),
    "Plan": (at.Plan, {"runs": plan().runs, "outputs": ("base",), "logits": None,
                       "values": ()}),
    "Alignment": (at.Alignment, {"intervened": learner(), "loss": at.cross_entropy, "positions": "last",
                                 "collator": None, "forward": None}),
    "ActivationCache": (at.ActivationCache, {"budget": 10, "folder": None, "alone": False}),
    "Memory": (at.Memory, {"budget": 10, "folder": None, "alone": False}),
    "IntervenableModel": (at.IntervenableModel, {"config": {"layer": 0}, "model": model(), "planner": None}),
    "RepresentationConfig": (at.RepresentationConfig, {
        "layer": 0, "component": "mlp_output", "unit": "pos", "max_number_of_units": 1,
        "low_rank_dimension": None, "intervention_type": None, "intervention": None,
        "subspace_partition": None, "group_key": None, "intervention_link_key": None,
        "source_representation": None, "call": None}),
    "IntervenableConfig": (at.IntervenableConfig, {
        "model_type": None, "representations": {"layer": 0}, "mode": "parallel",
        "intervention_types": at.VanillaIntervention, "interventions": None}),
    "SubspaceIntervention": (at.SubspaceIntervention, {
        "operation": operations.Zero(), "subspace": None, "coordinates": None,
        "subspace_partition": None, "source_representation": None, "keep_last_dim": True,
        "interchange_dim": None}),
    "FunctionIntervention": (at.FunctionIntervention, {"function": torch.relu}),
    **{name: (getattr(at, name), {"text": "a", "occurrence": None})
       for name in ("at", "first_token", "last_token")},
    **{name: (getattr(at, name), {"token": 3, "tokenizer": None})
       for name in ("accuracy", "probability", "rank")},
    "logit_difference": (at.logit_difference, {"target": 3, "other": 4, "tokenizer": None}),
    "kl_to_clean": (at.kl_to_clean, {}),
    **{name: (getattr(at, name), LOGITS) for name in ("cross_entropy", "iia", "label_difference")},
    "kl_divergence": (at.kl_divergence, {"logits": torch.zeros(2, 5), "target": torch.zeros(2, 5)}),
    **{name: (getattr(at, name), {"config": None})
       for name in ("create_gru", "create_gru_classifier", "create_gru_lm", "create_mlp_classifier",
                    "create_transformer_lm")},
    **{name: (getattr(at, name), {"bound": bound()}) for name in ("one_by_one", "planned")},
    # methods, and what is in the two public modules
    "forward": (lambda **k: face()(**k), {
        "base": tokens(1, 3, 1), "sources": tokens(1, 3, 2), "unit_locations": None,
        "source_representations": None, "subspaces": None, "output_original_output": False,
        "return_dict": None, "activations_sources": None}),
    "forward of 1-D or other ids": (lambda ids: face()({"input_ids": ids}, tokens(1, 3)), {
        "ids": tokens(1, 3)["input_ids"]}),
    "generate": (lambda **k: face(at.ZeroIntervention).generate(max_new_tokens=1, **k), {
        "base": tokens(1, 3, 1), "sources": None, "unit_locations": None,
        "source_representations": None, "subspaces": None, "intervene_on_prompt": True,
        "steps": None, "output_original_output": False, "return_dict": None}),
    "save": (lambda **k: face().save(**k), {"folder": "saved", "metrics": None, "overwrite": True}),
    "load": (at.IntervenableModel.load, {"folder_or_hub_name": "./nothing", "model": model()}),
    "Table": (at.Table.from_rows, {"rows": [{"layer": 0}], "meta": {}, "columns": None}),
    "Table, columns": (at.Table.from_columns, {"columns": {"layer": [0]}, "meta": {}}),
    "pivot": (lambda **k: table().pivot(**k), {"value": "recovered", "component": None}),
    "select": (lambda **k: table().select(**k), {"component": None, "where": None}),
    "plot": (lambda **k: table().plot(**k), {"value": "recovered", "component": None}),
    "concat": (at.Table.concat, {"tables": [table()], "name": "table"}),
    "relative_to": (lambda **k: table().relative_to(**k), {"anchor": [0, 0]}),
    "mean": (lambda **k: table().mean(**k), {"by": ["layer"], "value": "recovered"}),
}  # fmt: skip

NEEDED = {"embed_dim": 4, "low_rank_dimension": 2, "latent_dim": 6, "members": 2}


def interventions() -> list[str]:
    kinds = [
        name for name in dir(at) if inspect.isclass(getattr(at, name)) and issubclass(getattr(at, name), Intervention)
    ]
    return [name for name in kinds if name not in CALLS and name not in ABSTRACT]


def failures(call: Callable[..., Any], right: dict[str, Any]) -> list[str]:
    """Return what came of wrong arguments, but for errors of ours."""
    found = []
    for name in right:
        for wrong in WRONG:
            try:
                call(**{**right, name: wrong})
            except AlignError:
                pass
            except Exception as error:
                found.append(f"{name}={wrong!r:.40} -> {type(error).__name__}: {error!s:.120}")
    return found


@pytest.fixture(autouse=True)
def somewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Files go to a folder of the test's own, and warnings are none of its business."""
    monkeypatch.chdir(tmp_path)
    warnings.simplefilter("ignore")


@pytest.mark.parametrize("name", CALLS)
def test_wrong_types_are_taken_or_refused(name):
    call, right = CALLS[name]
    with untyped():
        found = failures(call, right)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", interventions())
def test_wrong_arguments_of_an_intervention_are_refused(name):
    kind = getattr(at, name)
    owners = [vars(owner)["__init__"] for owner in kind.__mro__ if "__init__" in vars(owner) and owner is not nn.Module]
    names = {one for init in owners for one in inspect.signature(init).parameters} - {"self", "kwargs", "args"}
    own = inspect.signature(kind).parameters
    needed = {one: value for one, value in NEEDED.items() if one in own or one == "embed_dim"}
    right = {one: needed[one] for one in names if one in needed}
    with untyped():
        kind(**right)
        found = failures(kind, right)
        for one in names - right.keys():
            found += [line for line in failures(kind, {**right, one: None}) if line.startswith(f"{one}=")]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("kind", "right"),
    [
        (subspaces.Rotation, {"width": 4, "k": 2, "stack": None}),
        (subspaces.Direction, {"vector": torch.ones(3)}),
        (subspaces.Whole, {"width": None}),
        (operations.Clamp, {"value": 1.0}),
        (operations.Scale, {"factor": 1.0}),
        (operations.Noise, {"noise_level": 1.0, "std": 1.0, "seed": 0}),
        (operations.Mean, {"values": torch.ones(3)}),
        (operations.Function, {"function": torch.relu}),
    ],
)
def test_wrong_arguments_of_operations_and_subspaces_are_refused(kind, right):
    with untyped():
        found = failures(kind, right)
    assert not found, "\n".join(found)


def test_every_public_name_is_tried():
    names = (Path(__file__).parent / "public_names.txt").read_text(encoding="utf-8").split()
    errors = {
        name for name in names if isinstance(getattr(at, name), type) and issubclass(getattr(at, name), Exception)
    }
    alike = {name for name in names if name.startswith("create_")} | {"IntervenableRepresentationConfig"}
    tried = {*CALLS, *interventions(), *RESULTS, *ABSTRACT, *MODULES, *errors, *alike}
    assert set(names) - tried == set()
