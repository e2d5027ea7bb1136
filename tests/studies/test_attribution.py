"""Attribution against gradients taken by hand, closed forms, and exact swaps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from tests.fast.families import blocks
from tests.helpers import VOCAB, new_model, padded_tokens, tiny, tokens
from tests.studies.test_path_patching import Places, model_of, watched
from torch import Tensor, nn

from align_transformers import (
    Metric,
    PositionError,
    SpecError,
    Table,
    UnknownNameError,
    accuracy,
    attribution,
    grid,
    one_by_one,
    probability,
)

FAMILIES = ("gpt2", "llama", "neox", "gemma2", "mixtral")
LAYERS, ANSWERS = 3, (4, 9)
COMPONENTS = ["block_output", "mlp_output", "attention_value_output"]


class ByHand:
    """Values and gradients of one prompt at a model's places, with plain hooks."""

    def __init__(self, family: str, ids: Tensor, model: Any = None, *, graph: bool = True) -> None:
        self.model = model_of(family) if model is None else model
        self.kept: dict[tuple[str, int], Tensor] = {}
        with ExitStack() as stack, torch.set_grad_enabled(graph):
            for layer in range(LAYERS):
                place = Places(family, self.model, layer)
                for module, side, name in (
                    (place.block, "output", "block_output"),
                    (place.mlp, "output", "mlp_output"),
                    (place.after_heads, "input", "attention_value_output"),
                ):
                    stack.enter_context(watched(module, side, self._keep((name, layer))))
            self.logits = self.model(input_ids=ids).logits[0, -1]

    def _keep(self, key: tuple[str, int]) -> Callable[[Tensor], None]:
        def act(tensor: Tensor) -> None:
            self.kept[key] = tensor

        return act

    def gradients(self) -> dict[tuple[str, int], Tensor]:
        total = self.logits[ANSWERS[1]] - self.logits[ANSWERS[0]]
        found = torch.autograd.grad(total, list(self.kept.values()))
        return dict(zip(self.kept, found, strict=True))


def products(family: str, base: Tensor, source: Tensor, model: Any = None) -> dict[tuple[str, int], Tensor]:
    """Return (source - base) * gradient at the base, `(tokens, channels)`, for each component and layer."""
    run, other = ByHand(family, base, model), ByHand(family, source, model, graph=False)
    return {key: ((other.kept[key] - run.kept[key]) * g)[0].detach() for key, g in run.gradients().items()}


def close(found: Any, wanted: Any, size: float | None = None) -> None:
    """Compare sums; `size` is that of what was summed up, where much of it cancels."""
    found, wanted = torch.as_tensor(found, dtype=torch.double), torch.as_tensor(wanted, dtype=torch.double)
    assert (found - wanted).abs().max() <= 1e-4 * (wanted.abs().max() if size is None else size) + 1e-6


def cells(table: Table, **where: Any) -> list[float]:
    return [row["effect"] for row in table.rows() if all(row[name] == value for name, value in where.items())]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell_is_difference_times_gradient(family):
    base, source = tokens(1, 5, 1)["input_ids"], tokens(1, 5, 2)["input_ids"]
    table = attribution(
        model_of(family), {"input_ids": base}, {"input_ids": source}, answers=ANSWERS, components=COMPONENTS, verify=0
    )
    by_head = attribution(
        model_of(family), {"input_ids": base}, {"input_ids": source}, answers=ANSWERS, verify=0, heads="all",
        components=["attention_value_output"], positions=[1, 3],
    )  # fmt: skip
    assert table.meta["passes"] == {"full": 2, "backward": 1}
    for (name, layer), product in products(family, base, source).items():
        close(cells(table, component=name, layer=layer), product.sum(-1))
        if name == "attention_value_output":
            wanted = product[[1, 3]].unflatten(-1, (4, -1)).sum(-1)
            close([cells(by_head, layer=layer, head=head) for head in range(4)], wanted.T)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_pairs_are_told_as_alone(family, side):
    lengths = (5, 3, 4)
    base, source = padded_tokens(lengths, side, 1), padded_tokens(lengths, side, 2)
    table = attribution(model_of(family), base, source, answers=ANSWERS, components=COMPONENTS, verify=0)
    for pair in range(3):
        alone = [
            of["input_ids"][pair : pair + 1][of["attention_mask"][pair : pair + 1] > 0][None] for of in (base, source)
        ]
        for (name, layer), product in products(family, *alone).items():
            close(cells(table, component=name, layer=layer, pair=pair), product.sum(-1))


