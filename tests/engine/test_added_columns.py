"""Positions count the tokens of the input, also where a model adds columns to them. The oracles are hooks by hand."""

from __future__ import annotations

import pytest
import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from tests.helpers import hooked, new_model, tokens
from torch import nn

from align_transformers import (
    AdditionIntervention,
    CollectIntervention,
    Edit,
    FunctionIntervention,
    IntervenableModel,
    Plan,
    PositionError,
    Positions,
    Run,
    Site,
    bind,
    planners,
)
from align_transformers.plan import Logits

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # peft's
ADDED = 3
VECTOR = 3 * torch.randn(32, generator=torch.Generator().manual_seed(5))


class Memory(nn.Module):
    """A user's model that puts learned columns somewhere among the embeddings of the tokens."""

    def __init__(self, inside, where):
        super().__init__()
        self.inside, self.where = inside, where
        self.memory = nn.Parameter(torch.randn(ADDED, 32, generator=torch.Generator().manual_seed(1)))

    def forward(self, input_ids, attention_mask=None):
        embedded = self.inside.get_input_embeddings()(input_ids)
        memory = self.memory.expand(len(input_ids), -1, -1)
        parts = [embedded[:, : self.where], memory, embedded[:, self.where :]]
        return self.inside(inputs_embeds=torch.cat(parts, 1))


def tuned(config):
    torch.manual_seed(0)
    return get_peft_model(new_model("llama"), config).eval()


MODELS = {
    "prompt tuning": lambda: tuned(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=ADDED)),
    "p-tuning": lambda: tuned(
        PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=ADDED, encoder_hidden_size=8)
    ),
    "memory in front": lambda: Memory(new_model("llama"), 0),
    "memory behind": lambda: Memory(new_model("llama"), 5),
}


def blocks(model):
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


def seen(model, inputs, layer):
    found = []
    with torch.no_grad(), hooked((blocks(model)[layer], "output", lambda t: found.append(t.clone()))):
        model(**inputs)
    return found[0]


def path_of(model, layer):
    return next(name for name, module in model.named_modules() if module is blocks(model)[layer]) + ".output"


@pytest.mark.parametrize("name", MODELS)
def test_a_swap_what_is_collected_and_the_logits_are_at_the_tokens(name, planner):
    model, base, source = MODELS[name](), tokens(2, 5), tokens(2, 6, 9)
    lead = 0 if name == "memory behind" else ADDED
    read, write = [[2], [5]], [[0], [4]]
    value = seen(model, source, 1)
    if name == "memory behind":  # its memory stands behind the fifth token, so in a longer text in front of the sixth
        read, source = [[2], [4]], tokens(2, 5, 9)
        value = seen(model, source, 1)

    def swap(tensor):
        tensor = tensor.clone()
        for row in range(2):
            tensor[row, lead + write[row][0]] = value[row, lead + read[row][0]]
        return tensor

    with torch.no_grad(), hooked((blocks(model)[1], "output", swap)):
        expected = model(**base).logits
    face = IntervenableModel({"component": path_of(model, 1)}, model)
    got = face(base, source, {"sources->base": ([read], [write])})[1].logits
    torch.testing.assert_close(got, expected)

    look = IntervenableModel({"component": path_of(model, 1), "intervention_type": CollectIntervention}, model)
    values = look(base, None, {"base": [write]}, return_dict=True).collected_activations[0]
    plain = seen(model, base, 1)
    torch.testing.assert_close(values[:, 0], torch.stack([plain[n, lead + write[n][0]] for n in range(2)]))

    edits = [Edit("edit", Site(path_of(model, 1)), "double", Positions(((0,), (4,))))]
    plan = Plan((Run("plain", "x"), Run("run", "x", tuple(edits))), ("plain", "run"), Logits())
    bound = bind(model, plan, {"x": base}, {"double": FunctionIntervention(lambda b: 2 * b)})
    outputs = planners.execute(bound, planner).outputs

    def double(tensor):
        tensor = tensor.clone()
        for row in range(2):
            tensor[row, lead + write[row][0]] *= 2
        return tensor

    with torch.no_grad(), hooked((blocks(model)[1], "output", double)):
        doubled = model(**base).logits
    torch.testing.assert_close(outputs["run"], doubled[:, lead + 4])
    with torch.no_grad():
        torch.testing.assert_close(outputs["plain"], model(**base).logits[:, lead + 4])


