"""Scores of edges against derivatives taken by hand: one receiver alone sees a little of what a sender would change."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from tests.helpers import padded_tokens, tokens
from tests.studies.test_graph import built
from tests.studies.test_path_patching import Places, keep, kv_heads, model_of, watched
from torch import Tensor, nn

from align_transformers import PositionError, SpecError, accuracy, attribution, edge_attribution
from align_transformers.studies import _readers, _senders
from align_transformers.studies._norms import FrozenNorm

LAYERS, ANSWERS = 3, (4, 9)
FAMILIES = ("gpt2", "llama", "neox", "gemma2", "mixtral")


def norms(family: str, model: Any, layer: int) -> tuple[nn.Module, nn.Module]:
    """The norm in front of attention, and that in front of the MLP."""
    block = Places(family, model, layer).block
    names = {"gpt2": ("ln_1", "ln_2"), "gemma2": ("input_layernorm", "pre_feedforward_layernorm")}
    one, other = names.get(family, ("input_layernorm", "post_attention_layernorm"))
    return getattr(block, one), getattr(block, other)


def final_norm(family: str, model: Any) -> nn.Module:
    return {"gpt2": lambda: model.transformer.ln_f, "neox": lambda: model.gpt_neox.final_layer_norm}.get(
        family, lambda: model.model.norm
    )()


def added(family: str, model: Any, ids: Tensor) -> dict[str, Tensor]:
    """What each sender adds to the stream, by plain hooks and matrices."""
    seen: dict[Any, Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        for layer in range(LAYERS):
            place = Places(family, model, layer)
            out = place.block.post_feedforward_layernorm if family == "gemma2" else place.mlp
            spots = [(place.after_heads, "input", "z"), (out, "output", "mlp"), (place.block, "input", "block")]
            spots.append((place.mlp, "input", "read"))
            if family == "gemma2":
                spots.append((place.block.post_attention_layernorm, "input", "joined"))
            for module, side, name in spots:
                stack.enter_context(watched(module, side, keep(seen, (name, layer))))
        model(input_ids=ids)
    found = {"input": seen["block", 0]}
    for layer in range(LAYERS):
        place, z = Places(family, model, layer), seen["z", layer]
        weight: Any = place.after_heads.weight
        weight = weight.T if family == "gpt2" else weight
        for head in range(4):
            own = place.head(head)
            share = z[..., own] @ weight[:, own].T
            if family == "gemma2":
                norm = place.block.post_attention_layernorm
                whole = seen["joined", layer]
                share = share * (whole.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * (1 + norm.weight)
            found[f"a{layer}.h{head}"] = share
        if family == "mixtral":
            read = seen["read", layer]
            for number, weight in enumerate(routed(place.mlp, read).unbind(-1)):
                found[f"m{layer}.e{number}"] = expert(place.mlp, number, read) * weight[..., None]
        else:
            found[f"m{layer}"] = seen["mlp", layer]
    return {name: value.detach() for name, value in found.items()}


def routed(mlp: Any, x: Tensor) -> Tensor:
    """The router's weight of each expert, `(..., experts)`, written out: the strongest two share 1."""
    chance = (x @ mlp.gate.weight.T).softmax(-1)
    top, index = chance.topk(2, -1)
    return torch.zeros_like(chance).scatter(-1, index, top / top.sum(-1, keepdim=True))


def expert(mlp: Any, number: int, x: Tensor) -> Tensor:
    """What one expert makes of a reading, written out."""
    gate, up = (x @ mlp.experts.gate_up_proj[number].T).chunk(2, -1)
    return (nn.functional.silu(gate) * up) @ mlp.experts.down_proj[number].T


def through_one_reading(mlp: Any, reader: str, x: Tensor, changed: Tensor) -> Tensor:
    """What experts add up to where one expert, or the router, reads something else."""
    weights = routed(mlp, changed if reader == "router" else x)
    each = [expert(mlp, n, changed if reader == f"e{n}" else x) for n in range(weights.shape[-1])]
    return sum((one * weights[..., n : n + 1] for n, one in enumerate(each)), torch.zeros_like(x))


