"""Steering against hooks written by hand in transformers' own `generate`, and against formulas."""

from __future__ import annotations

import itertools
import math
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from tests.fast.families import blocks, shared
from tests.helpers import FAMILIES, HIDDEN, VOCAB, new_model, padded_tokens, tokens
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from align_transformers import (
    AdditionIntervention,
    DifferenceOfMeansIntervention,
    LowRankRotatedSpaceIntervention,
    Metric,
    PositionError,
    SpecError,
    Table,
    VanillaIntervention,
    accuracy,
    at,
    kl_to_clean,
    logit_difference,
    one_by_one,
    steer,
)

LAYER, NEW = 1, 5
UP, DOWN = tokens(6, 4, 1), tokens(6, 4, 2)
METRIC = logit_difference(7, 3)
FITTED = {"positive": UP, "negative": DOWN}


# --- by hand ----------------------------------------------------------------------------------------------------------


@contextmanager
def added(model: Any, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change a block's output by a plain hook."""

    def hook(_module: nn.Module, _given: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handle = blocks(model)[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def states(model: Any, inputs: Any, layer: int) -> Tensor:
    seen: list[Tensor] = []
    with added(model, layer, lambda hidden: seen.append(hidden) or hidden):  # type: ignore[func-returns-value]
        model(**inputs)
    return seen[0]


def unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def mean_difference(model: Any, layer: int = LAYER) -> Tensor:
    return states(model, UP, layer)[:, -1].mean(0) - states(model, DOWN, layer)[:, -1].mean(0)


def norm_of(model: Any, prompts: Sequence[Tensor], layer: int = LAYER) -> float:
    """Return the mean over prompts of the mean norm of all tokens but the first."""
    each = [states(model, {"input_ids": ids[None]}, layer)[0, 1:].norm(dim=-1).mean() for ids in prompts]
    return float(torch.stack(each).mean())


@torch.no_grad()
def continued(model: Any, ids: Tensor, vector: Tensor, chosen: Sequence[int], generated: bool = True) -> list[int]:
    """Return what a model says after a prompt, alone, with a vector added at some of its tokens, and at its own."""

    def change(hidden: Tensor) -> Tensor:
        hidden = hidden.clone()
        if hidden.shape[1] > 1:
            hidden[:, list(chosen)] += vector
        elif generated:
            hidden += vector
        return hidden

    with added(model, LAYER, change):
        text = model.generate(
            input_ids=ids[None], attention_mask=torch.ones_like(ids[None]), max_new_tokens=NEW, do_sample=False
        )
    return text[0, len(ids) :].tolist()


@torch.no_grad()
def last_logits(model: Any, ids: Tensor, vector: Tensor, chosen: Sequence[int], layer: int = LAYER) -> Tensor:
    def change(hidden: Tensor) -> Tensor:
        hidden = hidden.clone()
        hidden[:, list(chosen)] += vector
        return hidden

    with added(model, layer, change):
        return model(input_ids=ids[None]).logits[0, -1]


@torch.no_grad()
def perplexity(model: Any, ids: Tensor, text: Sequence[int]) -> float:
    whole = torch.tensor([*ids.tolist(), *text])[None]
    chances = model(input_ids=whole).logits[0].log_softmax(-1)
    own = [float(chances[len(ids) - 1 + place, token]) for place, token in enumerate(text)]
    return math.exp(-sum(own) / len(own))


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def rows(table: Table, **where: Any) -> list[dict[str, Any]]:
    return list(table.select(where=where).rows())


# --- texts and metrics ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", ["left padded", "right padded", "padded on both sides", "even"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_texts_metrics_and_perplexities_are_those_of_hooks_in_generate(family: str, prompts: str) -> None:
    model = shared(family)
    lengths = (5, 5, 5) if prompts == "even" else (5, 3, 4)
    inputs = padded_tokens(lengths, prompts.partition(" ")[0], seed=4)
    if prompts == "padded on both sides":
        inputs = {name: torch.stack([value[0], value[1].roll(1), value[2]]) for name, value in inputs.items()}
    real = [ids[mask.bool()] for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    table = steer(model, inputs, METRIC, layers=[LAYER], **FITTED, doses=[-1, 0.5, 2], max_new_tokens=NEW)
    vector, norm = unit(mean_difference(model)), norm_of(model, real)
    assert table.meta["directions"][0]["norm"] == pytest.approx(norm, rel=1e-5)
    assert table.meta["directions"][0]["length"] == pytest.approx(float(mean_difference(model).norm()) / norm, rel=1e-4)
    torch.testing.assert_close(torch.tensor(table.meta["directions"][0]["direction"]), vector, rtol=0, atol=1e-5)
    assert table.meta["doses"] == [-1.0, 0.0, 0.5, 2.0]
    assert len(table) == 4 * 3
    for row in table.rows():
        ids, dose = real[row["prompt"]], row["dose"]
        chosen = range(1, len(ids))
        text = continued(model, ids, dose * norm * vector, chosen)
        assert numbers(row["text"]) == text
        logits = last_logits(model, ids, dose * norm * vector, chosen)
        plain = model(input_ids=ids[None]).logits[0, -1]
        assert row["metric"] == pytest.approx(float(logits[7] - logits[3]), abs=1e-4)
        assert row["effect"] == pytest.approx(float((logits - plain)[7] - (logits - plain)[3]), abs=1e-4)
        assert row["perplexity"] == pytest.approx(perplexity(model, ids, text), rel=1e-4)
        assert row["distinct_2"] == len(set(itertools.pairwise(text))) / (NEW - 1)
    assert any(row["text"] != rows(table, dose=0.0, prompt=row["prompt"])[0]["text"] for row in table.rows())


@pytest.mark.parametrize("family", FAMILIES)
def test_dose_0_is_the_unsteered_generation_token_by_token(family: str) -> None:
    model, inputs = shared(family), padded_tokens((5, 3), "left", seed=4)
    table = steer(model, inputs, METRIC, layers=[0, 2], **FITTED, doses=[3], max_new_tokens=12)
    plain = model.generate(**inputs, max_new_tokens=12, do_sample=False)[:, 5:].tolist()
    for layer in (0, 2):
        told = rows(table, layer=layer, dose=0.0)
        assert [numbers(row["text"]) for row in told] == plain
        assert [row["effect"] for row in told] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "chosen", "generated"),
    [
        ({"generated": False}, range(1, 5), False),
        ({"skip_first": False}, range(5), True),
        ({"positions": [-1]}, [4], True),
        ({"positions": [0, 2], "generated": False}, [0, 2], False),
        ({"positions": None}, [], True),
    ],
)
def test_which_tokens_are_steered(options: dict[str, Any], chosen: Sequence[int], generated: bool) -> None:
    model, inputs = shared("llama"), tokens(2, 5, 4)
    metric = METRIC if options.get("positions", "all") is not None else lambda texts: [0.0] * len(texts)
    table = steer(model, inputs, metric, layers=[LAYER], **FITTED, doses=[2], max_new_tokens=NEW, **options)
    vector, norm = unit(mean_difference(model)), norm_of(model, inputs["input_ids"])
    for row in rows(table, dose=2.0):
        ids = inputs["input_ids"][row["prompt"]]
        assert numbers(row["text"]) == continued(model, ids, 2 * norm * vector, chosen, generated)
        if metric is METRIC:
            logits = last_logits(model, ids, 2 * norm * vector, chosen)
            assert row["metric"] == pytest.approx(float(logits[7] - logits[3]), abs=1e-4)


def test_places_may_be_named_by_the_text_and_for_each_prompt() -> None:
    model, inputs = shared("llama"), padded_tokens((5, 3), "left", seed=4)
    options = {"layers": [LAYER], "doses": [1], "max_new_tokens": 0, **FITTED}
    word = str(int(inputs["input_ids"][1, -2]))
    made = Tokenizer(models.WordLevel({str(number): number for number in range(VOCAB)}, unk_token="0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    table = steer(model, inputs, METRIC, positions=[["last"], [at(word)]], tokenizer=tokenizer, **options)
    real = [ids[mask.bool()] for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    vector = norm_of(model, real) * unit(mean_difference(model))
    for row in rows(table, dose=1.0):
        ids = real[row["prompt"]]
        logits = last_logits(model, ids, vector, [len(ids) - (1, 2)[row["prompt"]]])
        assert row["metric"] == pytest.approx(float(logits[7] - logits[3]), abs=1e-4)
    assert "Anchor" in table.meta["positions"]
    with pytest.raises(PositionError, match="prompt 1 has none of the positions"):
        steer(model, padded_tokens((5, 3), "right"), METRIC, positions=[4], **options)


def test_layers_are_steered_one_by_one_and_both_planners_agree() -> None:
    model, inputs = shared("gpt2"), tokens(2, 5, 4)
    options = {"layers": "all", "doses": [1], "max_new_tokens": 0, **FITTED}
    table = steer(model, inputs, METRIC, **options)
    assert set(table.columns["text"]) == {""}
    assert set(table.columns["perplexity"]) == {None}
    for row in rows(table, dose=1.0):
        vector = norm_of(model, inputs["input_ids"], row["layer"]) * unit(mean_difference(model, row["layer"]))
        logits = last_logits(model, inputs["input_ids"][row["prompt"]], vector, range(1, 5), row["layer"])
        assert row["metric"] == pytest.approx(float(logits[7] - logits[3]), abs=1e-4)
    plain = steer(model, inputs, METRIC, **options, planner=one_by_one)
    assert table.columns["metric"] == pytest.approx(plain.columns["metric"], abs=1e-4)
    assert set(plain.meta["passes"]) == {"full"}


def test_an_end_of_text_ends_it_and_counts_in_the_perplexity() -> None:
    model, inputs = new_model("gpt2"), tokens(2, 5, 4)
    free = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[:, 5:].tolist()
    model.generation_config.eos_token_id = model.config.eos_token_id = free[0][2]
    expected = free[0][: free[0].index(free[0][2])]
    table = steer(model, inputs, METRIC, layers=[LAYER], **FITTED, doses=[2], max_new_tokens=NEW)
    row = rows(table, dose=0.0, prompt=0)[0]
    assert numbers(row["text"]) == expected
    ended = [*expected, free[0][2]]
    assert row["perplexity"] == pytest.approx(perplexity(model, inputs["input_ids"][0], ended), rel=1e-4)


def test_a_function_of_the_texts_is_a_metric() -> None:
    model, inputs = shared("gpt2"), tokens(3, 5, 4)
    seen: list[str] = []

    def length(texts: Sequence[str]) -> list[float]:
        seen.extend(texts)
        return [float(sum(numbers(text))) for text in texts]

    table = steer(model, inputs, length, layers=[LAYER], **FITTED, doses=[-2, 2], max_new_tokens=NEW)
    for row in table.rows():
        assert row["metric"] == sum(numbers(row["text"]))
        assert row["effect"] == row["metric"] - rows(table, dose=0.0, prompt=row["prompt"])[0]["metric"]
    assert len(seen) == 9
    assert table.meta["metric"] == "length"
    with pytest.raises(SpecError, match="9 texts, and gave 2 numbers"):
        steer(model, inputs, lambda texts: [1, 2], layers=[LAYER], **FITTED, doses=[-2, 2], max_new_tokens=NEW)


def test_a_metric_may_compare_with_the_unsteered_prompt() -> None:
    model, inputs = shared("gpt2"), tokens(2, 5, 4)
    table = steer(
        model, inputs, kl_to_clean(), layers=[LAYER], **FITTED, doses=[1], max_new_tokens=0, control=True, seed=3
    )
    norm, drawn = (
        norm_of(model, inputs["input_ids"]),
        torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(3)),
    )

    def divergence(ids: Tensor, vector: Tensor) -> float:
        new, old = last_logits(model, ids, norm * vector, range(1, 5)), last_logits(model, ids, 0 * vector, [])
        return abs(float((old.softmax(-1) * (old.log_softmax(-1) - new.log_softmax(-1))).sum()))

    for row in rows(table, dose=1.0):
        ids = inputs["input_ids"][row["prompt"]]
        assert abs(row["effect"]) == pytest.approx(divergence(ids, unit(mean_difference(model))), abs=1e-4)
        assert abs(row["control_effect"]) == pytest.approx(divergence(ids, unit(drawn[row["prompt"]])), abs=1e-4)


# --- directions -------------------------------------------------------------------------------------------------------


def direction(**options: Any) -> tuple[Tensor, dict[str, Any]]:
    """Return the direction that is used, and what is told of it."""
    given = {"layers": [LAYER], "doses": [1.0], "max_new_tokens": 0, **options}
    told = steer(shared("gpt2"), tokens(2, 5, 4), METRIC, **given).meta["directions"][0]
    return torch.tensor(told["direction"]), told


def pairs() -> tuple[Tensor, Tensor]:
    model = shared("gpt2")
    return states(model, UP, LAYER)[:, -1], states(model, DOWN, LAYER)[:, -1]


def test_pca_is_the_first_direction_of_the_differences_towards_the_positive_prompts() -> None:
    up, down = pairs()
    found, _ = direction(direction="pca", **FITTED)
    values, vectors = np.linalg.eigh(((up - down).T @ (up - down)).double().numpy())
    first = torch.tensor(vectors[:, values.argmax()]).float()
    assert float((found @ first).abs()) == pytest.approx(1, abs=1e-5)
    assert float(found @ (up - down).mean(0)) > 0
    back, _ = direction(direction="pca", positive=DOWN, negative=UP)
    torch.testing.assert_close(back, -found, rtol=0, atol=1e-5)


def test_the_probe_is_scikit_learns_logistic_regression() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    up, down = pairs()
    together = torch.cat([down, up]).double()
    scale = (together - together.mean(0)).square().mean().sqrt()
    labels = [0] * len(down) + [1] * len(up)
    # half the squared weights of two classes' difference, at l2 = 1e-3 over 12 examples: C = 2 / (12 * 1e-3)
    oracle = linear.LogisticRegression(C=2 / (len(labels) * 1e-3), tol=1e-10, max_iter=10000)
    oracle.fit((together / scale).numpy(), labels)
    found, _ = direction(direction="probe", **FITTED)
    assert float(found.double() @ unit(torch.tensor(oracle.coef_[0]))) == pytest.approx(1, abs=1e-4)


def test_a_mean_over_all_tokens_but_the_first_may_be_read() -> None:
    model = shared("gpt2")
    found, _ = direction(read_at="all", **FITTED)
    wanted = states(model, UP, LAYER)[:, 1:].mean((0, 1)) - states(model, DOWN, LAYER)[:, 1:].mean((0, 1))
    torch.testing.assert_close(found, unit(wanted), rtol=0, atol=1e-5)


def test_agreement_is_the_mean_cosine_of_the_differences() -> None:
    up, down = pairs()
    differences = (up - down).double()
    cosines = [
        float(torch.nn.functional.cosine_similarity(differences[a], differences[b], dim=0))
        for a, b in itertools.combinations(range(6), 2)
    ]
    _, told = direction(**FITTED)
    assert told["agreement"] == pytest.approx(np.mean(cosines), abs=1e-6)
    assert told["agreement_low"] < told["agreement"] < told["agreement_high"]
    assert told["prompts"] == [6, 6]
    _, unequal = direction(positive=tokens(3, 4, 1), negative=DOWN)
    assert unequal["agreement"] is None
    _, same = direction(positive=tokens(1, 4, 1), negative=tokens(1, 4, 2))
    assert same["agreement"] is None


def test_a_tensor_and_interventions_are_directions() -> None:
    model = shared("gpt2")
    vector = torch.randn(HIDDEN)
    found, told = direction(direction=vector)
    torch.testing.assert_close(found, unit(vector))
    assert told["prompts"] is None
    assert told["length"] == pytest.approx(float(vector.norm()) / told["norm"])
    found, _ = direction(direction={LAYER: -vector})
    torch.testing.assert_close(found, -unit(vector))
    found, _ = direction(direction=AdditionIntervention(source_representation=vector))
    torch.testing.assert_close(found, unit(vector))
    up, down = pairs()
    fitted = DifferenceOfMeansIntervention.fit(torch.cat([up, down]), torch.tensor([1] * 6 + [0] * 6))
    found, _ = direction(direction=fitted)
    torch.testing.assert_close(found, unit(mean_difference(model)), rtol=0, atol=1e-5)


def test_the_direction_of_a_trained_subspace() -> None:
    one = LowRankRotatedSpaceIntervention(embed_dim=HIDDEN, low_rank_dimension=1)
    two = LowRankRotatedSpaceIntervention(embed_dim=HIDDEN, low_rank_dimension=2)
    found, _ = direction(direction=one)
    assert float((found @ one.rotation.detach()[:, 0]).abs()) == pytest.approx(1, abs=1e-5)
    wanted = mean_difference(shared("gpt2"))
    found, _ = direction(direction=one, **FITTED)
    assert float(found @ wanted) > 0
    found, _ = direction(direction=two, **FITTED)
    basis = two.rotation.detach()
    torch.testing.assert_close(found, unit(basis @ (basis.T @ wanted)), rtol=0, atol=1e-5)
    with pytest.raises(SpecError, match="2 dimensions"):
        direction(direction=two)
    with pytest.raises(SpecError, match=r"VanillaIntervention .* has no direction"):
        direction(direction=VanillaIntervention())


# --- the curve --------------------------------------------------------------------------------------------------------


def test_the_curve_is_the_mean_over_prompts_with_its_interval() -> None:
    table = steer(shared("gpt2"), tokens(6, 5, 4), METRIC, layers=[LAYER], **FITTED, doses=[-1, 1], max_new_tokens=NEW)
    for point in table.meta["curve"]:
        told = rows(table, dose=point["dose"])
        effects = [row["effect"] for row in told]
        assert point["effect"] == pytest.approx(np.mean(effects))
        assert point["low"] <= point["effect"] <= point["high"]
        assert point["n"] == 6
        assert point["wrong_way"] == np.mean([effect * point["dose"] < 0 for effect in effects])
        assert point["perplexity"] == pytest.approx(np.exp(np.mean([math.log(row["perplexity"]) for row in told])))
        assert point["distinct_2"] == pytest.approx(np.mean([row["distinct_2"] for row in told]))
    means = [np.mean(np.random.default_rng(n).choice(effects, 6)) for n in range(2000)]
    assert point["low"] == pytest.approx(np.quantile(means, 0.025), abs=0.15 * np.std(effects))
    assert point["high"] == pytest.approx(np.quantile(means, 0.975), abs=0.15 * np.std(effects))


def test_the_share_that_moved_the_wrong_way() -> None:
    """Four times the same prompt, and a metric that is turned round for one of them: small doses move it alone."""
    metrics = [Metric("up", lambda logits: logits[:, 7] - logits[:, 3])] * 3
    metrics.append(Metric("down", lambda logits: logits[:, 3] - logits[:, 7]))
    inputs = {name: value[:1].expand(4, -1) for name, value in tokens(1, 5, 4).items()}
    table = steer(shared("gpt2"), inputs, metrics, layers=[LAYER], **FITTED, doses=[-0.01, 0.01], max_new_tokens=0)
    shares = {point["dose"]: point["wrong_way"] for point in table.meta["curve"]}
    assert shares[0.0] == 0.0
    assert {shares[-0.01], shares[0.01]} <= {0.25, 0.75}
    assert shares[-0.01] == shares[0.01]


def test_a_control_is_random_as_long_and_another_for_each_prompt() -> None:
    model, inputs = shared("gpt2"), tokens(3, 5, 4)
    options = {"layers": [0, LAYER], "doses": [1], "max_new_tokens": 0, "control": True, **FITTED}
    table = steer(model, inputs, METRIC, **options, seed=3)
    again, other = (steer(model, inputs, METRIC, **options, seed=seed) for seed in (3, 4))
    assert table.columns["control_effect"] == again.columns["control_effect"]
    assert table.columns["control_effect"] != other.columns["control_effect"]
    generator = torch.Generator().manual_seed(3)
    drawn = {layer: torch.randn(3, HIDDEN, generator=generator) for layer in (0, LAYER)}
    for row in rows(table, dose=1.0):
        ids, layer = inputs["input_ids"][row["prompt"]], row["layer"]
        vector = norm_of(model, inputs["input_ids"], layer) * unit(drawn[layer][row["prompt"]])
        new, old = (last_logits(model, ids, x * vector, range(1, 5), layer) for x in (1, 0))
        assert row["control_effect"] == pytest.approx(float((new - old)[7] - (new - old)[3]), abs=1e-4)
    assert rows(table, dose=0.0)[0]["control_effect"] == 0.0
    points = [point for point in table.meta["curve"] if point["layer"] == LAYER and point["dose"] == 1]
    told = [row["control_effect"] for row in rows(table, layer=LAYER, dose=1.0)]
    assert points[0]["control_effect"] == pytest.approx(np.mean(told))
    texts = steer(
        model, inputs, lambda found: [float(sum(numbers(one))) for one in found], layers=[LAYER], **FITTED,
        doses=[3], max_new_tokens=NEW, control=True, seed=3,
    )  # fmt: skip
    assert any(texts.columns["control_effect"])


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_samples_are_drawn_with_the_seed_alike_in_all_doses_and_batches() -> None:
    model, inputs = shared("gpt2"), tokens(3, 5, 4)
    options = {"layers": [LAYER], "doses": [1e-6, 1], "max_new_tokens": NEW, "temperature": 1.0, **FITTED}
    torch.manual_seed(1)
    before = torch.get_rng_state()
    table = steer(model, inputs, METRIC, **options, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    alone = steer(model, inputs, METRIC, **options, seed=5, batch_size=1)
    assert table.columns["text"] == alone.columns["text"]
    assert [r["text"] for r in rows(table, dose=0.0)] == [r["text"] for r in rows(table, dose=1e-6)]
    greedy = steer(model, inputs, METRIC, **{**options, "temperature": None})
    other = steer(model, inputs, METRIC, **options, seed=6)
    assert len({table.columns["text"], greedy.columns["text"], other.columns["text"]}) == 3


def test_samples_have_the_chances_of_the_softmax() -> None:
    model = shared("gpt2")
    ids = tokens(1, 3, 4)["input_ids"]
    inputs = {"input_ids": ids.expand(400, -1), "attention_mask": torch.ones(400, 3, dtype=torch.long)}
    table = steer(
        model, inputs, lambda texts: [0.0] * len(texts), layers=[LAYER], direction=torch.ones(HIDDEN), doses=[1],
        max_new_tokens=1, temperature=2.0, seed=0, batch_size=400,
    )  # fmt: skip
    counts = torch.zeros(VOCAB)
    for row in rows(table, dose=0.0):
        counts[numbers(row["text"])[0]] += 1
    chances = (last_logits(model, ids[0], torch.zeros(HIDDEN), []) / 2).softmax(-1)
    expected = chances * 400
    many = expected > 5
    statistic = float(((counts - expected)[many] ** 2 / expected[many]).sum())
    assert statistic < 2.5 * int(many.sum())


# --- what makes no sense ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"positive": None}, "go together"),
        ({"positive": None, "negative": None}, "fitted to prompts"),
        ({"direction": "pca", "positive": tokens(2, 4, 1)}, "2 positive and 6 negative"),
        ({"direction": torch.ones(3)}, r"shape \(32,\).*found \(3,\)"),
        ({"direction": {0: torch.ones(HIDDEN)}}, "none for layer 1"),
        ({"direction": torch.zeros(HIDDEN)}, "no direction"),
        ({"doses": [0.0]}, "not all of them 0"),
        ({"doses": [float("nan"), 1.0]}, "doses are numbers"),
        ({"positions": None}, "positions=None"),
        ({"layers": []}, "no layer is chosen"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"temperature": 1.0}, "give seed"),
        ({"control": True}, "give seed"),
        ({"temperature": 0.0, "seed": 0}, "above 0"),
        ({"batch_size": 0}, "batch_size"),
        ({"metric": [accuracy(1)]}, "1 metrics, but 2 prompts"),
        ({"metric": lambda texts: [], "max_new_tokens": 0}, "needs some"),
        ({"metric": lambda texts: [], "positions": None, "max_new_tokens": 1}, "nothing is steered"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_run(
    wrong: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = new_model("gpt2")
    steer(model, tokens(2, 5, 4), METRIC, layers=[LAYER], **FITTED, doses=[1], max_new_tokens=0)  # finds components

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was run")

    if ("zeros" not in message and wrong.get("direction") is None) or isinstance(wrong.get("direction"), str):
        monkeypatch.setattr(model, "forward", types.MethodType(never, model))
    given = {"prompts": tokens(2, 5, 4), "metric": METRIC, "layers": [LAYER], **FITTED, "doses": [1], **wrong}
    with pytest.raises(SpecError, match=message):
        steer(model, **given)


def test_positions_that_are_not_there_are_refused() -> None:
    with pytest.raises(PositionError, match="prompt 0: position 5 does not exist"):
        steer(shared("gpt2"), tokens(2, 5, 4), METRIC, layers=[LAYER], **FITTED, positions=[5])
    with pytest.raises(SpecError, match="padded on the left"):
        steer(shared("gpt2"), padded_tokens((5, 3), "left"), METRIC, layers=[LAYER], **FITTED, positions=[1])


@torch.no_grad()
def test_an_encoder_decoder_is_steered_in_its_encoder_and_in_its_decoder() -> None:
    model, inputs = shared("t5"), padded_tokens((5, 3), "right", seed=4)
    for component in ("encoder.block_output", "decoder.block_output"):
        table = steer(
            model, inputs, METRIC, layers=[LAYER], component=component, direction=torch.randn(HIDDEN),
            doses=[0.5], max_new_tokens=NEW,
        )  # fmt: skip
        plain = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[:, 1:].tolist()
        for row in rows(table, dose=0.0):
            assert numbers(row["text"]) == plain[row["prompt"]]
            given = {name: value[row["prompt"]][None] for name, value in inputs.items()}
            decoder = torch.tensor([[0, *plain[row["prompt"]]]])
            chances = model(**given, decoder_input_ids=decoder).logits[0].log_softmax(-1)
            own = chances[:-1].gather(1, decoder[0, 1:, None])
            assert row["perplexity"] == pytest.approx(float(own.mean().neg().exp()), rel=1e-3)
        assert any(row["effect"] for row in rows(table, dose=0.5))


def test_the_model_is_left_as_it_is() -> None:
    model = new_model("gpt2").train()
    settings = model.generation_config.to_dict()
    steer(model, tokens(2, 5, 4), METRIC, layers=[LAYER], **FITTED, doses=[1], max_new_tokens=2)
    assert model.training
    assert model.generation_config.to_dict() == settings
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_progress_counts_continuations() -> None:
    seen: list[tuple[int, int]] = []
    steer(
        shared("gpt2"), tokens(4, 5, 4), METRIC, layers=[0, 1], **FITTED, doses=[-1, 1], max_new_tokens=2,
        batch_size=6, progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen[-1] == (20, 20)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len(seen) == 4  # 2 prompts of 3 doses in a batch at the first layer, 3 of 2 at the second
