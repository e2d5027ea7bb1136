"""Where replay would be wrong it is not taken, and the ledger says why; where it is taken, it is right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from tests.architectures.shrink import SMALL_HEADS
from tests.architectures.tiny import randomise, tiny_config, tiny_model
from tests.fast.families import blocks, build, interpret, prompts, read_logits, roll, shared
from tests.fast.sweep_trials import compare, windowed
from tests.helpers import HIDDEN
from torch import Tensor, nn

from align_transformers import Edit, Plan, Positions, Read, Run, Site, ZeroIntervention, bind, execute
from align_transformers.fast import planned
from align_transformers.interventions import FunctionIntervention
from align_transformers.models import resolve
from align_transformers.plan import Logits

PARTS = {"function": FunctionIntervention(roll)}
AT = Positions(((1,), (2,)))
BLOCK, LAST = Site("block_output", 1), Logits()


def two_runs(site: Site = BLOCK, at: Positions = AT, logits: Any = LAST) -> Plan:
    edit = Edit("e", site, "function", at)
    return Plan((Run("clean", "x"), Run("run", "x", (edit,))), ("clean", "run"), logits)


def texts(family: str = "gpt2", **more: Any) -> dict[str, Any]:
    return {"x": {**prompts(family, (5, 5), "right", 1), **more}}


def run_plan(model: Any, plan: Plan, inputs: Any) -> Any:
    with torch.no_grad():
        return execute(bind(model, plan, inputs, PARTS))


def by_hand(model: Any, plan: Plan, inputs: Any, family: str = "gpt2") -> Tensor:
    with torch.no_grad():
        logits = interpret(family, model, plan, inputs)["run"]
    return read_logits(logits, inputs["x"], plan.run("run"))


def assert_full(outcome: Any, why: str) -> None:
    assert [one.way for one in outcome.passes] == ["full", "full"]
    assert why in outcome.passes[1].why


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


# --- plans that fall back ---------------------------------------------------------------------------------------------


def test_the_plan_that_the_others_spoil_is_packed():
    model, inputs = shared("gpt2"), texts()
    outcome = run_plan(model, two_runs(), inputs)
    assert [one.way for one in outcome.passes] == ["full", "packed"]
    assert_close(outcome.outputs["run"], by_hand(model, two_runs(), inputs))


def test_an_edit_below_the_blocks_begins_at_the_start():
    model, inputs = shared("gpt2"), texts()
    outcome = run_plan(model, two_runs(Site("embedding_output")), inputs)
    assert [one.way for one in outcome.passes] == ["full", "full"]
    module = model.transformer.wte

    def hook(_module: Any, _args: Any, output: Tensor) -> Tensor:
        new = output.clone()
        new[0, 1], new[1, 2] = roll(output[0, 1]), roll(output[1, 2])
        return new

    with module.register_forward_hook(hook), torch.no_grad():
        assert_close(outcome.outputs["run"], model(**inputs["x"]).logits[:, -1])


def test_a_second_edit_below_moves_the_start_down():
    model, inputs = shared("gpt2"), texts()
    edits = (Edit("a", Site("block_output", 2), "function", AT), Edit("b", Site("block_output", 0), "function", AT))
    plan = Plan((Run("clean", "x"), Run("run", "x", edits)), ("clean", "run"), Logits())
    outcome = run_plan(model, plan, inputs)
    assert outcome.passes[1].way == "packed"
    assert_close(outcome.outputs["run"], by_hand(model, plan, inputs))


def test_the_same_tokens_under_another_mask_are_another_input():
    model = shared("llama")
    one, other = prompts("llama", (5, 5), "right", 1), prompts("llama", (5, 3), "right", 1)
    other["input_ids"] = one["input_ids"]
    inputs, edit = {"x": one, "y": other}, Edit("e", Site("block_output", 1), "function", Positions(((1,), (2,))))
    plan = Plan((Run("clean", "x"), Run("run", "y", (edit,))), ("clean", "run"), Logits())
    outcome = run_plan(model, plan, inputs)
    assert [one.way for one in outcome.passes] == ["full", "full"]
    with torch.no_grad():
        expected = interpret("llama", model, plan, inputs)["run"]
    assert_close(outcome.outputs["run"], read_logits(expected, other, plan.run("run")))


@pytest.mark.parametrize("part", ["", "transformer.h.2.mlp.dropout", "transformer.drop"])
def test_where_dropout_is_on_every_pass_is_full(part):
    model = build("gpt2")
    assert run_plan(model, two_runs(), texts()).passes[1].way == "packed"
    model.get_submodule(part).train()
    assert_full(run_plan(model, two_runs(), texts()), "training mode")
    model.eval()
    assert run_plan(model, two_runs(), texts()).passes[1].way == "packed"


def test_a_cache_that_is_handed_in_stays_as_it_is_and_every_pass_sees_it():
    model, ids = shared("llama"), prompts("llama", (8, 8), "right", 1)["input_ids"]
    with torch.no_grad():
        cache = model(input_ids=ids[:, :3], use_cache=True).past_key_values
        keys = [layer.keys.clone() for layer in cache.layers]
        inputs = {"x": {"input_ids": ids[:, 3:], "past_key_values": cache}}
        outcome = run_plan(model, two_runs(), inputs)
        assert cache.get_seq_length() == 3
        assert all(torch.equal(layer.keys, old) for layer, old in zip(cache.layers, keys, strict=True))
        assert_full(outcome, "past_key_values is handed in")
        assert_close(outcome.outputs["clean"], model(input_ids=ids).logits[:, -1])

        def hook(_module: Any, _args: Any, output: Tensor) -> Tensor:
            new = output.clone()
            new[0, 4], new[1, 5] = roll(output[0, 4]), roll(output[1, 5])
            return new

        with blocks(model)[1].register_forward_hook(hook):
            assert_close(outcome.outputs["run"], model(input_ids=ids).logits[:, -1])


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
def test_records_of_all_blocks_need_all_blocks(name):
    model, inputs = shared("llama"), texts("llama")
    inputs["x"][name] = True
    outcome = run_plan(model, two_runs(logits=None), inputs)
    assert_full(outcome, f"{name} is asked for")
    with torch.no_grad():
        expected = interpret("llama", model, two_runs(logits=None), texts("llama"))["run"]
    assert torch.equal(outcome.outputs["run"].logits, expected)
    if name == "output_hidden_states":
        assert len(outcome.outputs["run"].hidden_states) == 4
        assert not torch.equal(outcome.outputs["run"].hidden_states[2], outcome.outputs["clean"].hidden_states[2])


def test_records_that_the_configuration_asks_for_need_all_blocks():
    model = build("llama")
    model.config.output_hidden_states = True
    assert_full(run_plan(model, two_runs(logits=None), texts("llama")), "output_hidden_states is asked for")


def test_whole_outputs_with_a_cache_need_all_blocks():
    model, inputs = shared("llama"), texts("llama")
    outcome = run_plan(model, two_runs(logits=None), inputs)
    assert_full(outcome, "cache")
    assert outcome.outputs["run"].past_key_values.layers[0].keys.shape[2] == 5
    again = run_plan(model, two_runs(logits=None), texts("llama", use_cache=False))
    assert again.passes[1].way == "partial"
    assert torch.equal(again.outputs["run"].logits, outcome.outputs["run"].logits)


@pytest.mark.parametrize("path", ["transformer.h.0", "transformer.h.2.mlp", "transformer.ln_f", "lm_head"])
@pytest.mark.parametrize("side", ["input", "output"])
def test_with_hooks_of_others_every_pass_is_full_and_they_see_what_they_would_have_seen(path, side):
    model = build("gpt2")
    inputs = {"x": prompts("gpt2", (5, 3), "right", 1)}
    plan = two_runs(at=Positions(((1,), (2,))))
    run_plan(model, plan, inputs)
    seen: list[tuple[int, ...]] = []

    def scaled(tensor: Tensor) -> Tensor:
        seen.append(tuple(tensor.shape[:2]))
        return tensor * torch.arange(1, 1 + tensor.shape[1]).view(1, -1, 1)

    module = model.get_submodule(path)
    if side == "output":
        handle = module.register_forward_hook(lambda _m, _a, output: scaled(output))
    else:
        handle = module.register_forward_pre_hook(lambda _m, args: (scaled(args[0]), *args[1:]))
    with handle:
        expected = by_hand(model, plan, inputs)
        del seen[:]
        outcome = run_plan(model, plan, inputs)
        assert seen == [(2, 5), (2, 5)]
    assert_full(outcome, "hooks")
    assert_close(outcome.outputs["run"], expected)
    assert run_plan(model, plan, inputs).passes[1].way == "packed"


def test_a_hook_on_the_model_sees_whole_logits():
    model, inputs = build("gpt2"), {"x": prompts("gpt2", (5, 3), "right", 1)}
    with torch.no_grad():
        whole = model(**inputs["x"]).logits
    seen = []
    with model.register_forward_hook(lambda _m, _a, output: seen.append(tuple(output.logits.shape))):
        outcome = run_plan(model, Plan((Run("clean", "x"),), ("clean",), Logits((4, 2))), inputs)
    assert seen == [tuple(whole.shape)]
    assert torch.equal(outcome.outputs["clean"], whole[[0, 1], [4, 2]][:, [4, 2]])


def test_blocks_that_are_called_twice_are_run_from_the_start():
    torch.manual_seed(0)
    config = transformers.AlbertConfig(
        vocab_size=61, embedding_size=16, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=48, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    model, inputs = transformers.AlbertForMaskedLM(config).eval(), texts("bert")
    outcome = run_plan(model, two_runs(), inputs)
    assert [one.way for one in outcome.passes] == ["full", "full"]
    calls = []

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        calls.append(1)
        if len(calls) != 2:
            return None
        new = output[0].clone() if isinstance(output, tuple) else output.clone()
        new[0, 1], new[1, 2] = roll(new[0, 1]), roll(new[1, 2])
        return (new, *output[1:]) if isinstance(output, tuple) else new

    with model.albert.encoder.albert_layer_groups[0].albert_layers[0].register_forward_hook(hook), torch.no_grad():
        assert_close(outcome.outputs["run"], model(**inputs["x"]).logits[:, -1])


def test_a_module_that_blocks_share_is_edited_in_all_of_them():
    model, inputs = build("gpt2"), texts()
    model.transformer.h[2].mlp = model.transformer.h[0].mlp
    plan = two_runs(Site("transformer.h.2.mlp.output"))
    outcome = run_plan(model, plan, inputs)
    assert [one.way for one in outcome.passes] == ["full", "full"]

    def hook(_module: Any, _args: Any, output: Tensor) -> Tensor:
        new = output.clone()
        new[0, 1], new[1, 2] = roll(new[0, 1]), roll(new[1, 2])
        return new

    with model.transformer.h[0].mlp.register_forward_hook(hook), torch.no_grad():
        assert_close(outcome.outputs["run"], model(**inputs["x"]).logits[:, -1])


class Plain(nn.Module):
    """A stack of layers that no resolver has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).tanh()
        return x


