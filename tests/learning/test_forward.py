"""A fit that keeps what the frozen model does below the interventions learns what a fit on whole passes learns."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tests.helpers import VOCAB, new_model, padded_tokens
from tests.learning.tasks import batches, examples, face, free_matrix
from torch import nn
from torch.utils.data import DataLoader
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from align_transformers import (
    ActivationCache,
    Edit,
    IntervenableModel,
    Logits,
    Memory,
    Plan,
    PlanError,
    Positions,
    Read,
    RotatedSpaceIntervention,
    Run,
    SigmoidMaskIntervention,
    Site,
    SpecError,
    VanillaIntervention,
    activations,
    attention_tensor,
    bind,
    cross_entropy,
    evaluate,
    execute,
    fit_pca,
    learning,
    one_by_one,
    resolve,
)
from align_transformers.fast import planned, remembered
from align_transformers.learning import BatchForward, CachedForward, FullForward, LogitRequest, fit, precompute
from align_transformers.learning.forward import Reader, repeats

PLAIN = {"schedule": "constant", "warmup": 0, "lr": 0.01}


def blocks_called(model):
    """Return a list that grows by one with every call of the first block's MLP."""
    calls = []
    block = (model.transformer.h if hasattr(model, "transformer") else model.model.layers)[0]
    original = block.mlp.forward
    block.mlp.forward = lambda *args, **kwargs: (calls.append(1), original(*args, **kwargs))[1]
    return calls


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("how", ["by itself", "precomputed", "in files"])
def test_the_same_is_learned_and_lower_blocks_are_not_run_again(family, how, tmp_path):
    learned = []
    for memory in (False, how):
        model = new_model(family)
        made, data = face(model), batches(model=model)
        if memory == "precomputed":
            memory = precompute(made, data)
        elif memory:
            memory = Memory(budget=0, folder=tmp_path) if memory == "in files" else True
        calls = blocks_called(model)
        fit(made, data, epochs=8, memory=memory, **PLAIN)
        learned.append((free_matrix(made).clone(), len(calls)))
    (expected, whole), (found, kept) = learned
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert kept < whole
    if how == "precomputed":
        assert kept <= 5, "trials of the model on a dummy, two whether rows change rows; no example is run again"
    if how == "in files":
        assert list(tmp_path.glob("*.safetensors"))


def test_a_model_without_a_sequence_is_fitted_over_several_epochs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    made = IntervenableModel(
        {"component": "1.output", "intervention": RotatedSpaceIntervention(embed_dim=6)}, model=model
    )
    base, source = torch.randn(2, 8, 4)
    labels = model(source).argmax(-1)
    fitted = fit(made, [{"base": base, "sources": source, "labels": labels}] * 2, epochs=3)
    assert fitted.steps == 6


def test_activations_are_those_of_a_plain_hook():
    model = new_model("llama")
    ids = torch.randint(1, 40, (3, 6))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    seen = []
    with model.model.layers[1].register_forward_hook(lambda _m, _a, output: seen.append(output)), torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    inputs, site = {"input_ids": ids, "attention_mask": mask}, Site("block_output", 1)
    torch.testing.assert_close(activations(model, inputs, site), seen[0][:, -1])
    torch.testing.assert_close(activations(model, [inputs], site, -4), seen[0][:, -4])
    torch.testing.assert_close(activations(model, inputs, site, "all"), seen[0][mask.bool()])
    fitted = fit_pca(model, inputs, site, 3, positions="all", standardise=False)
    rows = seen[0][mask.bool()]
    _, _, expected = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    torch.testing.assert_close(fitted.rotation @ fitted.rotation.T, expected[:3].T @ expected[:3], atol=1e-4, rtol=0)


def test_blocks_that_return_more_than_the_residual_stream_are_run_in_full():
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "max_position_embeddings": 16}
    model = GPTNeoForCausalLM(GPTNeoConfig(**sizes, attention_types=[[["global"], 3]])).eval()
    data, memory, learned = batches(model=model), Memory(), []
    for kept in (False, memory):
        made = face(model)
        fit(made, data, epochs=3, memory=kept, **PLAIN)
        learned.append(free_matrix(made).clone())
    assert torch.equal(*learned)
    assert not memory.keeps_states
    assert memory.hits > 0, "source activations are kept all the same"


