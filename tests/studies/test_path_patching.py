"""Path patching against hooks written by hand, its switches against each other, and against closed forms."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers
from tests.fast.families import blocks, shared
from tests.helpers import HIDDEN, VOCAB, padded_tokens, tokens
from tests.models.test_branches import MAKERS
from tests.untyped import untyped
from torch import Tensor, nn

from align_transformers import PositionError, SpecError, Table, grid, one_by_one, path_patching

LAYERS, LENGTH, ANSWERS = 3, 5, (4, 9)
FAMILIES = ("gpt2", "llama", "neox", "gemma2", "mixtral")
Read = tuple[str, int, int | None]
"""What reads: q, k, v, mlp or block; the layer, the head (of k and v the kv head)."""


@lru_cache(maxsize=1)
def mixtral() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 3, "initializer_range": 0.3}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads)).eval()


@lru_cache(maxsize=1)
def normed_behind() -> Any:
    """A model whose blocks norm the stream itself, so that they do not hand it on as it is."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "n_embd": HIDDEN, "n_head": 4, "n_layer": LAYERS, "n_positions": 16}
    return transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**sizes, initializer_range=0.3)).eval()


def model_of(family: str) -> Any:
    own = {"mixtral": mixtral, "normed behind": normed_behind}
    return own[family]() if family in own else shared(family)


def kv_heads(family: str) -> int:
    return 4 if family in ("gpt2", "neox") else 2


class Places:
    """Where things are in a block, by hand: a module, and the channels of a head."""

    def __init__(self, family: str, model: Any, layer: int) -> None:
        block = blocks(model)[layer]
        self.block, self.mlp = block, block.mlp
        self.family = family = "gpt2" if family == "normed behind" else family
        attention = {"gpt2": "attn", "neox": "attention"}.get(family, "self_attn")
        self.attention = getattr(block, attention)
        self.after_heads = getattr(self.attention, {"gpt2": "c_proj", "neox": "dense"}.get(family, "o_proj"))

    def head(self, number: int) -> slice:
        wide = self.after_heads
        width = (wide.weight.shape[0] if self.family == "gpt2" else wide.in_features) // 4
        return slice(number * width, (number + 1) * width)

    def reader(self, what: str, head: int | None) -> tuple[nn.Module, slice, str]:
        """Return the module, the channels, and whether it is its input or output."""
        if what in ("mlp", "block"):
            return getattr(self, what), slice(None), "input"
        assert head is not None
        own = self.head(head)
        number = "qkv".index(what)
        if self.family == "gpt2":
            return self.attention.c_attn, slice(number * HIDDEN + own.start, number * HIDDEN + own.stop), "output"
        if self.family == "neox":  # head by head: q, k, v
            width = own.stop - own.start
            start = (3 * head + number) * width
            return self.attention.query_key_value, slice(start, start + width), "output"
        return getattr(self.attention, f"{what}_proj"), own, "output"


def first(value: Any) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