def test_the_other_direction_has_the_gradient_of_the_other_run():
    base, source = tokens(1, 5, 1), tokens(1, 5, 2)
    both = attribution(
        tiny("llama"), base, source, answers=ANSWERS, components=COMPONENTS, directions=["denoise", "noise"], verify=0
    )
    assert both.meta["passes"] == {"full": 2, "backward": 2}
    for (name, layer), product in products("llama", source["input_ids"], base["input_ids"]).items():
        close(cells(both, component=name, layer=layer, direction="noise"), product.sum(-1))


def test_neurons_places_and_windows_are_sums():
    base, source = tokens(2, 5, 1), tokens(2, 5, 2)
    ask = {"answers": ANSWERS, "verify": 0}
    whole = attribution(tiny("gpt2"), base, source, components=["mlp_activation"], **ask)
    parts = attribution(tiny("gpt2"), base, source, components=["mlp_activation"], neurons=50, **ask)
    assert len(parts) == 3 * len(whole)
    assert max(parts.columns["neuron"]) == 100
    for layer in range(LAYERS):
        at = {"layer": layer, "position": 2, "pair": 1}
        close(sum(cells(parts, **at)), sum(cells(whole, **at)))
    once = attribution(tiny("gpt2"), base, source, components=["mlp_output"], positions=None, window=3, **ask)
    each = attribution(tiny("gpt2"), base, source, components=["mlp_output"], **ask)
    close(cells(once, layer=1, pair=0), [sum(cells(each, pair=0))])
    by_block = grid(tiny("gpt2"), base, source, components=["mlp_activation"], neurons=50, answers=ANSWERS)
    close(parts.columns["change"], by_block.columns["change"])