def test_a_memory_is_of_what_one_model_computes():
    memory, model, copied = Memory(), new_model("llama"), new_model("llama")
    data = batches(model=model)
    fit(face(model), data, epochs=2, memory=memory, **PLAIN)
    misses = memory.misses
    fit(face(copied.train()), data, epochs=2, memory=memory, **PLAIN)  # another object with the same weights
    assert memory.misses == misses
    copied.model.layers[0].mlp.down_proj.weight.data[0, 0] += 1  # what no version counter tells
    for use in (
        lambda: fit(face(copied), data, epochs=2, memory=memory, **PLAIN),
        lambda: evaluate(face(copied), data, memory=memory),
        lambda: precompute(face(copied), data, memory=memory),
    ):
        with pytest.raises(PlanError, match="other weights or settings"):
            use()


def test_a_run_that_is_read_below_its_edit_starts_where_it_is_read():
    model = new_model("llama")
    resolve(model)
    base, source, third = ({"input_ids": torch.randint(1, VOCAB, (3, 6))} for _ in range(3))
    low, high, at = Site("block_output", 0), Site("block_output", 1), Positions(((2,),) * 3)
    chain = Run("source", "source", (Edit("upper", high, "swap", at, None, Read("third", high, at)),))
    last = Run("base", "base", (
        Edit("lower", low, "swap", at, None, Read("source", low, at)),
        Edit("higher", high, "swap", at, None, Read("source", high, at)),
    ))  # fmt: skip
    plan = Plan((Run("third", "third"), chain, last), ("base",), Logits())
    inputs, swap, memory = {"base": base, "source": source, "third": third}, {"swap": VanillaIntervention()}, Memory()
    expected = execute(bind(model, plan, inputs, swap)).outputs["base"]
    for _ in range(2):
        found = remembered(model, plan, inputs, {}, memory)
        bound = bind(model, found.plan, inputs, swap, found.constants)
        outcome = execute(bound, partial(planned, known=found.known))
        torch.testing.assert_close(outcome.outputs["base"], expected, rtol=0, atol=1e-5)
    assert set(found.known) == {"base", "source"}
    assert [one.way for one in outcome.passes] == ["partial", "packed"]


def test_older_names_are_the_same_things():
    assert learning.Asked is LogitRequest
    assert learning.Forward is BatchForward
    assert learning.Replaying is CachedForward


@pytest.mark.parametrize("forward", [FullForward, CachedForward])
def test_a_forward_gives_the_logits_that_are_asked_for(forward):
    """Against hooks: the source's activation at the last token is put into the base's."""
    model = new_model("llama")
    made, (batch,) = IntervenableModel({"layer": 1, "component": "block_output"}, model), batches((3,), model=model)
    block, seen = model.model.layers[1], []
    with torch.no_grad():
        with block.register_forward_hook(lambda _m, _a, output: seen.append(output)):
            model(input_ids=batch["source_input_ids"])
        last = lambda _m, _a, output: torch.cat([output[:, :-1], seen[0][:, -1:]], 1)  # noqa: E731
        with block.register_forward_hook(last):
            expected = model(input_ids=batch["input_ids"]).logits
        reader = Reader(made, forward=forward(made))
        for where, wanted in (("last", expected[:, -1]), ("all", expected)):
            (found,) = reader.read(batch, where)
            torch.testing.assert_close(found.logits, wanted, rtol=0, atol=1e-5)


def test_a_request_is_of_a_call_that_the_face_takes():
    """A user's own forward may hand the call on: its locations are those of the batch's columns."""
    made, (batch,), found = face(), batches((3,)), []
    with torch.no_grad():
        Reader(made, forward=lambda request: found.append(request) or torch.zeros(3, VOCAB)).read(batch, "last")
        call = found[0].call
        _, output = made(call.base, call.sources, call.unit_locations, subspaces=call.subspaces)
        (expected,) = Reader(made).read(batch, "all")
    assert torch.equal(output.logits, expected.logits)
    assert (found[0].where, found[0].columns.column.tolist()) == ("last", [4, 4, 4])


def test_a_planner_that_is_named_runs_the_batches(monkeypatch):
    """A fit of a face with a planner of its own asks that planner, and comes out as one with a cache does."""
    model, asked = new_model("llama"), []

    def counted(bound):
        asked.append(1)
        return one_by_one(bound)

    learned = []
    for planner in (None, counted):
        torch.manual_seed(0)
        made = face(model)
        made.planner = planner
        fit(made, batches(model=model), epochs=2, **PLAIN)
        learned.append(free_matrix(made).clone())
    assert len(asked) == 2 * len(batches(model=model))
    torch.testing.assert_close(*learned, rtol=0, atol=1e-5)


@pytest.mark.parametrize("planner", [one_by_one, planned])
def test_activations_are_the_same_with_any_planner(planner):
    model, site = new_model("llama"), Site("mlp_output", 1)
    inputs = {"input_ids": torch.randint(1, VOCAB, (3, 6))}
    assert torch.equal(activations(model, inputs, site, planner=planner), activations(model, inputs, site))