def by_hand(family: str, base: Tensor, source: Tensor) -> dict[tuple[str, str], float]:
    """The derivative of the metric along each sender's change, seen by one receiver alone."""
    model = model_of(family)
    first, second = (added(family, model, ids) for ids in (base, source))
    moved = {name: second[name] - first[name] for name in first}
    names, scores = list(moved), {}
    for layer in range(LAYERS + 1):
        mlp = [f"m{layer}"] if family != "mixtral" else [f"m{layer}{one}" for one in (".e0", ".e1", ".e2", "<router>")]
        receivers: list[tuple[str, str, int]] = [(one, "", 0) for one in (["logits"] if layer == LAYERS else mlp)]
        if layer < LAYERS:
            counts = {"q": 4, "k": kv_heads(family), "v": kv_heads(family)}
            receivers += [(f"a{layer}.h{n}<{what}>", what, n) for what, count in counts.items() for n in range(count)]
        for name, what, head in receivers:
            attends = bool(what) or family == "neox"
            visible = [n for n in names if n == "input" or int(n[1]) < layer or (n[:2] == f"a{layer}" and not attends)]
            share = torch.zeros(len(visible), requires_grad=True)
            change = sum(s * moved[n] for s, n in zip(share, visible, strict=True))
            hold: dict[str, Tensor] = {}
            with ExitStack() as stack:
                if layer == LAYERS:
                    stack.enter_context(watched(final_norm(family, model), "input", lambda x, c=change: x + c))
                elif family == "mixtral" and not what:
                    norm, mlp_module = norms(family, model, layer)[1], Places(family, model, layer).mlp
                    stack.enter_context(watched(norm, "input", lambda x, h=hold: h.__setitem__("x", x)))

                    def summed(
                        _out: Tensor, m: Any = mlp_module, n: Any = norm, c: Any = change, h: Any = hold,
                        reader: str = name.replace("<", ".").replace(">", "").partition(".")[2],
                    ) -> Tensor:  # fmt: skip
                        return through_one_reading(m, reader, n.forward(h["x"]), n.forward(h["x"] + c))

                    stack.enter_context(watched(mlp_module, "output", summed))
                elif not what:
                    norm = norms(family, model, layer)[1]
                    stack.enter_context(watched(norm, "input", lambda x, c=change: x + c))
                else:
                    place, norm = Places(family, model, layer), norms(family, model, layer)[0]
                    module, own, _ = place.reader(what, head)
                    stack.enter_context(watched(norm, "input", lambda x, h=hold: h.__setitem__("x", x)))

                    def mixed(
                        out: Tensor, m: Any = module, n: Any = norm, c: Any = change, own: slice = own, h: Any = hold
                    ) -> Tensor:
                        new = out.clone()
                        new[..., own] = m.forward(n.forward(h["x"] + c))[..., own]
                        return new

                    stack.enter_context(watched(module, "output", mixed))
                logits = model(input_ids=base).logits[0, -1]
            (found,) = torch.autograd.grad(logits[ANSWERS[1]] - logits[ANSWERS[0]], share)
            scores |= {(n, name): float(value) for n, value in zip(visible, found, strict=True)}
    return scores