def test_any_module_is_run_in_full():
    model, x = Plain(), torch.randn(2, 4, 8)
    outcome = run_plan(model, two_runs(Site("layers.1.output"), logits=None), {"x": x})
    assert [one.way for one in outcome.passes] == ["full", "full"]

    def hook(_module: Any, _args: Any, output: Tensor) -> Tensor:
        new = output.clone()
        new[0, 1], new[1, 2] = roll(new[0, 1]), roll(new[1, 2])
        return new

    with model.layers[1].register_forward_hook(hook), torch.no_grad():
        assert torch.equal(outcome.outputs["run"], model(x))


def test_a_generation_is_run_in_full():
    model, inputs = shared("gpt2"), texts()
    with torch.no_grad():
        run = Run("run", "x", (Edit("e", BLOCK, "function", AT, source=Read("clean", BLOCK, AT)),))
        bound = bind(model, Plan((Run("clean", "x"), run), ("run",), LAST), inputs, PARTS)
        steps = planned(replace(bound, generates=True))
        clean = next(steps)
        step = steps.send(None)
    assert (clean.runs[0].name, clean.way.leaving) == ("clean", None)  # nobody is going to start from it
    assert (step.way.name, step.refused["partial"]) == ("full", "it generates")


@pytest.mark.parametrize("component", ["attention_pattern", "attention_score"])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_patterns_are_edited_in_whole_rows(family, component):
    model, inputs = shared(family), texts(family)
    one = Edit("e", Site(component, 1), "zero", Positions(((1,), (2,)), ((0,), (1,))))
    two = Edit("f", Site("block_output", 1), "zero", AT)
    parts = {"zero": ZeroIntervention()}
    runs = (Run("clean", "x"), Run("run", "x", (one,)), Run("other", "x", (two,)))
    with torch.no_grad():
        found = execute(bind(model, Plan(runs, ("clean", "run", "other"), Logits()), inputs, parts))
        alone = execute(bind(model, Plan(runs[1:2], ("run",), Logits()), inputs, parts))
    assert [one.way for one in found.passes] == ["full", "together"]
    assert "patterns" in found.passes[1].why or family == "bert"
    assert_close(found.outputs["run"], alone.outputs["run"])  # a full pass; its oracle is in test_interface.py