class Linear(nn.Module):
    """Everything in it is linear in the embeddings."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCAB, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, VOCAB)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer(x.cumsum(1))
        return self.head(x)


@pytest.mark.parametrize("method", ["atp", "ig"])
def test_of_a_linear_model_estimates_are_exact(method):
    model = Linear().requires_grad_(False)
    ask: dict[str, Any] = {
        "components": ["layers.0.output", "layers[1].input", "layers.2.output"], "answers": ANSWERS,
        "directions": ["denoise", "noise"],
    }  # fmt: skip
    table = attribution(model, tokens(2, 4, 1), tokens(2, 4, 2), method=method, along="activations", verify=200, **ask)
    exact = grid(model, tokens(2, 4, 1), tokens(2, 4, 2), **ask)
    close(table.columns["effect"], exact.columns["effect"])
    close(table.columns["recovered"], exact.columns["recovered"])
    close(table.columns["metric"], exact.columns["metric"])
    close(table.columns["exact"], exact.columns["effect"])
    check = table.meta["check"]
    assert check["pearson"] == pytest.approx(1, abs=1e-6)
    assert check["pearson_low"] == check["pearson_high"] == check["pearson"]
    assert (check["recall"], check["n"]) == (1, len(table))


def test_integrated_gradients_along_inputs_are_those_between_embeddings():
    model, base, source = tiny("llama"), tokens(1, 5, 1), tokens(1, 5, 2)
    table = attribution(
        model, base, source, answers=ANSWERS, components=["mlp_output"], method="ig", points=3, verify=0
    )
    embed = model.get_input_embeddings()
    ends = [embed(of["input_ids"]).detach() for of in (base, source)]
    kept: list[Tensor] = []
    total = 0
    for share, weight in ((0.0, 0.25), (0.5, 0.5), (1.0, 0.25)):
        kept.clear()
        with watched(model.model.layers[1].mlp, "output", lambda t: kept.append(t)):
            logits = model(inputs_embeds=ends[0] + share * (ends[1] - ends[0])).logits[0, -1]
        total = total + weight * torch.autograd.grad(logits[ANSWERS[1]] - logits[ANSWERS[0]], kept[0])[0]
    values = []
    for of in (base, source):
        with watched(model.model.layers[1].mlp, "output", lambda t: values.append(t.detach())), torch.no_grad():
            model(**of)
    close(cells(table, layer=1), ((values[1] - values[0]) * total).sum(-1)[0].detach())
    assert table.meta["passes"] == {"full": 4, "backward": 3}


def test_integrated_gradients_along_activations_add_up_to_the_swap():
    model, base, source = tiny("gpt2"), tokens(2, 4, 1), tokens(2, 4, 2)
    ask: dict[str, Any] = {"answers": ANSWERS, "components": ["mlp_output", "attention_value_output"], "layers": [1]}
    exact = grid(model, base, source, positions=None, **ask)
    table = attribution(model, base, source, method="ig", along="activations", points=33, verify=0, **ask)
    heads = attribution(
        model, base, source, method="ig", along="activations", points=33, verify=0, heads="all",
        answers=ANSWERS, components=["attention_value_output"], layers=[1],
    )  # fmt: skip
    for row in exact.rows():
        at = {name: row[name] for name in ("component", "layer", "pair")}
        assert sum(cells(table, **at)) == pytest.approx(row["effect"], rel=2e-3, abs=2e-3)
        if row["component"] == "attention_value_output":
            assert sum(cells(heads, **at)) == pytest.approx(row["effect"], rel=2e-3, abs=2e-3)


def patterns_by_hand(model: Any, ids: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor, list[Tensor]]:
    """Return queries and keys as attention gets them, patterns, logits and the gradient at the patterns."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    kept: dict[Any, Tensor] = {}

    def keep(name: Any) -> Callable[[Tensor], None]:
        return lambda tensor: kept.__setitem__(name, tensor.detach())

    gpt2 = hasattr(model, "transformer")
    with ExitStack() as stack:
        for layer, block in enumerate(blocks(model)):
            if gpt2:
                stack.enter_context(watched(block.attn.c_attn, "output", keep(layer)))
            else:
                stack.enter_context(watched(block.self_attn.q_proj, "output", keep((layer, "q"))))
                stack.enter_context(watched(block.self_attn.k_proj, "output", keep((layer, "k"))))
        output = model(input_ids=ids, output_attentions=True)
    logits = output.logits[0, -1]
    gradients = torch.autograd.grad(logits[ANSWERS[1]] - logits[ANSWERS[0]], output.attentions)
    queries, keys = [], []
    for layer in range(LAYERS):
        if gpt2:
            q, k, _ = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in kept[layer].chunk(3, -1))
        else:
            q, k = (kept[layer, name].unflatten(-1, (-1, 6)).transpose(1, 2) for name in "qk")
            cos, sin = model.model.rotary_emb(q, torch.arange(ids.shape[1])[None])
            q, k = apply_rotary_pos_emb(q, k, cos, sin)
        queries.append(q[0])
        keys.append(k[0])
    return queries, keys, [p[0].detach() for p in output.attentions], logits, [g[0] for g in gradients]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_queries_and_keys_go_through_the_softmax_one_at_a_time(family):
    model = new_model(family)
    model.config._attn_implementation = "eager"
    length, base, source = 4, tokens(1, 4, 1)["input_ids"], tokens(1, 4, 2)["input_ids"]
    table = attribution(
        model, {"input_ids": base}, {"input_ids": source}, answers=ANSWERS, method="atp*", drop=False, heads="all",
        components=["query_output", "key_output"], verify=0,
    )  # fmt: skip
    whole = attribution(
        model, {"input_ids": base}, {"input_ids": source}, answers=ANSWERS, method="atp*", drop=False,
        components=["key_rotary"], verify=0,
    )  # fmt: skip
    queries, keys, patterns, _, gradients = patterns_by_hand(model, base)
    other_queries, other_keys, *_ = patterns_by_hand(model, source)
    shared = 4 // keys[0].shape[0]

    def row(q: Tensor, k: Tensor, at: int) -> Tensor:
        """The pattern of one query, by definition."""
        scores = torch.tensor([float(q @ k[j]) / k.shape[-1] ** 0.5 for j in range(at + 1)])
        return torch.cat([scores.softmax(0), torch.zeros(length - at - 1)])

    for layer in range(LAYERS):
        by_key = torch.zeros(keys[layer].shape[0], length)
        for head in range(4):
            k = keys[layer][head // shared]
            wanted = []
            for at in range(length):
                new = row(other_queries[layer][head, at], k, at)
                wanted.append(float(((new - patterns[layer][head, at]) * gradients[layer][head, at]).sum()))
                swapped = k.clone()
                swapped[at] = other_keys[layer][head // shared, at]
                for later in range(at, length):
                    new = row(queries[layer][head, later], swapped, later)
                    change = (new - patterns[layer][head, later]) * gradients[layer][head, later]
                    by_key[head // shared, at] += float(change.sum())
            close(cells(table, component="query_output", layer=layer, head=head), wanted)
        for head, wanted in enumerate(by_key):
            close(cells(table, component="key_output", layer=layer, head=head), wanted)
        close(cells(whole, layer=layer), by_key.sum(0))


def test_the_gradient_is_dropped_layer_by_layer():
    model, base, source = model_of("gpt2"), tokens(1, 4, 1), tokens(1, 4, 2)
    table = attribution(model, base, source, answers=ANSWERS, components=["mlp_output"], method="atp*", verify=0)
    plain = attribution(model, base, source, answers=ANSWERS, components=["mlp_output"], verify=0)
    close(table.columns["effect"], plain.columns["effect"])
    assert table.meta["passes"] == {"full": 2, "backward": 1 + LAYERS}
    other = ByHand("gpt2", source["input_ids"], graph=False)
    sizes: dict[int, Tensor] = {layer: torch.zeros(4) for layer in range(LAYERS)}
    for gone in range(LAYERS):
        block = blocks(model)[gone]
        run: Any = None

        def without(tensor: Tensor) -> Tensor:
            kept = tensor.clone()
            kept.register_hook(torch.zeros_like)
            return kept

        with watched(block.attn, "output", without), watched(block.mlp, "output", without):
            run = ByHand("gpt2", base["input_ids"])
            total = run.logits[ANSWERS[1]] - run.logits[ANSWERS[0]]
            keys = [("mlp_output", layer) for layer in range(LAYERS)]
            found = torch.autograd.grad(total, [run.kept[key] for key in keys])
        for key, gradient in zip(keys, found, strict=True):
            share = ((other.kept[key] - run.kept[key]) * gradient)[0].sum(-1).abs().detach()
            sizes[key[1]] += 0 * share if key[1] == gone else share  # a layer's own nodes reach nothing without it
    for layer, size in sizes.items():
        found = [row["dropped"] for row in table.rows() if row["layer"] == layer]
        close(found, size / (LAYERS - 1))


def test_what_is_measured_is_what_grid_measures():
    model, base, source = tiny("gpt2"), tokens(2, 5, 1), tokens(2, 5, 2)
    ask: dict[str, Any] = {"answers": ANSWERS, "components": ["mlp_output", "block_output"]}
    table, exact = attribution(model, base, source, verify=20, seed=3, **ask), grid(model, base, source, **ask)
    keys = ("component", "layer", "position", "pair", "direction", "token", "source_token")
    assert [[row[key] for key in keys] for row in table.rows()] == [[row[key] for key in keys] for row in exact.rows()]
    known = [(mine, one) for mine, one in zip(table.rows(), exact.rows(), strict=True) if mine["exact"] is not None]
    assert len(known) == 20
    for mine, one in known:
        assert mine["exact"] == pytest.approx(one["effect"], abs=1e-4)
        assert mine["change"] == pytest.approx(one["change"], rel=1e-4)
    strongest = sorted(range(len(table)), key=lambda cell: -abs(table.columns["effect"][cell]))[:10]
    measured = table.columns["measured"]
    assert {n for n, what in enumerate(measured) if what == "strongest"} == set(strongest)
    assert measured.count("drawn") == 10
    again = attribution(model, base, source, verify=20, seed=4, **ask)
    assert again.columns["measured"] != measured
    check = table.meta["check"]
    assert check["pearson_low"] <= check["pearson"] <= check["pearson_high"]
    assert check["recall_low"] <= check["recall"] <= check["recall_high"]
    assert attribution(model, base, source, verify=0, **ask).meta["check"].startswith("not checked")


def test_screening_measures_the_strongest():
    model, base, source = tiny("gpt2"), tokens(2, 5, 1), tokens(2, 5, 2)
    ask: dict[str, Any] = {"answers": ANSWERS, "components": ["mlp_output", "attention_output"]}
    exact = {
        tuple(row[k] for k in ("component", "layer", "position", "pair")): row
        for row in grid(model, base, source, **ask).rows()
    }
    estimates = attribution(model, base, source, verify=0, **ask).columns["effect"]
    table = grid(model, base, source, screen=12, **ask)
    assert len(table) == 12
    for row in table.rows():
        one = exact[tuple(row[k] for k in ("component", "layer", "position", "pair"))]
        assert row["effect"] == pytest.approx(one["effect"], abs=1e-4)
        assert row["recovered"] == pytest.approx(one["recovered"], abs=1e-4)
    assert sorted(map(abs, table.columns["estimate"])) == pytest.approx(sorted(map(abs, estimates))[-12:])
    assert 0 <= table.meta["screen"]["missed_top"]["probability"] <= table.meta["screen"]["missed"] <= 1
    everything = grid(model, base, source, screen=1000, planner=one_by_one, **ask)
    assert len(everything) == len(exact)
    assert everything.meta["screen"]["missed"] == 0


def test_the_metric_is_any_that_has_a_gradient():
    model, base, source = tiny("llama"), tokens(2, 4, 1), tokens(2, 4, 2)
    chosen = [probability(4), Metric("spread", lambda logits: logits.logsumexp(-1))]
    table = attribution(model, base, source, metric=chosen, components=["mlp_output"], layers=[2], verify=0)
    step = 1e-3
    values = []
    for of in (base, source):
        with watched(model.model.layers[2].mlp, "output", lambda t: values.append(t.detach())), torch.no_grad():
            model(**of)
    for sign in (1, -1):
        moved = values[0] + sign * step * (values[1] - values[0])
        with watched(model.model.layers[2].mlp, "output", lambda t, moved=moved: moved), torch.no_grad():
            logits = model(**base).logits[:, -1]
        values.append(torch.stack([logits[0].softmax(-1)[4], logits[1].logsumexp(-1)]))
    slope = (values[2] - values[3]) / (2 * step)
    for pair in range(2):
        assert sum(cells(table, pair=pair)) == pytest.approx(float(slope[pair]), rel=2e-2, abs=1e-4)


def test_the_model_is_left_as_it_was():
    model = new_model("llama").requires_grad_(False)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attribution(model, tokens(1, 4, 1), tokens(1, 4, 2), answers=ANSWERS, rule="relp", verify=4)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ZeroDivisionError):
        attribution(
            model, tokens(1, 4, 1), tokens(1, 4, 2), rule="relp",
            metric=Metric("broken", lambda logits: logits[:, 0] * (1 // 0)),
        )  # fmt: skip
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"metric": accuracy(3)}, SpecError, "has no gradient"),
        ({"rule": "half"}, SpecError, "'half' acts nowhere"),
        ({"rule": ["patterns", "gim"]}, SpecError, "not both"),
        ({"rule": "lrp"}, UnknownNameError, "lrp"),
        ({"method": "ig", "points": 1}, SpecError, "points=1"),
        ({"verify": -1}, SpecError, "verify=-1"),
        ({"method": "atp*", "components": ["query_output"], "neurons": 3}, SpecError, "whole heads"),
        ({"components": ["mlp_output"], "heads": "all"}, Exception, "no heads"),
    ],
)
def test_what_makes_no_sense_is_refused(options, error, words):
    ask = {"answers": ANSWERS} if "metric" not in options else {}
    with pytest.raises(error, match=words):
        attribution(tiny("gpt2"), tokens(1, 4, 1), tokens(1, 4, 2), **ask, **options)


def test_unequal_lengths_are_refused_where_they_have_no_meaning():
    base, source = tokens(1, 4, 1), tokens(1, 6, 2)
    ask: dict[str, Any] = {"answers": ANSWERS, "last": 2, "verify": 0}
    assert len(attribution(tiny("llama"), base, source, **ask)) == 2 * LAYERS
    with pytest.raises(PositionError, match="equal length"):
        attribution(tiny("llama"), base, source, method="ig", **ask)
    with pytest.raises(PositionError, match="equal length"):
        attribution(tiny("llama"), base, source, method="atp*", drop=False, components=["query_output"], **ask)
    with pytest.raises(SpecError, match="needs the scores"):  # they are capped
        attribution(model_of("gemma2"), base, base, method="atp*", components=["key_output"], answers=ANSWERS)
    with pytest.raises(SpecError, match="screen=0"):
        grid(tiny("llama"), base, base, answers=ANSWERS, screen=0)