class Fresh:
    """A loader of new examples in every pass."""

    def __len__(self):
        return 3

    def __iter__(self):
        for _ in range(3):
            seed = int(torch.randint(10**6, ()))
            yield batches((2,), seed=seed)[0]


def shuffled(repeat):
    """Return a loader with a generator of its own; of 6 examples, or of 3 that are there twice."""
    data = examples(batches((3,))) * 2 if repeat else examples(batches((6,)))
    return DataLoader(data, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(3))


def in_one_pass(loader):
    return iter(list(loader))


@pytest.mark.parametrize(
    ("loader", "passes", "wanted"),
    [
        (lambda: batches((2, 2)), 2, True),
        (lambda: batches((2, 2)), 1, False),
        (lambda: batches((2, 2)) * 2, 1, True),
        (
            lambda: [{**one, "source_input_ids": batches((2,))[0]["input_ids"]} for one in batches((2, 2), seed=1)],
            1,
            True,
        ),
        (Fresh, 2, False),
        (lambda: shuffled(repeat=True), 1, True),
        (lambda: shuffled(repeat=False), 1, False),
        (lambda: shuffled(repeat=False), 2, True),
        (lambda: in_one_pass(batches((2, 2)) * 2), 2, False),
    ],
)
def test_whether_examples_repeat_is_looked_at_and_nothing_is_drawn_for_it(loader, passes, wanted):
    made, given = face(), loader()
    before, own = torch.get_rng_state(), getattr(given, "generator", None)
    state = None if own is None else own.get_state()
    assert repeats(Reader(made), given, passes) is wanted
    assert torch.equal(torch.get_rng_state(), before)
    assert own is None or torch.equal(own.get_state(), state)
    assert len(list(given)) > 0, "a loader that can be gone through once still can"


@pytest.mark.parametrize("repeat", [True, False])
def test_a_fit_with_an_automatic_memory_has_one_if_examples_repeat(repeat):
    """The lowest block, which nothing edits, is run on each base and source once; else in every epoch."""
    model, rows = new_model("llama"), []
    made, loader = face(model), batches((3, 3), model=model) if repeat else Fresh()
    evaluate(made, batches((2,), seed=9, model=model), memory=True)  # the library tries its ways once
    original = model.model.layers[0].mlp.forward
    model.model.layers[0].mlp.forward = lambda x: (rows.append(len(x)), original(x))[1]
    fit(made, loader, epochs=3, memory="auto", **PLAIN)
    assert sum(rows) == (2 * 6 if repeat else 3 * 3 * 4)


@pytest.mark.parametrize("memory", [True, "auto"])
def test_an_evaluation_with_a_memory_gives_the_same_and_runs_less(memory):
    model, rows = new_model("llama"), []
    made, data = face(model, SigmoidMaskIntervention), batches((3, 2), model=model) * 2
    plain = evaluate(made, data, metrics=cross_entropy)
    evaluate(made, batches((2,), seed=9, model=model), memory=True)  # the library tries its ways once
    original = model.model.layers[0].mlp.forward
    model.model.layers[0].mlp.forward = lambda x: (rows.append(len(x)), original(x))[1]
    kept = evaluate(made, data, metrics=cross_entropy, memory=memory)
    for mask in ("soft", "hard"):
        torch.testing.assert_close(
            kept.numbers[mask]["cross_entropy"], plain.numbers[mask]["cross_entropy"], rtol=0, atol=1e-5
        )
    assert sum(rows) == 2 * 5, "each base and each source once, for both masks and both times that they come"
    filled = ActivationCache()
    evaluate(made, data, memory=filled)
    assert filled.hits > 0


def test_a_memory_is_nothing_else():
    with pytest.raises(SpecError, match="memory is an ActivationCache"):
        evaluate(face(), batches((2,)), memory="always")
    with pytest.raises(SpecError, match="memory is an ActivationCache"):
        fit(face(), batches((2,)), memory="always")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_attention_tensors_are_those_of_the_eager_model(family):
    model = new_model(family)
    inputs = padded_tokens([3, 5], "right")
    seen = attention_tensor(model, inputs, 1)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        wanted = model(**inputs, output_attentions=True).attentions[1]
    torch.testing.assert_close(seen, wanted, rtol=0, atol=1e-5)
    scores = attention_tensor(model, inputs, 1, component="attention_score")
    torch.testing.assert_close(scores.softmax(-1), wanted, rtol=0, atol=1e-5)
    with pytest.raises(SpecError, match="attention_pattern"):
        attention_tensor(model, inputs, 1, component="block_output")