def test_a_place_without_examples_is_edited_alone():
    model, inputs = tiny_model("CAUSAL_LM", "mixtral").model, texts()
    edits = (
        Edit("e", Site("model.layers.1.mlp.gate.input"), "function"),
        Edit("f", Site("block_output", 1), "function"),
    )
    runs = (Run("clean", "x"), *(Run(edit.name, "x", (edit,)) for edit in edits))
    outcome = run_plan(model, Plan(runs, ("clean", "e", "f"), Logits()), inputs)
    assert [one.way for one in outcome.passes] == ["full", "partial", "partial"]
    assert "as a whole" in outcome.passes[1].why

    with (
        model.model.layers[1].mlp.gate.register_forward_pre_hook(lambda _m, args: (roll(args[0]), *args[1:])),
        torch.no_grad(),
    ):
        assert_close(outcome.outputs["e"], model(**inputs["x"]).logits[:, -1])


# --- kinds of models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["unsaid", "left", "right"])
@pytest.mark.parametrize(
    ("model_type", "best"),
    [
        ("mamba", "together"),
        ("bamba", "together"),
        ("falcon_h1", "together"),  # a state space and an attention in every block
        ("mixtral", "packed"),
        ("gpt_oss", "packed"),
        ("opt", "packed"),
        ("mpt", "together"),
        ("bloom", "partial"),
        ("gemma3n_text", "full"),  # its blocks have an axis in front of the examples
        ("prophetnet", "together"),
    ],
)
def test_kinds_of_models(model_type, best, padding):
    model = tiny_model("CAUSAL_LM", model_type).model
    windowed(model)
    way, gap, why, failure = compare(model, resolve(model), "", padding)
    if way != "does not run":
        assert (way, failure) == (best, "")
        assert gap <= 1e-5
        assert why or best == "packed"