def scores_of(table: Any) -> dict[tuple[str, str], float]:
    return {(row["sender"], row["receiver"]): row["score"] for row in table.rows()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_edge_is_the_derivative_through_it(family):
    base, source = tokens(1, 4, 1)["input_ids"], tokens(1, 4, 2)["input_ids"]
    table = edge_attribution(model_of(family), {"input_ids": base}, {"input_ids": source}, answers=ANSWERS)
    found, wanted = scores_of(table), by_hand(family, base, source)
    assert set(found) == set(wanted)
    size = max(map(abs, wanted.values()))
    assert max(abs(found[edge] - wanted[edge]) for edge in wanted) < 1e-4 * size
    assert table.meta["passes"] == {"full": 2, "backward": 1}


def test_pairs_chunks_and_padding():
    lengths = (5, 3, 4)
    base, source = padded_tokens(lengths, "left", 1), padded_tokens(lengths, "left", 2)
    model = model_of("llama")
    once = edge_attribution(model, base, source, answers=ANSWERS, at_once=3)
    parts = edge_attribution(model, base, source, answers=ANSWERS, at_once=2)
    assert parts.columns["score"] == pytest.approx(once.columns["score"], abs=1e-4)
    alone = []
    for number, length in enumerate(lengths):
        pair = ({"input_ids": of["input_ids"][number : number + 1, -length:]} for of in (base, source))
        alone.append(scores_of(edge_attribution(model, *pair, answers=ANSWERS)))
    for row in once.rows():
        each = [one[row["sender"], row["receiver"]] for one in alone]
        assert row["score"] == pytest.approx(sum(each) / 3, abs=1e-3)
        assert row["low"] <= row["score"] + 1e-6
        assert row["score"] <= row["high"] + 1e-6
        assert row["n"] == 3


def test_edges_into_everything_that_reads_a_sender_add_up_to_its_node():
    """The gradient at what a sender adds is the sum of those at all that read it: edges add up to the node's score."""
    base, source = tokens(1, 4, 1), tokens(1, 4, 2)
    model = model_of("llama")
    table = edge_attribution(model, base, source, answers=ANSWERS)
    nodes = attribution(model, base, source, answers=ANSWERS, components=["mlp_output"], positions=None, verify=0)
    for row in nodes.rows():
        out = [one["score"] for one in table.rows() if one["sender"] == f"m{row['layer']}"]
        assert sum(out) == pytest.approx(row["effect"], rel=1e-3, abs=1e-4)


def test_the_mean_gradient_between_embeddings():
    base, source = tokens(1, 4, 1), tokens(1, 4, 2)
    model = model_of("llama")
    ends = [model.get_input_embeddings()(of["input_ids"]).detach() for of in (base, source)]
    first, second = (added("llama", model, of["input_ids"]) for of in (base, source))
    wanted = 0.0
    for share, weight in ((0.0, 0.25), (0.5, 0.5), (1.0, 0.25)):
        step = torch.zeros((), requires_grad=True)
        change = step * (second["a0.h1"] - first["a0.h1"])
        with watched(model.model.norm, "input", lambda x, c=change: x + c):
            logits = model(inputs_embeds=ends[0] + share * (ends[1] - ends[0])).logits[0, -1]
        wanted += weight * float(torch.autograd.grad(logits[ANSWERS[1]] - logits[ANSWERS[0]], step)[0])
    table = edge_attribution(model, base, source, answers=ANSWERS, method="eap-ig", points=3)
    assert scores_of(table)["a0.h1", "logits"] == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert table.meta["passes"] == {"full": 4, "backward": 3}


def test_a_rule_acts_on_edges_too():
    base, source = tokens(1, 4, 1), tokens(1, 4, 2)
    table = edge_attribution(model_of("llama"), base, source, answers=ANSWERS, rule="patterns")
    into = [row["score"] for row in table.rows() if row["receiver"].endswith(("<q>", "<k>"))]
    assert into
    assert not any(into)
    frozen = edge_attribution(model_of("llama"), base, source, answers=ANSWERS, rule="frozen_norm")
    nodes = attribution(
        model_of("llama"), base, source, answers=ANSWERS, components=["mlp_output"], positions=None, verify=0,
        rule="frozen_norm",
    )  # fmt: skip
    for row in nodes.rows():
        out = [one["score"] for one in frozen.rows() if one["sender"] == f"m{row['layer']}"]
        assert sum(out) == pytest.approx(row["effect"], rel=1e-3, abs=1e-4)


def test_what_makes_no_sense_is_refused():
    base = tokens(1, 4, 1)
    with pytest.raises(PositionError, match="equal length"):
        edge_attribution(model_of("llama"), base, tokens(1, 5, 2), answers=ANSWERS)
    with pytest.raises(SpecError, match="has no gradient"):
        edge_attribution(model_of("llama"), base, tokens(1, 4, 2), metric=accuracy(3))
    with pytest.raises(SpecError, match="at_once"):
        edge_attribution(model_of("llama"), base, base, answers=ANSWERS, at_once=0)


def of_kind(kind: str, experts: bool = True) -> Any:
    sizes = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
    own = {"Qwen2Moe": {**sizes, "shared_expert_intermediate_size": 16}}
    own["GraniteMoe"] = {"num_local_experts": 3, "num_experts_per_tok": 2, "residual_multiplier": 0.3}
    model = built(kind, initializer_range=0.3, **own[kind])
    base, source = tokens(1, 4, 1), tokens(1, 4, 2)
    return edge_attribution(model, base, source, answers=ANSWERS, experts=experts)


@pytest.mark.parametrize(("kind", "shared"), [("Qwen2Moe", ".shared"), ("GraniteMoe", ".e2")])
def test_experts_the_shared_one_and_the_router_add_up_to_what_they_are_together(kind, shared):
    apart, joined = scores_of(of_kind(kind)), scores_of(of_kind(kind, experts=False))
    assert {"m0.e0", "m0.e2", f"m0{shared}"} <= {sender for sender, _ in apart}
    assert {"m1.e1", f"m1{shared}", "m1<router>"} <= {receiver for _, receiver in apart}

    def whole(name: str) -> str:
        return name[:2] if name[0] == "m" else name

    sums: dict[tuple[str, str], float] = {}
    for (sender, receiver), score in apart.items():
        edge = whole(sender), whole(receiver)
        sums[edge] = sums.get(edge, 0.0) + score
    assert set(sums) == set(joined)
    size = max(map(abs, joined.values()))
    assert max(abs(sums[edge] - joined[edge]) for edge in joined) < 1e-4 * size


@pytest.mark.parametrize("kind", ["gemma2", "neox", "Olmo2", "Granite"])
@pytest.mark.parametrize("rule", ["true", "frozen_norm"])
def test_products_and_closed_forms_are_what_autograd_gives(kind, rule, monkeypatch):
    """Where nothing is known of matrices and norms, autograd goes back from each receiver by itself."""

    def found() -> dict[tuple[str, str], float]:
        model = built(kind, initializer_range=0.3) if kind[0].isupper() else model_of(kind)
        base, source = tokens(2, 4, 1), tokens(2, 4, 2)
        return scores_of(edge_attribution(model, base, source, answers=ANSWERS, rule=rule))

    quick = found()
    monkeypatch.setattr(_readers, "matrix_of", lambda _module: None)
    monkeypatch.setattr(_readers, "_norm_between", lambda *_: "unknown")
    monkeypatch.setattr(_senders, "matrix_of", lambda _module: None)
    slow = found()
    size = max(map(abs, slow.values()))
    assert max(abs(quick[edge] - slow[edge]) for edge in slow) < 1e-4 * size


@pytest.mark.parametrize("norm", [nn.LayerNorm(7), nn.LayerNorm(8, bias=False), nn.RMSNorm(8, eps=1e-2), nn.RMSNorm(7)])
def test_the_gradient_of_a_norm_in_closed_form(norm):
    torch.manual_seed(0)
    width = norm.normalized_shape[0]
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    read = torch.randn(5, width)
    read[2] = 0  # as the embedding of padding may be
    read.requires_grad_()
    made, given = norm(read), torch.randn(3, 5, width)
    wanted = torch.stack([torch.autograd.grad(made, [read], one, retain_graph=True)[0] for one in given])
    found = FrozenNorm(norm, read.detach(), made.detach()).gradient(given)
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_scores_are_checked_by_leaving_edges_out():
    model = model_of("llama")
    base, source = (tokens(1, 6, seed) for seed in (1, 2))
    table = edge_attribution(model, base, source, answers=ANSWERS, verify=10**6)
    check = table.meta["check"]
    assert (check["n"], check["cells"]) == (len(table), len(table))
    first, second = (added("llama", model, one["input_ids"]) for one in (base, source))
    stream = torch.stack(list(first.values())).sum(0)

    def metric(end: Tensor) -> float:
        with torch.no_grad():
            logits = model.lm_head(final_norm("llama", model)(end))[0, -1]
        return float(logits[ANSWERS[1]] - logits[ANSWERS[0]])

    into_logits = [row for row in table.rows() if row["receiver"] == "logits"]
    assert len(into_logits) == len(first)
    for row in into_logits:
        sender = row["sender"]
        effect = metric(stream + second[sender] - first[sender]) - metric(stream)
        assert row["exact"] == pytest.approx(effect, abs=1e-5)
    few = edge_attribution(model, base, source, answers=ANSWERS, verify=6)
    measured = {n: value for n, value in enumerate(few.columns["exact"]) if value is not None}
    assert len(measured) == 6
    assert few.meta["check"]["sample"] == 3
    assert all(value == pytest.approx(table.columns["exact"][n], abs=1e-5) for n, value in measured.items())


def test_a_rule_brings_its_check():
    model = model_of("gpt2")
    base, source = (tokens(1, 4, seed) for seed in (1, 2))
    table = edge_attribution(model, base, source, answers=ANSWERS, rule="relp")
    assert table.meta["check"]["n"] == 32
    assert "not checked" in edge_attribution(model, base, source, answers=ANSWERS).meta["check"]
    with pytest.raises(SpecError, match="verify from 0"):
        edge_attribution(model, base, source, answers=ANSWERS, verify=-1)


@pytest.mark.parametrize("sender", ["a1.h2", "m1", "input"])
def test_between_activations_the_gradient_is_taken_where_the_part_alone_is_on_its_way(sender):
    """Of edges into the logits, with three points, by plain hooks."""
    model: Any = model_of("gpt2")
    base, source = (tokens(1, 6, seed) for seed in (1, 2))
    table = edge_attribution(model, base, source, answers=ANSWERS, method="eap-ig-activations", points=3)
    first, second = (added("gpt2", model, one["input_ids"]) for one in (base, source))
    block = model.transformer.h[1]
    places = {"a1.h2": (block.attn.c_proj, "input"), "m1": (block.mlp, "output")}
    module, side = places.get(sender, (model.transformer.h[0], "input"))
    values = []
    for one in (base, source):
        seen: dict[Any, Tensor] = {}
        with torch.no_grad(), watched(module, side, keep(seen, "value")):
            model(**one)
        values.append(seen["value"])
    score = 0.0
    for share, weight in ((0.0, 0.25), (0.5, 0.5), (1.0, 0.25)):
        ends: list[Tensor] = []

        def end(_: Any, given: Any, ends: list[Tensor] = ends) -> Any:
            ends.append(given[0].detach().requires_grad_())
            return (ends[0],)

        value = values[0] + share * (values[1] - values[0])
        if side == "input":
            hook = module.register_forward_pre_hook(lambda _, given, value=value: (value, *given[1:]))
        else:
            hook = module.register_forward_hook(lambda _, given, made, value=value: value)
        with hook, model.transformer.ln_f.register_forward_pre_hook(end):
            logits = model(**base).logits[0, -1]
        (slope,) = torch.autograd.grad(logits[ANSWERS[1]] - logits[ANSWERS[0]], ends)
        score += weight * float((slope * (second[sender] - first[sender])).sum())
    found = next(row["score"] for row in table.rows() if (row["sender"], row["receiver"]) == (sender, "logits"))
    assert found == pytest.approx(score, rel=1e-4, abs=1e-6)
    parts = 1 + 2 * LAYERS
    assert table.meta["passes"] == {"full": 2 + 2 * parts, "backward": 1 + 2 * parts}
