"""Batches of counterfactual pairs: against hooks written by hand, one example at a time and nothing padded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import new_model
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from align_transformers import (
    CausalModel,
    CounterfactualDataset,
    IntervenableModel,
    LowRankRotatedSpaceIntervention,
    MLPConfig,
    PositionError,
    RotatedSpaceIntervention,
    SpecError,
    UnknownNameError,
    at,
    create_mlp_classifier,
    evaluate,
    first_token,
    fit,
    last_token,
)
from align_transformers.causal.rendering import rendered

SIGNS = "?0123456789+= ab"
SPAN = range(5, 14)  # of one and two digits


def tokenizer(side: str = "right") -> Any:
    """A token a character."""
    words = Tokenizer(models.WordLevel({sign: number for number, sign in enumerate(SIGNS)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=words, padding_side=side, pad_token="?")


def adder() -> CausalModel:
    values = {"a": SPAN, "b": SPAN, "c": SPAN, "x": range(27), "digit": range(10)}
    functions = {"x": lambda a, b: a + b, "digit": lambda x, c: (x + c) % 10}
    return CausalModel(list(values), values, {"x": ["a", "b"], "digit": ["x", "c"]}, functions)


def pairs(count: int = 12, seed: int = 0, **options: Any) -> CounterfactualDataset:
    return CounterfactualDataset.sample(
        adder(), count, **{"variables": ["x", "c", {"x", "c"}], "seed": seed, **options}
    )


TEXT = "{a}+{b}+{c}="
TEXTS: dict[str, Any] = {"template": TEXT, "positions": {"x": last_token("{b}"), "c": last_token("{c}")}}


def ids(setting: dict[str, Any]) -> Tensor:
    text = f"{setting['a']}+{setting['b']}+{setting['c']}="
    return torch.tensor([[SIGNS.index(sign) for sign in text]])


def place(setting: dict[str, Any], name: str) -> int:
    """Where the last digit of `b` (which carries x) or of `c` stands."""
    until = f"{setting['a']}+{setting['b']}" if name == "x" else f"{setting['a']}+{setting['b']}+{setting['c']}"
    return len(until) - 1


@contextmanager
def hooked(module: nn.Module, hook: Any) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    yield
    handle.remove()


@torch.no_grad()
def by_hand(model: nn.Module, one: dict[str, Any], blocks: dict[str, nn.Module]) -> Tensor:
    """Return the last logits of a pair, each variable swapped at its place in its block."""
    taken = {}
    for name, source in one["sources"].items():
        kept: list[Tensor] = []
        with hooked(blocks[name], lambda _m, _i, out, kept=kept: kept.append(out)):
            model(input_ids=ids(source))
        taken[name] = kept[0][0, place(source, name)]

    def swap(name: str) -> Any:
        def hook(_m: Any, _i: Any, out: Tensor) -> Tensor:
            new = out.clone()
            if name in taken:
                new[0, place(one["base"], name)] = taken[name]
            return new

        return hook

    with hooked(blocks["x"], swap("x")), hooked(blocks["c"], swap("c")):
        return model(input_ids=ids(one["base"])).logits[0, -1]


def log_probability(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]


def gpt2() -> nn.Module:
    return new_model("gpt2")


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_of_unequal_lengths_are_as_hooks_one_by_one(side: str) -> None:
    model, data = gpt2(), pairs()
    assert len({len(str(one["base"])) for one in data}) > 1
    faces = IntervenableModel(
        [{"layer": 1, "component": "mlp_output"}, {"layer": 0, "component": "mlp_output"}], model
    )  # of x, and of c
    loader = data.batches(5, tokenizer=tokenizer(side), interventions=["x", "c"], **TEXTS)
    scores = evaluate(faces, loader, metrics={"log": log_probability})
    blocks = {"x": model.transformer.h[1].mlp, "c": model.transformer.h[0].mlp}
    labels = [SIGNS.index(str(one["label"])) for one in data]
    expected = [by_hand(model, one, blocks).log_softmax(-1)[label] for one, label in zip(data, labels, strict=True)]
    assert torch.allclose(scores.numbers["soft"]["log"], torch.stack(expected), atol=1e-5)
    plain = [log_softmax(model, one["base"])[label] for one, label in zip(data, labels, strict=True)]
    assert (torch.stack(plain) - torch.stack(expected)).abs().min() > 1e-4  # each swap shows
    assert scores.changed.all()
    solved = [
        all(log_softmax(model, one).argmax() == SIGNS.index(str(sum(one.values()) % 10)) for one in inputs)
        for inputs in ([pair["base"], *pair["sources"].values()] for pair in data)
    ]
    assert scores.solved.tolist() == solved


@torch.no_grad()
def log_softmax(model: nn.Module, setting: dict[str, Any]) -> Tensor:
    return model(input_ids=ids(setting)).logits[0, -1].log_softmax(-1)


def test_solved_pairs_are_those_that_the_network_answers() -> None:
    """A network that always says 7."""
    model = gpt2()
    model.lm_head = nn.Linear(model.config.n_embd, model.config.vocab_size)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.copy_(nn.functional.one_hot(torch.tensor(SIGNS.index("7")), model.config.vocab_size))
    data = pairs(60, variables="x")
    face = IntervenableModel({"layer": 1, "component": "mlp_output"}, model)
    loader = data.batches(16, template=TEXT, tokenizer=tokenizer(), positions=last_token("{b}"))
    scores = evaluate(face, loader)
    seven = [sum(one["base"].values()) % 10 == 7 == sum(one["sources"]["x"].values()) % 10 for one in data]
    assert scores.solved.tolist() == seven
    assert scores["iia"] == pytest.approx((data.labels == 7).mean())


def test_columns_are_those_of_a_batch_made_by_hand() -> None:
    one = {"a": 7, "b": 11, "c": 5}
    two = {"a": 10, "b": 7, "c": 12}
    data = CounterfactualDataset.of(adder(), [one, two], [two, one], ["x", {"c", "x"}], trivial=True)
    loader = data.batches(2, tokenizer=tokenizer("left"), **TEXTS)
    (batch,) = list(loader)
    pad = SIGNS.index("?")
    first, second = ([SIGNS.index(sign) for sign in text] for text in ("7+11+5=", "10+7+12="))
    expected = {
        "input_ids": [[pad, *first], second], "attention_mask": [[0] + [1] * 7, [1] * 8],
        # the intervention of c: not interchanged in the first pair, whose source is its base
        "source_0_input_ids": [[*first], [*first]],
        "source_1_input_ids": [second, [pad, *first]], "source_1_attention_mask": [[1] * 8, [0] + [1] * 7],
        "source_0->base.0.pos": [[5], [5]], "source_0->base.1.pos": [[6], [6]],
        "source_1->base.0.pos": [[3], [4]], "source_1->base.1.pos": [[4], [3]],
        "labels": [SIGNS.index("2"), SIGNS.index("3")],  # 17 + 5, and 18 + 5
        "base_labels": [SIGNS.index("3"), SIGNS.index("9")],
        "source_labels": [[SIGNS.index("3"), SIGNS.index("9")], [SIGNS.index("3"), SIGNS.index("3")]],
    }  # fmt: skip
    found = {name: batch[name].tolist() for name in expected}
    assert found == expected
    assert set(batch) - set(expected) == {"source_0_attention_mask"}


def test_fields_of_a_template_are_found_where_it_has_them() -> None:
    same = {"a": 11, "b": 11, "c": 11}
    data = CounterfactualDataset.of(adder(), [same], [{**same, "a": 5}], "x")
    rules: list[tuple[Any, list[int], list[int]]] = [
        (at("{b}"), [2, 3], [3, 4]),
        (first_token("{c}"), [5], [6]),
        ([at("{a}", occurrence=1), -1][1], [7], [8]),
        ([last_token("{b}"), "last"], [3, 7], [4, 8]),
    ]
    for rule, source, base in rules:
        (batch,) = list(data.batches(1, template=TEXT, tokenizer=tokenizer(), positions=rule))
        assert batch["source_0->base.0.pos"].tolist() == [source]
        assert batch["source_0->base.1.pos"].tolist() == [base]
    twice = rendered("{a} {b} {a}", {"a": 1, "b": 1})
    assert twice.meant(at("{a}", occurrence=2)).text == (4, 5)
    assert twice.meant(at("{a}", occurrence=-1)).text == (4, 5)
    assert twice.meant(at("{a}")).text == "{a}"  # which one has to be said
    assert twice.meant(at("1 1")).text == "1 1"


def mlp() -> nn.Module:
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = create_mlp_classifier(MLPConfig(h_dim=6, n_layer=2, num_classes=3))[2]
    torch.set_rng_state(state)
    return model


def triple() -> CausalModel:
    values = {**dict.fromkeys("pq", range(3)), "next": range(3), "both": ["no", "yes", "perhaps"]}
    functions = {
        "next": lambda p: (p + 1) % 3,
        "both": lambda following, q: ["no", "yes", "perhaps"][(following + q) % 3],
    }
    return CausalModel(list(values), values, {"next": ["p"], "both": ["next", "q"]}, functions)


def one_hot(setting: dict[str, Any]) -> list[float]:
    return [float(setting[name] == number) for name in "pq" for number in range(3)]


def test_vectors_are_as_hooks_one_by_one() -> None:
    model = mlp()
    data = CounterfactualDataset.sample(triple(), 9, variables=["next", "q"], seed=0)
    turn = LowRankRotatedSpaceIntervention(embed_dim=6, low_rank_dimension=4, subspace_partition=[[0, 2], [2, 4]])
    config = {"layer": 0, "component": "block_output", "intervention": turn}
    face = IntervenableModel(config, model)
    loader = data.batches(4, encode=one_hot, subspaces={"next": 0, "q": 1})
    scores = evaluate(face, loader, metrics={"log": log_probability})
    basis = turn.rotation.detach()
    rows = []
    for one in data:
        ((name, source),) = one["sources"].items()
        part = basis[:, :2] if name == "next" else basis[:, 2:]
        kept: list[Tensor] = []
        with torch.no_grad(), hooked(model.h[0], lambda _m, _i, out, kept=kept: kept.append(out)):
            model(torch.tensor([[one_hot(source)]]))

        def swap(_m: Any, _i: Any, out: Tensor, part: Tensor = part, kept: list[Tensor] = kept) -> Tensor:
            return out + (kept[0] - out) @ part @ part.T

        with torch.no_grad(), hooked(model.h[0], swap):
            logits = model(torch.tensor([[one_hot(one["base"])]])).logits.reshape(-1)
        rows.append(logits.log_softmax(-1)[["no", "yes", "perhaps"].index(one["label"])])
    assert torch.allclose(scores.numbers["soft"]["log"], torch.stack(rows), atol=1e-5)


def test_a_fit_learns_from_them() -> None:
    """One rotation with a part for each of two variables, over mixed pairs, in an MLP that carries them in full."""
    data = CounterfactualDataset.sample(triple(), 60, variables=["next", "q"], seed=1)
    model = mlp()
    with torch.no_grad():  # the first block copies its inputs, and the rest is not asked
        model.h[0].ff1.weight.copy_(torch.eye(6))
        model.h[0].ff1.bias.zero_()
    turn = RotatedSpaceIntervention(embed_dim=6, subspace_partition=[[0, 3], [3, 6]])
    config = {"layer": 0, "component": "block_output", "intervention": turn}
    face = IntervenableModel(config, model)
    loader = data.batches(20, encode=one_hot, subspaces={"next": 0, "q": 1}, seed=0)
    before = evaluate(face, loader, metrics={"log": log_probability})["log"]
    assert fit(face, loader, epochs=6, lr=0.05).steps == 18  # from the second epoch on out of a memory
    assert evaluate(face, loader, metrics={"log": log_probability})["log"] > before


def test_a_killed_fit_goes_on_in_the_same_order(tmp_path: Path) -> None:
    data = CounterfactualDataset.sample(triple(), 40, variables="next", seed=1)

    def killed(row: Any, total: int) -> None:
        if row["step"] == 6:  # in the second epoch
            raise KeyboardInterrupt

    def fitted(**options: Any) -> Tensor:
        torch.manual_seed(0)
        turn = LowRankRotatedSpaceIntervention(embed_dim=6, low_rank_dimension=2)
        face = IntervenableModel({"layer": 0, "component": "block_output", "intervention": turn}, mlp())
        fit(face, data.batches(10, encode=one_hot, seed=3), epochs=3, lr=0.01, **options)
        return turn.rotation.detach()

    with pytest.raises(KeyboardInterrupt):
        fitted(checkpoints=tmp_path, checkpoint_every=2, progress=killed)
    assert torch.equal(fitted(checkpoints=tmp_path, checkpoint_every=2, resume=True), fitted())


def test_a_loader_is_gone_through_again_and_again() -> None:
    data = pairs(10)
    options: dict[str, Any] = {"tokenizer": tokenizer(), **TEXTS}
    still, moving, same = (data.batches(4, seed=seed, **options) for seed in (None, 3, 3))

    def seen(loader: Any) -> list[Any]:
        return [
            row for batch in loader for row in zip(batch["labels"].tolist(), batch["base_labels"].tolist(), strict=True)
        ]

    state = torch.get_rng_state()
    assert len(still) == 3
    in_order = [tuple(SIGNS.index(str(one[name])) for name in ("label", "base_label")) for one in data]
    assert seen(still) == seen(still) == in_order
    first, second = seen(moving), seen(moving)
    assert first != second
    assert sorted(first) == sorted(second) == sorted(in_order)
    assert seen(same) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_each_input_is_encoded_once() -> None:
    asked: list[tuple[int, ...]] = []

    def encode(setting: dict[str, Any]) -> list[float]:
        asked.append(tuple(setting.values()))
        return one_hot(setting)

    data = CounterfactualDataset.sample(triple(), 200, variables="next", seed=2)
    loader = data.batches(7, encode=encode)
    for _ in range(2):
        assert sum(len(batch["labels"]) for batch in loader) == 200
    assert len(asked) == len(set(asked)) == 9


def test_sequences_are_padded_and_masked() -> None:
    def steps(setting: dict[str, Any]) -> np.ndarray[Any, Any]:
        return np.arange(2.0 * (setting["p"] + 1)).reshape(-1, 2)

    data = CounterfactualDataset.of(
        triple(), [{"p": 0, "q": 0}, {"p": 1, "q": 0}], [{"p": 2, "q": 1}, {"p": 2, "q": 1}], "q", trivial=True
    )
    (batch,) = list(data.batches(2, encode=steps, positions=-1, unit="t"))
    assert batch["inputs_embeds"].tolist() == [[[0, 1], [0, 0]], [[0, 1], [2, 3]]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert batch["source_0->base.1.t"].tolist() == [[0], [1]]
    assert batch["source_0->base.0.t"].tolist() == [[2], [2]]
    tokens = data.batches(2, encode=lambda one: [one["p"], 2, 1])
    assert next(iter(tokens))["input_ids"].tolist() == [[0, 2, 1], [1, 2, 1]]
    named = data.batches(2, encode=lambda one: {"x": [0.5, one["p"]]}, label=lambda value: len(value))
    first = next(iter(named))
    assert [first["x"].tolist(), first["labels"].tolist()] == [[[0.5, 0], [0.5, 1]], [7, 2]]  # perhaps; no


def test_a_mask_that_the_model_does_not_take_is_refused() -> None:
    """A GRU would read what stands in the place of padding."""
    from align_transformers import GRUConfig, create_gru_classifier

    model = create_gru_classifier(GRUConfig(h_dim=2))[2]
    face = IntervenableModel({"component": "gru.cells[0].output", "unit": "t"}, model)
    bases, sources = [{"p": 0, "q": 0}, {"p": 1, "q": 0}], [{"p": 2, "q": 1}] * 2
    data = CounterfactualDataset.of(triple(), bases, sources, "q", trivial=True)
    options: dict[str, Any] = {
        "encode": lambda one: np.ones((one["p"] + 1, 2)), "positions": -1, "unit": "t", "label": lambda value: 0
    }  # fmt: skip
    with pytest.raises(SpecError, match="attention_mask"):
        evaluate(face, data.batches(2, **options))
    evaluate(face, data.batches(1, **options))  # nothing is padded, though base and source differ in length


def test_a_variable_may_be_carried_by_two_interventions() -> None:
    data = pairs(4, variables=["x", "c"])
    loader = data.batches(4, interventions=["x", "c", "x"], template=TEXT, tokenizer=tokenizer(), positions=-1)
    batch = next(iter(loader))
    assert torch.equal(batch["source_0_input_ids"], batch["source_2_input_ids"])
    assert batch["source_labels"].shape == (4, 3)


WORDS: dict[str, Any] = {"template": TEXT, "tokenizer": tokenizer()}
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "nothing": ({}, SpecError, "or else vectors by encode="),
    "no tokenizer": ({"template": TEXT}, SpecError, "or else vectors by encode="),
    "both": ({**WORDS, "encode": one_hot}, SpecError, "or else vectors by encode="),
    "a batch of none": ({**WORDS, "batch_size": 0}, SpecError, "batches of 0"),
    "an unknown field": ({**WORDS, "template": "{a}+{d}"}, UnknownNameError, "template has the field 'd'"),
    "an open brace": ({**WORDS, "template": "{a"}, SpecError, "template='{a'"),
    "a wrong format": ({**WORDS, "template": "{a:q}"}, SpecError, "Unknown format code"),
    "no text": ({**WORDS, "template": lambda one: 3}, SpecError, "it gave 3"),
    "an empty text": ({**WORDS, "template": lambda one: ""}, SpecError, "has no token"),
    "a label of two tokens": ({**WORDS, "label": " {label}"}, SpecError, "is not one token but 2"),
    "an unknown field of a label": ({**WORDS, "label": "{a}"}, UnknownNameError, "label has the field 'a'"),
    "a label of nothing": ({**WORDS, "label": lambda value: None}, SpecError, "found None"),
    "a place that is not there": ({**WORDS, "positions": 9}, PositionError, "position 9 does not exist"),
    "a text that is not there": ({**WORDS, "positions": at("Spain")}, PositionError, "'Spain' is not in"),
    "no place": ({**WORDS, "positions": []}, SpecError, "no place is named"),
    "places of some": ({**WORDS, "positions": {"x": -1}}, SpecError, "positions tells nothing of c"),
    "places of others": ({**WORDS, "positions": {"x": -1, "c": -1, "d": -1}}, UnknownNameError, "'d'"),
    "tokens that are not as many": ({**WORDS, "positions": at("{b}")}, SpecError, "name one token of each"),
    "an unknown intervention": ({**WORDS, "interventions": ["x", "y"]}, UnknownNameError, "interventions tells of 'y'"),
    "a variable that nothing carries": ({**WORDS, "interventions": ["x"]}, SpecError, "nothing of c"),
    "several sources": ({**WORDS, "subspaces": {"x": 0, "c": 1}}, SpecError, "variables have several"),
    "both kinds": ({**WORDS, "subspaces": {"x": 0, "c": 1}, "interventions": ["x"]}, SpecError, "leave out interven"),
    "no numbers": ({"encode": lambda one: "a"}, SpecError, "no numbers"),
    "tokens in a table": ({"encode": lambda one: [[1, 2]]}, SpecError, "tokens are"),
    "vectors in a cube": ({"encode": lambda one: np.ones((2, 2, 2))}, SpecError, "of a sequence"),
    "vectors of two sizes": ({"encode": lambda one: np.ones(one["a"])}, SpecError, "the same kind is needed"),
    "a seed below 0": ({**WORDS, "seed": -1}, SpecError, "seed=-1"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_makes_no_sense_is_refused_at_once(what: str) -> None:
    changed, kind, message = WRONG[what]
    with pytest.raises(kind, match=re.escape(message)):
        pairs(40).batches(**{"batch_size": 8, **changed})


def test_words_have_a_leading_space_and_numbers_none() -> None:
    words = CausalModel(["p", "word"], {"p": range(2)}, {"word": ["p"]}, {"word": lambda p: "ab"[p]})
    data = CounterfactualDataset.pairs(words, [{"p": 0}, {"p": 1}], "p")
    options: dict[str, Any] = {"template": "{p}", "tokenizer": tokenizer()}
    with pytest.raises(SpecError, match=r"' b' is not one token but 2.*without the leading space"):
        data.batches(2, **options)
    for label in ("{label}", "{word}", lambda value: value, lambda value: SIGNS.index(value)):
        (batch,) = list(data.batches(2, label=label, **options))
        assert batch["labels"].tolist() == [SIGNS.index("b"), SIGNS.index("a")]
        assert batch["base_labels"].tolist() == [SIGNS.index("a"), SIGNS.index("b")]


def test_a_class_that_is_not_known_is_asked_for() -> None:
    model = CausalModel(["p", "word"], {"p": range(3)}, {"word": ["p"]}, {"word": lambda p: "abc"[p]})
    data = CounterfactualDataset.sample(model, 5, variables="p", seed=0)
    with pytest.raises(SpecError, match="give label=, a function"):
        data.batches(5, encode=lambda one: [float(one["p"])])