def test_a_bias_by_head_is_not_taken_for_one_by_example():
    torch.manual_seed(0)
    model = transformers.MptForCausalLM(
        transformers.MptConfig(vocab_size=61, d_model=32, n_heads=2, n_layers=3, max_seq_len=64)
    ).eval()
    for batch in (1, 2, 3):
        inputs = {"x": prompts("llama", (5,) * batch, "right", 1)}
        for copies in (1, 2, 3):
            runs = [Run("clean", "x")]
            for layer in range(3):
                at = Positions(((1,),) * copies)
                examples = tuple(n % batch for n in range(copies))
                runs.append(
                    Run(
                        f"run {layer}", "x", (Edit(f"e{layer}", Site("block_output", layer), "function", at),), examples
                    )
                )
            outcome = run_plan(model, Plan(tuple(runs), tuple(run.name for run in runs), Logits()), inputs)
            for run in runs[1:]:
                layer = run.edits[0].site.layer
                rows = {name: value[list(run.examples)] for name, value in inputs["x"].items()}

                def hook(_module: Any, _args: Any, output: Any) -> Any:
                    new = output[0].clone()
                    new[:, 1] = roll(new[:, 1])
                    return (new, *output[1:])

                with model.transformer.blocks[layer].register_forward_hook(hook), torch.no_grad():
                    assert_close(outcome.outputs[run.name], model(**rows).logits[:, -1])
            assert {one.way for one in outcome.passes} == {"full", "together"}


def test_layers_that_share_keys_and_values():
    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention"] * 3
    config = transformers.Gemma4TextConfig(
        vocab_size=199, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, global_head_dim=8, max_position_embeddings=64, sliding_window=4,
        layer_types=kinds, num_kv_shared_layers=2, hidden_size_per_layer_input=8, vocab_size_per_layer_input=199,
        pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    model = transformers.Gemma4ForCausalLM(config).eval()
    way, gap, why, failure = compare(model, resolve(model), "", "left")
    assert failure == ""
    assert way in ("partial", "together", "packed")
    assert way == "packed" or why
    assert gap <= 1e-5


def qwen_with_a_picture() -> tuple[Any, dict[str, Any]]:
    """Return a model that adds features of the picture after its first two blocks, and an input with pictures."""
    extra = {"vision_config": {"deepstack_visual_indexes": [0, 1]}}
    config = tiny_config(transformers.Qwen3VLConfig, SMALL_HEADS, extra)
    torch.manual_seed(0)
    model = transformers.Qwen3VLForConditionalGeneration(config).eval()
    randomise(model, 0)
    eyes = config.vision_config
    ids = torch.randint(6, 150, (2, 9))
    ids[:, 2:6] = config.image_token_id
    size = eyes.in_channels * eyes.temporal_patch_size * eyes.patch_size**2
    inputs = {
        "input_ids": ids,
        "pixel_values": torch.randn(32, size),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 2),
        "mm_token_type_ids": (ids == config.image_token_id).long(),
        "use_cache": False,
    }
    return model, inputs