@contextmanager
def watched(module: nn.Module, side: str, act: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Let a plain hook look at a module's input or output, and exchange it."""

    def before(_module: nn.Module, args: tuple[Any, ...]) -> Any:
        new = act(args[0])
        return None if new is None else (new, *args[1:])

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        new = act(first(output))
        return None if new is None else (new, *output[1:]) if isinstance(output, tuple) else new

    handle = module.register_forward_pre_hook(before) if side == "input" else module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


class ByHand:
    """Path patching of one pair with plain hooks, a whole pass for each run."""

    def __init__(self, family: str, base: Tensor, source: Tensor) -> None:
        self.family, self.model, self.base, self.source = family, model_of(family), base, source
        self.at = [Places(family, self.model, layer) for layer in range(LAYERS)]
        self.z, self.mlp = {}, {}
        for name, ids in (("base", base), ("source", source)):
            seen: dict[Any, Tensor] = {}
            edits = [(p.after_heads, "input", keep(seen, ("z", n))) for n, p in enumerate(self.at)]
            edits += [(p.mlp, "output", keep(seen, ("mlp", n))) for n, p in enumerate(self.at)]
            self.logits(ids, edits)
            self.z[name] = [seen["z", n] for n in range(LAYERS)]
            self.mlp[name] = [seen["mlp", n] for n in range(LAYERS)]

    def logits(self, ids: Tensor, edits: list[Any]) -> Tensor:
        with ExitStack() as stack, torch.no_grad():
            for module, side, act in edits:
                stack.enter_context(watched(module, side, act))
            return self.model(input_ids=ids).logits[0, -1]

    def sent(self, sender: tuple[str, int, int | None], freeze: str) -> list[Any]:
        """Return the edits of the run in which something is sent and all else is frozen."""
        kind, layer, head = sender
        edits = []
        for number, place in enumerate(self.at):

            def z(value: Tensor, number: int = number, place: Places = place) -> Tensor:
                new = value.clone() if freeze == "none" else self.z["base"][number].clone()
                if (kind, layer) == ("a", number):
                    new[..., place.head(head or 0)] = self.z["source"][number][..., place.head(head or 0)]
                return new

            def mlp(value: Tensor, number: int = number) -> Tensor:
                sends = (kind, layer) == ("m", number)
                return self.mlp["source"][number] if sends else self.mlp["base"][number] if freeze == "all" else value

            edits += [(place.after_heads, "input", z), (place.mlp, "output", mlp)]
        return edits

    def read(self, receivers: list[Read], edits: list[Any]) -> dict[Read, Tensor]:
        seen: dict[Read, Tensor] = {}
        for what, layer, head in receivers:
            module, channels, side = self.at[layer].reader(what, head)
            edits = [(module, side, keep(seen, (what, layer, head), channels)), *edits]
        self.logits(self.base, edits)
        return seen

    def put(self, values: Mapping[Read, Tensor]) -> list[Any]:
        edits = []
        for (what, layer, head), value in values.items():
            module, channels, side = self.at[layer].reader(what, head)
            edits.append((module, side, put_into(channels, value)))
        return edits


def keep(seen: dict[Any, Tensor], name: Any, channels: slice = slice(None)) -> Callable[[Tensor], None]:
    def act(value: Tensor) -> None:
        seen[name] = value[..., channels].clone()

    return act


def put_into(channels: slice, value: Tensor) -> Callable[[Tensor], Tensor]:
    def act(old: Tensor) -> Tensor:
        new = old.clone()
        new[..., channels] = value
        return new

    return act


def difference(logits: Tensor) -> float:
    return float(logits[ANSWERS[1]] - logits[ANSWERS[0]])


def name_of(read: Read) -> str:
    what, layer, head = read
    return f"{what[0]}{layer}" if head is None else f"a{layer}.h{head}<{what}>"


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    return tokens(1, LENGTH, seed)["input_ids"], tokens(1, LENGTH, seed + 50)["input_ids"]


def patched(family: str, base: Tensor, source: Tensor, *args: Any, **options: Any) -> Table:
    model = model_of(family)
    return path_patching(model, {"input_ids": base}, {"input_ids": source}, *args, answers=ANSWERS, **options)


def metrics(table: Table) -> dict[str, float]:
    return dict(zip(table.columns["sender"], table.columns["metric"], strict=True))


@pytest.mark.parametrize("freeze", ["attention", "all", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_senders_to_each_kind_of_receiver_are_those_of_hooks(family: str, freeze: Any) -> None:
    base, source = pair()
    hand = ByHand(family, base, source)
    for receiver in (("q", 2, 1), ("k", 2, 1), ("v", 1, 0), ("mlp", 1, None), ("block", 2, None)):
        found = metrics(
            patched(family, base, source, name_of(receiver), senders=["m0", "a0.h1", "a0.h3"], freeze=freeze)
        )
        for sender, value in found.items():
            kind, layer, head = sender[0], int(sender[1]), int(sender[4:]) if sender[0] == "a" else None
            values = hand.read([receiver], hand.sent((kind, layer, head), freeze))
            expected = difference(hand.logits(base, hand.put(values)))
            assert value == pytest.approx(expected, abs=2e-5), (receiver, sender)


@pytest.mark.parametrize("freeze", ["attention", "all", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_senders_to_the_logits_are_those_of_hooks(family: str, freeze: Any) -> None:
    base, source = pair(1)
    hand = ByHand(family, base, source)
    for sender, value in metrics(
        patched(family, base, source, senders=["a0.h1", "m1", "a2.h3"], freeze=freeze)
    ).items():
        where = (sender[0], int(sender[1]), int(sender[4:]) if sender[0] == "a" else None)
        assert value == pytest.approx(difference(hand.logits(base, hand.sent(where, freeze))), abs=2e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_switches_differ(family: str) -> None:
    base, source = pair(2)
    found = [metrics(patched(family, base, source, senders=["a0.h1"], freeze=f)) for f in ("attention", "all", "none")]
    values = [one["a0.h1"] for one in found]
    assert all(abs(one - other) > 1e-3 for one, other in itertools.combinations(values, 2))


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_nothing_frozen_is_activation_patching(family: str) -> None:
    base, source = pair(3)
    model = model_of(family)
    prompts = {"input_ids": base}, {"input_ids": source}
    heads = grid(
        model, *prompts, components=["attention_value_output"], heads="all", positions=None, answers=ANSWERS, layers=[0]
    )
    expected = dict(enumerate(heads.columns["metric"]))
    to_logits = metrics(patched(family, base, source, senders=["a0.h0", "a0.h3"], freeze="none"))
    to_stream = metrics(patched(family, base, source, "b1", senders=["a0.h0", "a0.h3"], freeze="none"))
    kv = kv_heads(family)
    everything = ["logits", *(f"m{n}" for n in range(LAYERS))]
    for layer in range(1, LAYERS):
        everything += [f"a{layer}.h{n}<q>" for n in range(4)]
        everything += [f"a{layer}.h{n}<{r}>" for n in range(kv) for r in "kv"]
    to_all = metrics(patched(family, base, source, everything, senders=["a0.h0", "a0.h3"], freeze="none"))
    for head in (0, 3):
        for found in (to_logits, to_stream, to_all):
            assert found[f"a0.h{head}"] == pytest.approx(expected[head], abs=2e-5)


@pytest.mark.parametrize("freeze", ["attention", "all", "none"])
def test_a_source_that_is_the_base_changes_nothing(freeze: Any) -> None:
    base, _ = pair(4)
    for receivers in ("logits", "a2.h1<k>", ["logits", "m2"]):
        table = patched("llama", base, base, receivers, senders=["a0.h1"], freeze=freeze, planner=one_by_one)
        assert set(table.columns["effect"]) == {0.0}


def test_logits_in_all_are_the_direct_path_through_the_final_norm() -> None:
    base, source = pair(5)
    model, hand = model_of("llama"), ByHand("llama", base, source)
    with torch.no_grad():
        hidden = model(input_ids=base, output_hidden_states=True)
        seen: dict[Any, Tensor] = {}
        hand.logits(base, [(hand.at[-1].block, "output", keep(seen, "end"))])
        for sender, value in metrics(patched("llama", base, source, senders=["a0.h1", "a1.h2"], freeze="all")).items():
            layer, place = int(sender[1]), hand.at[int(sender[1])]
            channels = place.head(int(sender[4:]))
            change = (hand.z["source"][layer] - hand.z["base"][layer])[..., channels]
            end = seen["end"] + change @ place.after_heads.weight[:, channels].T
            assert value == pytest.approx(difference(model.lm_head(model.model.norm(end))[0, -1]), abs=2e-5)
    assert hidden.logits.shape[-1] == VOCAB


def test_edges_of_a_linear_model_sum_to_the_total_effect() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "n_embd": HIDDEN, "n_head": 4, "n_layer": 2, "n_positions": 16}
    config = transformers.GPT2Config(**sizes, activation_function="linear", initializer_range=0.3)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.transformer.h[1].attn.c_attn.weight.data[:, : 2 * HIDDEN] = 0  # each token attends to all alike
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.forward = lambda hidden: hidden  # type: ignore[method-assign]
    prompts = [{"input_ids": ids} for ids in pair(6)]

    def effect(receivers: Any, freeze: Any) -> float:
        options: dict[str, Any] = {"answers": ANSWERS, "senders": ["m0"], "freeze": freeze}
        return path_patching(model, *prompts, receivers, **options).columns["effect"][0]

    edges = ["logits", "m1", *(f"a1.h{n}<v>" for n in range(4))]
    total = effect("logits", "none")
    assert abs(total) > 0.1
    assert sum(effect(edge, "all") for edge in edges) == pytest.approx(total, abs=1e-4)
    values = edges[2:]  # none of these comes after another one, so they can be put in at once
    assert effect(["logits", *values], "all") == pytest.approx(total - effect("m1", "all"), abs=1e-4)


@pytest.mark.parametrize("freeze", ["attention", "all"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_path_of_two_edges_is_that_of_hooks(family: str, freeze: Any) -> None:
    base, source = pair(7)
    hand = ByHand(family, base, source)
    kv = 1
    group = [1] if family == "gpt2" else [2, 3]
    for hop, writers in ((("q", 1, 2), [2]), (("k", 1, kv), group)):
        carried = hand.read([hop], hand.sent(("a", 0, 1), freeze))
        seen: dict[Any, Tensor] = {}
        hand.logits(base, [(hand.at[1].after_heads, "input", keep(seen, "z")), *hand.put(carried)])
        hand_z = hand.z["source"]
        hand.z["source"] = [seen["z"]] * LAYERS
        edits = hand.sent(("a", 1, writers[0]), freeze)
        if len(writers) > 1:
            others = hand.at[1].head(writers[1])
            edits.append((hand.at[1].after_heads, "input", put_into(others, seen["z"][..., others])))
        expected = difference(hand.logits(base, hand.put(hand.read([("v", 2, 0)], edits))))
        to_logits = difference(hand.logits(base, edits))
        hand.z["source"] = hand_z
        found = patched(family, base, source, "a2.h0<v>", senders=["a0.h1"], through=[name_of(hop)], freeze=freeze)
        assert metrics(found)["a0.h1"] == pytest.approx(expected, abs=2e-5)
        found = patched(family, base, source, senders=["a0.h1"], through=[name_of(hop)], freeze=freeze)
        assert metrics(found)["a0.h1"] == pytest.approx(to_logits, abs=2e-5)


def test_a_key_of_one_query_head_is_put_in_for_it_alone() -> None:
    base, source = pair(8)
    hand = ByHand("llama", base, source)
    carried = hand.read([("k", 1, 1)], hand.sent(("a", 0, 0), "all"))
    seen: dict[Any, Tensor] = {}
    hand.logits(base, [(hand.at[1].after_heads, "input", keep(seen, "z")), *hand.put(carried)])
    channels = hand.at[1].head(3)
    alone = hand.logits(base, [(hand.at[1].after_heads, "input", put_into(channels, seen["z"][..., channels]))])
    options: dict[str, Any] = {"senders": ["a0.h0"], "freeze": "all"}
    found = patched("llama", base, source, "a1.h3<k>", per_query_head=True, **options)
    assert metrics(found)["a0.h0"] == pytest.approx(difference(alone), abs=2e-5)
    whole = metrics(patched("llama", base, source, "a1.h1<k>", **options))["a0.h0"]
    both = metrics(patched("llama", base, source, ["a1.h2<k>", "a1.h3<k>"], per_query_head=True, **options))["a0.h0"]
    assert both == pytest.approx(whole, abs=2e-5)
    assert abs(whole - difference(alone)) > 1e-4


def test_a_freeze_is_made_before_its_own_layer_uses_the_value() -> None:
    """The trap of a published figure: heads of the receiver's own layer, frozen after they were read."""
    base, source = pair(9)
    hand = ByHand("gpt2", base, source)
    # m1 reads what the heads of its own layer write: these have to hold the base's values when it does.
    carried = hand.read([("mlp", 1, None)], hand.sent(("a", 0, 2), "attention"))
    expected = difference(hand.logits(base, hand.put(carried)))
    too_late = hand.read([("mlp", 1, None)], hand.sent(("a", 0, 2), "attention")[:2])  # nothing of layer 1 is frozen
    assert abs(difference(hand.logits(base, hand.put(too_late))) - expected) > 1e-3
    found = metrics(patched("gpt2", base, source, "m1", senders=["a0.h2"], freeze="attention"))
    assert found["a0.h2"] == pytest.approx(expected, abs=2e-5)


def test_positions_and_padding() -> None:
    model = model_of("llama")
    base, source = (padded_tokens((4, 4), "left", seed=seed) for seed in (1, 2))
    every = path_patching(model, base, source, "a2.h1<q>", senders=["a0.h1"], positions="all", answers=ANSWERS)
    assert sorted(every.columns["position"]) == [0, 0, 1, 1, 2, 2, 3, 3]
    last = path_patching(
        model, base, source, "a2.h1<q>", senders=["a0.h1"], positions=[-1], receiver_positions=[0], answers=ANSWERS
    )
    assert last.columns["effect"] == pytest.approx((0.0, 0.0), abs=1e-6)  # nothing goes back in time


def test_senders_together_and_parts_of_a_store(tmp_path: Any) -> None:
    base, source = pair(10)
    hand = ByHand("gpt2", base, source)
    table = patched("gpt2", base, source, senders=[("a0.h1", "m1")], freeze="all", store=tmp_path)
    first_edits, second = hand.sent(("a", 0, 1), "all"), hand.sent(("m", 1, None), "all")
    edits = [*first_edits[:3], second[3], *first_edits[4:]]
    assert table.columns["sender"] == ("a0.h1+m1",)
    assert table.columns["metric"][0] == pytest.approx(difference(hand.logits(base, edits)), abs=2e-5)
    again = patched("gpt2", base, source, senders=[("a0.h1", "m1")], freeze="all", store=tmp_path)
    assert again.columns == table.columns
    with pytest.raises(SpecError, match="another"):
        patched("gpt2", base, source, senders=[("a0.h1", "m1")], freeze="attention", store=tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"freeze": "some"}, SpecError, "freeze"),
        ({"senders": ["x1"]}, SpecError, "a node is named"),
        ({"senders": ["a1.h1<q>"]}, SpecError, "sends nothing"),
        ({"senders": ["a1.h9"]}, PositionError, "4 heads"),
        ({"senders": ["m7"]}, PositionError, "3 layers"),
        ({"receivers": "a1.h1"}, SpecError, "which of its vectors"),
        ({"receivers": "a2.h3<k>"}, PositionError, "kv head"),
        ({"receivers": "a0.h1<q>"}, SpecError, "no sender comes before"),
        ({"receivers": "input"}, SpecError, "the embeddings read nothing"),
        ({"through": ["b1"]}, SpecError, "cannot be passed through"),
        ({"through": ["a1.h0<q>"], "receivers": "a1.h1<v>"}, SpecError, "a1.h0<q> comes behind a1.h1<v>"),
        ({"through": ["m2", "m1"]}, SpecError, "m2 comes behind m1"),
        ({"receivers": "m2", "receiver_positions": [9]}, PositionError, "5 tokens"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    base, source = pair()
    with untyped(), pytest.raises(error, match=message):
        patched("llama", base, source, **options)


def test_all_that_comes_before_a_receiver_sends() -> None:
    base, source = pair()
    names = metrics(patched("neox", base, source, "m1", senders="all"))
    assert set(names) == {"input", "m0", *(f"a{layer}.h{n}" for layer in range(2) for n in range(4))}
    assert all(
        abs(names[f"a1.h{n}"] - table_value) < 1e-5 for n in range(4) for table_value in [base_metric("neox", base)]
    )


def base_metric(family: str, base: Tensor) -> float:
    with torch.no_grad():
        return difference(model_of(family)(input_ids=base).logits[0, -1])


def test_experts_beside_an_mlp_and_mlps_of_a_layers_own_are_frozen_with_all() -> None:
    base, source = pair(11)
    kinds = {"granitemoehybrid": ("shared_mlp", "block_sparse_moe"), "gemma4": ("mlp", "per_layer_projection")}
    for kind, inside in kinds.items():
        torch.manual_seed(0)
        model = MAKERS[kind]().eval()
        for weight in model.parameters():
            weight.data *= 8 if weight.ndim > 1 else 1  # else hardly anything comes of an MLP
        layers = model.model.layers
        places = [(layer.self_attn.o_proj, "input") for layer in layers]
        places += [(layer.get_submodule(name), "output") for layer in layers for name in inside]

        def logits(ids: Tensor, acts: list[Any], model: Any = model, places: list[Any] = places) -> Tensor:
            with ExitStack() as stack, torch.no_grad():
                for (module, side), act in zip(places, acts, strict=True):
                    stack.enter_context(watched(module, side, act))
                return model(input_ids=ids).logits[0, -1]

        seen: list[dict[Any, Tensor]] = [{}, {}]
        for ids, values in zip((base, source), seen, strict=True):
            logits(ids, [keep(values, number) for number in range(len(places))])
        width = seen[0][0].shape[-1] // 4
        first_head = put_into(slice(0, width), seen[1][0][..., :width])
        acts = [lambda _old, value=seen[0][number]: value for number in range(len(places))]
        expected = difference(logits(base, [first_head, *acts[1:]]))
        table = path_patching(
            model, {"input_ids": base}, {"input_ids": source}, senders=["a0.h0"], freeze="all", answers=ANSWERS
        )
        assert table.columns["metric"][0] == pytest.approx(expected, abs=5e-5)
        # The experts, or the layer's own MLP, left out: another number.
        free = [first_head, *[a if n in (*range(len(layers)), *range(len(layers), len(acts), 2)) else keep({}, 0)
                              for n, a in enumerate(acts)][1:]]  # fmt: skip
        assert abs(difference(logits(base, free)) - expected) > 1e-3


@pytest.mark.parametrize(("family", "leaps"), [("gpt2", True), ("gemma2", True), ("normed behind", False)])
def test_blocks_that_only_hand_on_what_was_sent_are_not_run(family: str, leaps: bool) -> None:
    base, source = pair(12)
    hand, plans = ByHand(family, base, source), []

    def seen(bound: Any) -> Any:
        plans.append(bound.plan)
        return one_by_one(bound)

    found = metrics(patched(family, base, source, senders=["a0.h1", "m1"], freeze="all", planner=seen))
    for sender, value in found.items():
        where = (sender[0], int(sender[1]), int(sender[4:]) if sender[0] == "a" else None)
        assert value == pytest.approx(difference(hand.logits(base, hand.sent(where, "all"))), abs=2e-5)
    edits = {len(plans[0].run(name).edits) for name in plans[0].outputs if name not in ("base", "source")}
    assert (edits == {1}) == leaps


def test_senders_before_and_behind_a_receiver_are_sent_together() -> None:
    base, source = pair(13)
    hand = ByHand("llama", base, source)
    first, second = hand.sent(("a", 0, 1), "all"), hand.sent(("m", 2, None), "all")
    edits = [*first[:5], second[5]]  # in order of layers: heads and MLP of each
    carried = hand.read([("mlp", 2, None)], edits)
    expected = difference(hand.logits(base, [*hand.put(carried)]))
    found = metrics(patched("llama", base, source, "m2", senders=[("a0.h1", "m2")], freeze="all"))
    assert found["a0.h1+m2"] == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("freeze", ["attention", "all"])
def test_a_key_of_one_head_is_put_in_beside_the_blocks_own_input(freeze: Any) -> None:
    base, source = pair(14)
    hand = ByHand("llama", base, source)
    carried = hand.read([("block", 2, None), ("k", 2, 0)], hand.sent(("a", 0, 1), freeze))
    seen: dict[Any, Tensor] = {}
    hand.logits(base, [(hand.at[2].after_heads, "input", keep(seen, "z")), *hand.put(carried)])
    channels = hand.at[2].head(1)  # of two that read key 0
    block = hand.put({("block", 2, None): carried["block", 2, None]})
    edits = [*block, (hand.at[2].after_heads, "input", put_into(channels, seen["z"][..., channels]))]
    options: dict[str, Any] = {"senders": ["a0.h1"], "freeze": freeze, "per_query_head": True}
    for receivers in (["b2", "a2.h1<k>"], ["a2.h1<k>", "b2"]):
        found = metrics(patched("llama", base, source, receivers, **options))
        assert found["a0.h1"] == pytest.approx(difference(hand.logits(base, edits)), abs=2e-5)


@pytest.mark.parametrize("freeze", ["attention", "all", "none"])
@pytest.mark.parametrize("family", ["llama", "neox"])
def test_tokens_that_are_not_read_may_be_left_out_and_no_others(family: str, freeze: Any) -> None:
    base, source = pair(15)
    hand, columns = ByHand(family, base, source), [1, 3]
    for receiver in (("q", 2, 1), ("mlp", 2, None), ("block", 2, None)):
        whole = hand.read([receiver], hand.sent(("a", 0, 1), freeze))[receiver]
        module, channels, side = hand.at[2].reader(receiver[0], receiver[2])

        def put(old: Tensor, channels: slice = channels, whole: Tensor = whole) -> Tensor:
            new = old.clone()
            new[:, columns, channels] = whole[:, columns]
            return new

        options: dict[str, Any] = {"senders": ["a0.h1"], "freeze": freeze, "receiver_positions": columns}
        found = metrics(patched(family, base, source, name_of(receiver), **options))
        assert found["a0.h1"] == pytest.approx(difference(hand.logits(base, [(module, side, put)])), abs=2e-5)
    for place in (1, LENGTH - 1):  # sent at one token: the others keep the base's
        kept = [hand.z["source"][n].clone() for n in range(LAYERS)]
        for n in range(LAYERS):
            others = [p for p in range(LENGTH) if p != place]
            kept[n][:, others] = hand.z["base"][n][:, others]
        plain, hand.z["source"] = hand.z["source"], kept
        if freeze != "none":  # else hooks would put in more than was sent
            expected = difference(hand.logits(base, hand.sent(("a", 0, 1), freeze)))
            table = patched(family, base, source, senders=["a0.h1"], freeze=freeze, positions=[place])
            assert table.columns["metric"][0] == pytest.approx(expected, abs=2e-5)
        hand.z["source"] = plain


def test_pairs_of_several_lengths_are_those_of_each_and_have_intervals() -> None:
    model, lengths = model_of("llama"), (4, 2, 3)
    base, source = (padded_tokens(lengths, "left", seed=seed) for seed in (3, 4))
    for inputs in (base, source):
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    for freeze, receivers in itertools.product(("all", "attention"), ("logits", "m2", "a2.h1<k>")):
        options: dict[str, Any] = {"senders": ["a0.h1", "m0"], "freeze": freeze, "answers": ANSWERS}
        table = path_patching(model, base, source, receivers, **options)
        assert len(table) == 2 * len(lengths)
        for number, length in enumerate(lengths):
            alone = [{"input_ids": side["input_ids"][number : number + 1, -length:]} for side in (base, source)]
            single = path_patching(model, *alone, receivers, planner=one_by_one, **options)
            own = [row["metric"] for row in table.rows() if row["pair"] == number]
            assert own == pytest.approx(single.columns["metric"], abs=3e-5)
        means = table.mean(("sender", "layer", "head"), value="effect")
        for row in means.rows():
            effects = [one["effect"] for one in table.rows() if one["sender"] == row["sender"]]
            assert row["count"] == len(lengths)
            assert row["effect"] == pytest.approx(sum(effects) / len(effects))
            assert row["low"] <= row["effect"] <= row["high"]


def test_two_stacks_are_refused() -> None:
    ids = tokens(1, 4)
    with pytest.raises(SpecError, match="one residual stream, and the encoder's ends"):
        path_patching(shared("t5"), ids, ids, answers=ANSWERS)