def test_components_of_a_tuned_model_in_many_runs(planner):
    """Where passes may be run in part, what is put in front of the tokens does not make them other passes."""
    model, base = MODELS["prompt tuning"](), tokens(2, 5)
    runs = [Run("plain", "x")]
    for layer in range(3):
        for column in (1, 4):
            edit = Edit(f"{layer} {column}", Site("block_output", layer), "flip", Positions(((column,),) * 2))
            runs.append(Run(f"run {layer} {column}", "x", (edit,)))
    plan = Plan(tuple(runs), tuple(run.name for run in runs), Logits())
    bound = bind(model, plan, {"x": base}, {"flip": FunctionIntervention(lambda b: b.flip(-1))})
    outputs = planners.execute(bound, planner).outputs
    for layer in range(3):
        for column in (1, 4):

            def flip(tensor):
                tensor = tensor.clone()
                tensor[:, ADDED + column] = tensor[:, ADDED + column].flip(-1)  # noqa: B023
                return tensor

            with torch.no_grad(), hooked((blocks(model)[layer], "output", flip)):
                expected = model(**base).logits[:, -1]
            torch.testing.assert_close(outputs[f"run {layer} {column}"], expected, rtol=1e-4, atol=1e-4)


def test_columns_between_the_tokens_are_refused():
    model = Memory(new_model("llama"), 2)
    face = IntervenableModel({"component": path_of(model, 1), "intervention_type": AdditionIntervention}, model)
    with pytest.raises(PositionError, match="8 columns of 5 tokens"):
        face(tokens(2, 5), None, {"base": 1}, VECTOR)
    got = face(tokens(2, 5), None, None, VECTOR)[1].logits  # all columns need not be told apart
    with torch.no_grad(), hooked((blocks(model)[1], "output", lambda t: t + VECTOR)):
        torch.testing.assert_close(got, model(**tokens(2, 5)).logits)


def test_hooks_of_the_user_do_not_hear_of_it():
    model, heard = MODELS["memory in front"](), []
    face = IntervenableModel({"component": path_of(model, 1), "intervention_type": AdditionIntervention}, model)
    model.inside.model.layers[0].register_forward_hook(lambda *_: heard.append(1))
    face(tokens(2, 5), None, {"base": 1}, VECTOR)
    face(tokens(2, 5), None, {"base": 2}, VECTOR)
    assert len(heard) == 2


@pytest.mark.parametrize(("kind", "use_cache"), [("prompt", True), ("prompt", False), ("prefix", True)])
def test_generated_tokens_are_counted_behind_them(kind, use_cache):
    """A prefix is in the cache only; a soft prompt is among the columns of the first pass."""
    options = {"task_type": "CAUSAL_LM", "num_virtual_tokens": ADDED}
    model = tuned(PromptTuningConfig(**options) if kind == "prompt" else PrefixTuningConfig(**options))
    prompt, place, lead = tokens(2, 5), blocks(model)[1], ADDED if kind == "prompt" else 0
    columns = [lead + 1, lead + 5, lead + 7]  # token 1 of the prompt, and generated tokens 0 and 2

    def add(tensor):
        tensor = tensor.clone()
        for column in columns:
            tensor[:, column : column + 1] += VECTOR
        return tensor

    ids = prompt["input_ids"]
    for _ in range(4):
        with torch.no_grad(), hooked((place, "output", add)):
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    face = IntervenableModel(
        {"layer": 1, "component": "block_output", "intervention_type": AdditionIntervention}, model
    )
    options = {"max_new_tokens": 4, "do_sample": False, "use_cache": use_cache}
    _, got = face.generate(prompt, None, {"base": 1}, VECTOR, intervene_on_prompt=True, steps=[0, 2], **options)
    assert torch.equal(got, ids)


@pytest.mark.parametrize("name", ["prompt tuning", "memory in front"])
def test_scores_are_read_at_the_tokens(name):
    model, base, source = MODELS[name](), tokens(2, 5), tokens(2, 5, 9)
    value = seen(model, source, 1)

    def swap(tensor):
        tensor = tensor.clone()
        tensor[:, ADDED + 4] = value[:, ADDED + 2]
        return tensor

    with torch.no_grad(), hooked((blocks(model)[1], "output", swap)):
        labels = model(**base).logits[:, ADDED + 4].argmax(-1)
    batch = {
        **base, "source_input_ids": source["input_ids"], "labels": labels,
        "source_0->base.0.pos": torch.tensor([[2], [2]]), "source_0->base.1.pos": torch.tensor([[4], [4]]),
    }  # fmt: skip
    face = IntervenableModel({"component": path_of(model, 1)}, model)
    assert dict(face.evaluate([batch]))["iia"] == 1.0