@pytest.mark.parametrize("position", [3, 7])
def test_features_that_are_added_between_blocks(position):
    model, inputs = qwen_with_a_picture()
    at = Positions(((position,), (position,)))
    sites = [Site(name, layer) for layer in range(3) for name in ("block_input", "block_output")]
    runs = [Run("clean", "x")]
    runs += [Run(str(n), "x", (Edit(str(n), site, "function", at),)) for n, site in enumerate(sites)]
    outcome = run_plan(model, Plan(tuple(runs), tuple(run.name for run in runs), Logits()), {"x": inputs})
    assert [one.way for one in outcome.passes] == ["full", *["partial"] * len(sites)]
    assert "pixel_values" in outcome.passes[1].why
    layers = model.model.language_model.layers

    def change(tensor: Tensor) -> Tensor:
        new = tensor.clone()
        new[:, position] = roll(new[:, position])
        return new

    def before(_module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    for number, site in enumerate(sites):
        if site.name == "block_output":
            handle = layers[site.layer].register_forward_hook(lambda _m, _a, output: change(output))
        else:
            handle = layers[site.layer].register_forward_pre_hook(before, with_kwargs=True)
        with handle, torch.no_grad():
            assert_close(outcome.outputs[str(number)], model(**inputs).logits[:, -1])


class Int8(nn.Linear):
    """A layer that rounds its input by a scale that all rows share."""

    def forward(self, x: Tensor) -> Tensor:
        scale = x.detach().abs().amax() / 127
        return nn.functional.linear((x / scale).round() * scale, self.weight, self.bias)


class LLMInt8(nn.Linear):
    """A layer that rounds every row by its own scale, apart from columns in which any row is large."""

    def forward(self, x: Tensor) -> Tensor:
        large = (x.abs() > 4).flatten(0, -2).any(0)
        scale = x.masked_fill(large, 0).abs().amax(-1, keepdim=True).clamp(min=1e-6) / 127
        return nn.functional.linear(torch.where(large, x, (x / scale).round() * scale), self.weight, self.bias)


class RoomForThree(nn.Linear):
    """An expert that only the three tokens of the batch with the largest first number get to."""

    def forward(self, x: Tensor) -> Tensor:
        first = x[..., 0].flatten()
        chosen = torch.zeros_like(first).scatter(0, first.topk(min(3, len(first))).indices, 1.0)
        return super().forward(x) * chosen.view(*x.shape[:-1], 1)


@pytest.mark.parametrize("kind", [Int8, LLMInt8, RoomForThree])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_where_other_rows_change_a_row_every_run_is_run_alone(kind, family):
    model = build(family)
    for block in blocks(model):
        layer = block.mlp.down_proj if family == "llama" else block.mlp
        holder, name = (block.mlp, "up_proj") if family == "llama" else (block, "mlp")
        width = HIDDEN
        new = kind(width, layer.in_features if family == "llama" else width)
        setattr(holder, name, new.eval())
    inputs = texts(family)
    edits = [Edit(name, Site("block_output", layer), "function", AT) for name, layer in (("e", 0), ("f", 1))]
    runs = (Run("clean", "x"), Run("run", "x", (edits[0],)), Run("other", "x", (edits[1],)))
    outcome = run_plan(model, Plan(runs, ("clean", "run", "other"), Logits()), inputs)
    # With limited room a copy of an example is not even what the example is, so that no state can be started from.
    way = "full" if kind is RoomForThree else "partial"
    assert [one.way for one in outcome.passes] == ["full", way, way]
    assert "other rows" in outcome.passes[1].why or kind is RoomForThree
    assert_close(outcome.outputs["run"], by_hand(model, Plan(runs, ("run",), Logits()), inputs, family))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_experts_with_room_for_all_are_packed(model_type, dtype):
    model = tiny_model("CAUSAL_LM", model_type).model.to(dtype)
    outcome = run_plan(model, two_runs(), texts())
    assert "other rows" not in outcome.passes[1].why
