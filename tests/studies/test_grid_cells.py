"""grid: heads, neurons, directions, several pairs, paths and other places to read: each cell against plain hooks."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from tests.helpers import (
    FAMILIES,
    LAYERS,
    VOCAB,
    grab,
    locus,
    logits_with,
    padded_tokens,
    tiny,
    tokens,
    writer,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from align_transformers._errors import PositionError, SiteError, SpecError
from align_transformers.metrics import Metric, kl_to_clean, logit_difference, probability, rank
from align_transformers.studies import grid
from align_transformers.studies._prompts import encode

BOTH = ["denoise", "noise"]
DIFFERENCE = logit_difference(5, 4)


def alone(batch, pair):
    """One prompt of a padded batch, its real tokens alone."""
    real = batch["attention_mask"][pair].bool()
    ids = batch["input_ids"][pair][real][None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def by_hand(place, model, into, out, places, low=0, high=None):
    """The last token's logits after one swap, and the norm of the change: `places` are (written, read)."""
    [wanted], [before] = grab(model, out, place), grab(model, into, place)
    high = place.width if high is None else high
    written, read = ([pair[i] for pair in places] for i in (0, 1))

    def new(old, _example):
        fresh = old.clone()
        fresh[:, low:high] = wanted[0, read, low:high]
        return fresh

    touched = logits_with(model, into, writer(place, [written], new))[0, -1]
    return touched, (wanted[0, read, low:high] - before[0, written, low:high]).norm().item()


def check(row, model, base, source, place, places, *bounds, metric=DIFFERENCE):
    """Compare a row with the same swap by hand: all numbers of it."""
    into, out = (base, source) if row["direction"] == "denoise" else (source, base)
    places = places if row["direction"] == "denoise" else [pair[::-1] for pair in places]
    logits, change = by_hand(place, model, into, out, places, *bounds)
    own, other = (model(**x).logits[:, -1] for x in (into, out))
    value, ends = metric(logits[None], own).item(), [metric(x, own).item() for x in (own, other)]
    assert row["metric"] == pytest.approx(value, abs=1e-4)
    assert row["effect"] == pytest.approx(value - ends[0], abs=1e-4)
    assert row["recovered"] == pytest.approx((value - ends[0]) / (ends[1] - ends[0]), abs=2e-3)
    assert row["change"] == pytest.approx(change, rel=1e-4, abs=1e-6)
    assert row["fired"] == 1


@pytest.mark.parametrize("directions", [["denoising"], ["noise"], ["noising", "denoise"]], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_both_directions(family, directions):
    model, base, source = tiny(family), tokens(1, 4, seed=1), tokens(1, 6, seed=2)
    table = grid(model, base, source, metric=DIFFERENCE, directions=directions, last=3)
    short = [{"denoising": "denoise", "noising": "noise"}.get(name, name) for name in directions]
    assert [(r["direction"], r["layer"], r["position"]) for r in table.rows()] == list(
        product(short, range(LAYERS), (1, 2, 3))
    )
    for row in table.rows():
        assert row["source_position"] == row["position"] + 2
        place = locus(model, "block_output", row["layer"])
        check(row, model, base, source, place, [(row["position"], row["source_position"])])


@pytest.mark.parametrize("positions", ["all", [-1], None], ids=str)
@pytest.mark.parametrize("component", ["attention_value_output", "query_output", "value_output"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_heads(family, component, positions):
    model, base, source = tiny(family), tokens(1, 4, seed=1), tokens(1, 4, seed=2)
    table = grid(model, base, source, components=[component], heads="all", positions=positions, metric=DIFFERENCE)
    count = locus(model, component, 0).heads
    where = {"all": [0, 1, 2, 3], None: [None]}.get(positions if positions != [-1] else 0, [3])
    assert [(r["layer"], r["head"], r["position"]) for r in table.rows()] == list(
        product(range(LAYERS), range(count), where)
    )
    for row in table.rows():
        place = locus(model, component, row["layer"])
        places = [(p, p) for p in (range(4) if row["position"] is None else [row["position"]])]
        low = row["head"] * place.head_dim
        check(row, model, base, source, place, places, low, low + place.head_dim)
    if positions != "all":
        assert table.pivot(columns="head").shape == (LAYERS, count)


@torch.no_grad()
def test_some_heads_in_two_directions():
    model, base, source = tiny("llama"), tokens(1, 4, seed=1), tokens(1, 4, seed=2)
    options = {
        "components": ["head_output"],
        "positions": [-1],
        "metric": DIFFERENCE,
        "directions": ["denoise", "noise"],
    }
    full, some = (grid(model, base, source, heads=heads, **options) for heads in ("all", [-1, 1]))
    assert some.columns["head"] == (3, 1) * LAYERS * 2
    values = {(r["direction"], r["layer"], r["head"]): r["metric"] for r in full.rows()}
    for row in some.rows():
        assert row["metric"] == pytest.approx(values[row["direction"], row["layer"], row["head"]], abs=1e-5)


@pytest.mark.parametrize("size", [16, 7])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_neurons_in_blocks(family, size):
    model, base, source = tiny(family), tokens(1, 3, seed=1), tokens(1, 3, seed=2)
    components = ["mlp_activation", "block_output"]
    table = grid(model, base, source, components=components, layers=[1], neurons=size, metric=DIFFERENCE)
    places = {name: locus(model, name, 1) for name in components}
    assert [(r["component"], r["neuron"], r["position"]) for r in table.rows()] == [
        (name, low, p) for name in components for low in range(0, places[name].width, size) for p in range(3)
    ]
    for row in table.rows():
        place = places[row["component"]]
        low = row["neuron"]
        check(row, model, base, source, place, [(row["position"],) * 2], low, min(low + size, place.width))
    assert table.meta["neurons"] == size


@pytest.mark.parametrize("lengths", [(4, 4, 4), (3, 6, 4)], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_pairs_of_a_padded_batch_are_as_each_alone(family, side, lengths):
    model = tiny(family)
    base, source = padded_tokens(lengths, side, seed=1), padded_tokens(lengths, side, seed=2)
    for batch in (base, source):
        batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    table = grid(model, base, source, metric=DIFFERENCE, directions=["denoise", "noise"])
    assert [(r["direction"], r["layer"], r["pair"], r["position"]) for r in table.rows()] == [
        (way, n, pair, p)
        for way in ("denoise", "noise")
        for n in range(LAYERS)
        for pair in range(3)
        for p in range(lengths[pair])
    ]
    assert table.meta["passes"] == {"full": 2, "packed": 2}
    for row in table.rows():
        one, other = alone(base, row["pair"]), alone(source, row["pair"])
        assert row["token"] == str(one["input_ids"][0, row["position"]].item())
        check(row, model, one, other, locus(model, "block_output", row["layer"]), [(row["position"],) * 2])
    assert len(table.meta["base_value"]) == table.meta["pairs"] == 3
    assert table.meta["base_value"] == pytest.approx(
        [DIFFERENCE(model(**alone(base, pair)).logits[:, -1]).item() for pair in range(3)], abs=1e-4
    )


@pytest.fixture(scope="module")
def tokenizer():
    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


BASES, SOURCES = ["w1 w2 w3 w4", "w9 w8 w7", "w11 w12 w13 w14 w15"], ["w1 w2 w5 w44", "w9 w1 w37", "w20 w2 w13 w1 w55"]


def test_texts_are_padded_on_the_side_that_costs_least_and_is_right(tokenizer):
    cases = [(tiny("gpt2"), (1, 2, 0), True), (tiny("llama"), (1, 2, 0), False), (bert(), (0, 0, 0), False)]
    for model, starts, learned in cases:
        prompts = encode(BASES, tokenizer, model)
        assert prompts.tokens("").starts == starts
        assert ("position_ids" in prompts.inputs) == learned
        equal = encode([BASES[0], SOURCES[0]], tokenizer, model)
        assert "position_ids" not in equal.inputs
        for row, length in enumerate((4, 3, 5)):
            real = prompts.inputs["attention_mask"][row].bool()
            assert prompts.inputs["input_ids"][row][real].tolist() == list(prompts.tokens("").ids[row])
            assert len(prompts.tokens("").ids[row]) == length


@pytest.mark.parametrize("kind", [*FAMILIES, "bert"])
@torch.no_grad()
def test_texts_are_padded_and_answers_may_differ(kind, tokenizer):
    model = bert() if kind == "bert" else tiny(kind)
    answers = [("w4", "w5"), ("w6", "w7"), ("w4", "w5")]
    options = {"tokenizer": tokenizer, "layers": [0, 2]}
    table = grid(model, BASES, SOURCES, answers=answers, **options)
    assert table.meta["base"] == BASES
    assert table.meta["source_answer"] == ["w5", "w7", "w5"]
    assert table.meta["metric"] == "logit(source's answer) - logit(base's answer)"
    for pair in range(3):
        single = grid(model, BASES[pair], SOURCES[pair], answers=answers[pair], **options)
        part = table.select(where={"pair": pair})
        for column in ("layer", "position", "token", "source_token", "direction"):
            assert part.columns[column] == single.columns[column]
        for column in ("metric", "effect", "change"):
            assert part.columns[column] == pytest.approx(single.columns[column], abs=2e-4)
    mixed = grid(model, BASES, SOURCES, metric=[probability(3), rank(3), DIFFERENCE], **options)
    assert mixed.select(where={"pair": 2}).columns["metric"] == pytest.approx(
        table.select(where={"pair": 2}).columns["metric"], abs=1e-4
    )


@pytest.mark.parametrize("kind", [*FAMILIES, "bert"])
@torch.no_grad()
def test_the_models_own_answers_differ_from_pair_to_pair(kind, tokenizer):
    model = bert() if kind == "bert" else tiny(kind)

    def says(text):
        return int(model(**tokenizer(text, return_tensors="pt")).logits[0, -1].argmax())

    sources, expected = [], []
    for base in BASES:
        start = base.rpartition(" ")[0]
        sources.append(next(t for n in range(10, 60) if says(t := f"{start} w{n}") != says(base)))
        expected.append((says(base), says(sources[-1])))
    table = grid(model, BASES, sources, tokenizer=tokenizer, layers=[1], positions=[-1])
    top = grid(model, BASES, sources, tokenizer=tokenizer, layers=[1], positions=[-1], top=1)
    for meta in (table.meta, top.meta):
        for number, side in enumerate(("base", "source")):
            assert meta[f"{side}_says"] == meta[f"{side}_answer"] == [f"w{two[number]}" for two in expected]
    assert table.columns["metric"] == pytest.approx(top.columns["metric"], abs=1e-4)
    for row in table.rows():
        one = grid(model, BASES[row["pair"]], sources[row["pair"]], tokenizer=tokenizer, layers=[1], positions=[-1])
        assert row["metric"] == pytest.approx(one.columns["metric"][0], abs=1e-4)
        assert one.meta["metric"] == "logit('w{1}') - logit('w{0}')".format(*expected[row["pair"]])


def test_positions_that_a_pair_does_not_have_are_left_out(tokenizer):
    options = {"tokenizer": tokenizer, "layers": [0], "metric": DIFFERENCE}
    table = grid(tiny("llama"), BASES, SOURCES, positions=[3, -1], **options)
    assert list(zip(table.columns["pair"], table.columns["position"], strict=True)) == [(0, 3), (1, 2), (2, 3), (2, 4)]
    whole = grid(tiny("llama"), BASES, SOURCES, positions=None, **options)
    assert list(zip(whole.columns["pair"], whole.columns["position"], strict=True)) == [(n, None) for n in range(3)]
    aligned = grid(tiny("llama"), BASES, SOURCES, last=2, positions=[2], **options)
    assert aligned.columns["pair"] == (0, 1)
    with pytest.raises(PositionError, match="position 5 does not exist"):
        grid(tiny("llama"), BASES, SOURCES, positions=[5], **options)
    with pytest.raises(PositionError, match="not among the last 1 tokens of any base"):
        grid(tiny("llama"), BASES, SOURCES, positions=[1], last=1, **options)
    with pytest.raises(PositionError, match="pair 1: the base has 3 tokens, the source 4"):
        grid(tiny("llama"), BASES, [SOURCES[0], SOURCES[0], SOURCES[2]], **options)
    with pytest.raises(SpecError, match="pair 1: both prompts have the same answer"):
        grid(tiny("llama"), BASES[:2], [SOURCES[0], BASES[1]], tokenizer=tokenizer, top=1)


@pytest.mark.parametrize("metric", [kl_to_clean(), rank(7), probability(7)], ids=lambda metric: metric.name)
@torch.no_grad()
def test_metrics_of_the_whole_vocabulary(metric):
    model, base, source = tiny("gpt2"), tokens(1, 4, seed=1), tokens(1, 4, seed=2)
    table = grid(model, base, source, metric=metric, directions=["denoise", "noise"])
    for row in table.rows():
        place = locus(model, "block_output", row["layer"])
        check(row, model, base, source, place, [(row["position"],) * 2], metric=metric)
    if metric.compares:
        assert table.meta["base_value"] == 0


def test_a_metric_with_tokens_gets_their_logits_alone():
    seen = []

    def function(logits):
        seen.append(logits.shape[-1])
        return logits[:, 1] * 2

    base, source = tokens(1, 4, seed=1), tokens(1, 4, seed=2)
    metric, plain = Metric("own", function, tokens=(9, 3)), Metric("plain", lambda logits: logits[:, 3] * 2)
    narrow = grid(tiny("llama"), base, source, metric=metric)
    assert set(seen) == {2}
    assert "base_says" not in narrow.meta  # that would take the whole vocabulary
    whole = grid(tiny("llama"), base, source, metric=plain)
    assert narrow.columns["metric"] == pytest.approx(whole.columns["metric"], abs=1e-5)


@torch.no_grad()
def test_paths_and_ends_have_no_layer():
    model, base, source = tiny("gpt2"), tokens(1, 4, seed=1), tokens(1, 4, seed=2)
    names = ["transformer.h.1.mlp.output", "block_output", "embedding_output"]
    table = grid(model, base, source, components=names, layers=[1], metric=DIFFERENCE)
    assert table.columns["layer"] == (None,) * 4 + (1,) * 4 + (None,) * 4
    for row in table.select(names[0]).rows():
        check(row, model, base, source, locus(model, "mlp_output", 1), [(row["position"],) * 2])
    for row in table.select("embedding_output").rows():
        check(row, model, base, source, locus(model, "block_input", 0), [(row["position"],) * 2])


@torch.no_grad()
def test_a_module_without_known_blocks():
    torch.manual_seed(0)

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix = torch.nn.Embedding(VOCAB, 8), torch.nn.Linear(8, 8)
            self.out = torch.nn.Linear(8, VOCAB)

        def forward(self, input_ids):
            return self.out(self.mix(self.embed(input_ids)).cumsum(1).tanh())

    model = Plain()
    base, source = ({"input_ids": tokens(1, 4, seed=seed)["input_ids"]} for seed in (1, 2))
    table = grid(model, base, source, components=["mix.output"], metric=DIFFERENCE)
    assert table.columns["position"] == (0, 1, 2, 3)
    hidden = [model.mix(model.embed(x["input_ids"])) for x in (base, source)]
    for row in table.rows():
        swapped = hidden[0].clone()
        swapped[0, row["position"]] = hidden[1][0, row["position"]]
        value = DIFFERENCE(model.out(swapped.cumsum(1).tanh())[:, -1]).item()
        assert row["metric"] == pytest.approx(value, abs=1e-5)


def bert():
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    return BertForMaskedLM(BertConfig(**sizes, max_position_embeddings=16, initializer_range=0.3)).eval()


@pytest.mark.parametrize("at", [-1, 1, [1, -2]], ids=str)
@torch.no_grad()
def test_a_masked_language_model_is_read_where_you_say(at):
    model = bert()
    base, source = tokens(2, 5, seed=1), tokens(2, 5, seed=2)
    table = grid(model, base, source, metric=DIFFERENCE, at=at)
    places = at if isinstance(at, list) else [at, at]
    for row in table.rows():
        one, other = alone(base, row["pair"]), alone(source, row["pair"])
        block = model.bert.encoder.layer[row["layer"]]
        wanted = []
        with block.register_forward_hook(
            lambda m, a, out, kept=wanted: kept.append(out if torch.is_tensor(out) else out[0])
        ):
            model(**other)

        def swap(_module, _arguments, out, row=row, wanted=wanted):
            first = (out if torch.is_tensor(out) else out[0]).clone()
            first[0, row["position"]] = wanted[0][0, row["position"]]
            return first if torch.is_tensor(out) else (first, *out[1:])

        with block.register_forward_hook(swap):
            logits = model(**one).logits[:, places[row["pair"]]]
        assert row["metric"] == pytest.approx(DIFFERENCE(logits).item(), abs=1e-4)
    assert table.meta["base_value"] == pytest.approx(
        [DIFFERENCE(model(**alone(base, n)).logits[:, places[n]]).item() for n in range(2)], abs=1e-4
    )


@torch.no_grad()
def test_a_causal_model_is_read_before_the_end_too():
    model, base, source = tiny("llama"), tokens(1, 4, seed=1), tokens(1, 4, seed=2)
    table = grid(model, base, source, metric=DIFFERENCE, at=2)
    shorter = [{name: value[:, :3] for name, value in x.items()} for x in (base, source)]
    known = grid(model, *shorter, metric=DIFFERENCE)
    found = [row["metric"] for row in table.rows() if row["position"] < 3]
    assert found == pytest.approx(known.columns["metric"], abs=1e-4)
    assert all(row["effect"] == pytest.approx(0, abs=1e-5) for row in table.rows() if row["position"] == 3)
    assert table.meta["passes"] == {"full": 2, "packed": 1}


def encoder_decoder(kind):
    torch.manual_seed(0)
    if kind == "t5":
        sizes = {"vocab_size": VOCAB, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
        return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=3, initializer_factor=2.0)).eval()
    sizes = {f"{stack}_{what}": 2 for stack in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    widths = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 16}
    config = BartConfig(vocab_size=VOCAB, **sizes, **widths, init_std=0.4, decoder_start_token_id=3)
    return BartForConditionalGeneration(config).eval()


def module_of(model, kind, component, layer):
    """The module whose first output is a component of an encoder-decoder."""
    stack, _, name = component.partition(".")
    if kind == "t5":
        block = getattr(model, stack).block[layer]
        return {"block_output": block, "mlp_output": block.layer[-1].DenseReluDense}.get(name) or block.layer[
            1
        ].EncDecAttention
    block = getattr(model.model, stack).layers[layer]
    return {"block_output": block, "mlp_output": block.fc2}.get(name) or block.encoder_attn


def swapped(model, module, into, out, written, read):
    """The last logits of one example after one swap by plain hooks."""
    seen = []

    def first(output):
        return output[0] if isinstance(output, tuple) else output

    with module.register_forward_hook(lambda _m, _a, output: seen.append(first(output).clone())):
        model(**out)

    def write(_module, _args, output):
        new = first(output).clone()
        new[0, written] = seen[0][0, read]
        return (new, *output[1:]) if isinstance(output, tuple) else new

    with module.register_forward_hook(write):
        return model(**into).logits[0, -1]


SEQ2SEQ = ["encoder.block_output", "decoder.block_output", "decoder.mlp_output", "decoder.cross_attention_output"]


@pytest.mark.parametrize("kind", ["t5", "bart"])
@torch.no_grad()
def test_cells_of_both_stacks_of_an_encoder_decoder(kind, tokenizer):
    model = encoder_decoder(kind)
    table = grid(model, BASES, SOURCES, tokenizer=tokenizer, components=SEQ2SEQ, metric=DIFFERENCE, directions=BOTH)
    assert len(table) == 2 * 2 * (4 + 3 + 5 + 3 * 3)
    start = torch.tensor([[3]])
    texts = {"base": BASES, "source": SOURCES}
    prompts = {
        (side, pair): {"input_ids": tokenizer(text, return_tensors="pt")["input_ids"], "decoder_input_ids": start}
        for side in texts
        for pair, text in enumerate(texts[side])
    }
    values = set()
    for row in table.rows():
        order = ("base", "source") if row["direction"] == "denoise" else ("source", "base")
        into, out = (prompts[side, row["pair"]] for side in order)
        module = module_of(model, kind, row["component"], row["layer"])
        expected = DIFFERENCE(swapped(model, module, into, out, row["position"], row["source_position"])[None])
        assert row["metric"] == pytest.approx(expected.item(), abs=1e-4)
        inside = row["component"].startswith("encoder")
        text = texts["base"][row["pair"]].split()[row["position"]] if inside else "w3"
        assert (row["token"], row["fired"]) == (text, 1)
        values.add(round(row["metric"], 4))
    assert len(values) > len(table) // 4
    assert table.meta["base_tokens"] == [text.split() for text in BASES]
    assert table.meta["base_decoder_tokens"] == [["w3"]] * 3


@pytest.mark.parametrize("kind", ["t5", "bart"])
@torch.no_grad()
def test_a_decoder_may_be_given_a_text_of_its_own(kind):
    model = encoder_decoder(kind)
    base, source = (
        {**tokens(1, 4, seed=seed), "decoder_input_ids": tokens(1, 3, seed=seed + 7)["input_ids"]} for seed in (1, 2)
    )
    options = {"metric": DIFFERENCE, "components": ["encoder.block_output", "decoder.block_output"], "layers": [0]}
    table = grid(model, base, source, **options)
    assert table.columns["position"] == (0, 1, 2, 3, 0, 1, 2)
    for row in table.rows():
        module = module_of(model, kind, row["component"], 0)
        logits = swapped(model, module, base, source, row["position"], row["position"])
        assert row["metric"] == pytest.approx(DIFFERENCE(logits[None]).item(), abs=1e-4)
    earlier = grid(model, base, source, at=1, **options)
    assert earlier.columns["effect"][-1] == pytest.approx(0, abs=1e-5)  # what comes later is not seen
    assert earlier.meta["base_value"] == pytest.approx(DIFFERENCE(model(**base).logits[:, 1]).item(), abs=1e-5)


def test_what_an_encoder_decoder_does_not_tell_is_asked_for(tokenizer):
    model = encoder_decoder("t5")
    with pytest.raises(SiteError, match="does not tell whether the positions"):
        grid(model, BASES, SOURCES, tokenizer=tokenizer, components=["encoder.block.0.output"], metric=DIFFERENCE)
    model.config.decoder_start_token_id = model.config.bos_token_id = None
    with pytest.raises(SpecError, match="decoder_input_ids"):
        grid(model, BASES, SOURCES, tokenizer=tokenizer, components=SEQ2SEQ, metric=DIFFERENCE)


def test_layers_that_lack_a_component_are_left_out_of_all():
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 4, "full_attention_interval": 2, "vocab_size": VOCAB, "hidden_size": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 16}
    linear = {"linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 8}
    more = {"linear_value_head_dim": 8, "num_experts": 0, "moe_intermediate_size": 8, "decoder_sparse_step": 5}
    model = Qwen3NextForCausalLM(Qwen3NextConfig(**sizes, **heads, **linear, **more)).eval()
    options = {"components": ["head_output"], "metric": DIFFERENCE, "positions": [-1]}
    table = grid(model, tokens(1, 3), tokens(1, 3, seed=1), **options)
    assert table.columns["layer"] == (1, 3)
    with pytest.raises(SiteError, match="layer 0 head_output is not to be had"):
        grid(model, tokens(1, 3), tokens(1, 3, seed=1), layers=[0], **options)
