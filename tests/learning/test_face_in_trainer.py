"""An `IntervenableModel` itself as what a `transformers.Trainer` trains, and a model under edits that stay."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tests.helpers import hook_counts, hooked, new_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments

from align_transformers import (
    AdditionIntervention,
    IntervenableConfig,
    IntervenableModel,
    LowRankRotatedSpaceIntervention,
    PlanError,
    VanillaIntervention,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*checkpointing:FutureWarning")


class CausalTrainer(Trainer):
    """Learns the model's own loss on the base's tokens, as people write it for an intervenable model."""

    seen: list[Any]

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        if model.training:
            self.seen = [*getattr(self, "seen", []), inputs]
        loss, out = loss_of(model, inputs)
        return (loss, out) if return_outputs else loss


def loss_of(made: Any, batch: Any) -> Any:
    places = {"sources->base": 2}
    _, out = made({"input_ids": batch["input_ids"]}, [{"input_ids": batch["source"]}], places, labels=batch["labels"])
    return out.loss, out


def rows() -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(3, 50, (4, 2, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": base, "source": source, "labels": base} for base, source in ids]


def together(listed: Any) -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in listed]) for name in listed[0]}


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    plain = {"report_to": [], "remove_unused_columns": False, "use_cpu": True, "disable_tqdm": True}
    steps = {"learning_rate": 0.05, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "max_steps": 4}
    return TrainingArguments(
        str(folder), **{"save_strategy": "no", "per_device_train_batch_size": 2, **plain, **steps, **more}
    )


def model_of(family: str) -> Any:
    model: Any = new_model("llama" if family == "lora" else family)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if family == "lora":
        torch.manual_seed(5)
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    return model


def face(model: Any) -> IntervenableModel:
    torch.manual_seed(3)
    kind = {"intervention_type": LowRankRotatedSpaceIntervention, "low_rank_dimension": 2}
    return IntervenableModel({"layer": 1, "component": "block_output", **kind}, model.requires_grad_(False))


@pytest.mark.parametrize("family", ["gpt2", "llama", "lora"])
def test_it_learns_evaluates_saves_and_goes_on_like_a_loop_by_hand(tmp_path: Path, family: str) -> None:
    """GPT-2's tied weights could not be saved in a checkpoint; there is nothing of the model in it."""
    made = face(model_of(family))
    (weight,) = made.parameters()
    start, before = weight.detach().clone(), copy.deepcopy(made.model.state_dict())
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
    done = CausalTrainer(made, arguments(tmp_path, **options), train_dataset=rows(), eval_dataset=rows())
    done.train()
    half, _ = sorted(tmp_path.glob("checkpoint-*"))
    assert list(load_file(half / "model.safetensors")) == list(made.state_dict()) == ["_trained.0.rotate_layer.free"]
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())
    assert made.model.training

    learned, loss = weight.detach().clone(), loss_of(made, together(rows()))[0].item()
    assert done.evaluate()["eval_loss"] == pytest.approx(loss, abs=1e-6)  # without label_names
    with torch.no_grad():
        weight.copy_(start)
    optimiser = torch.optim.AdamW([weight], 0.05, weight_decay=0.0)
    for first, second in zip(done.seen[::2], done.seen[1::2], strict=True):
        optimiser.zero_grad()
        ((loss_of(made, first)[0] + loss_of(made, second)[0]) / 2).backward()
        optimiser.step()
    assert torch.allclose(weight, learned, atol=1e-6)
    assert not torch.allclose(weight, start, atol=1e-2)

    again = face(model_of(family))
    CausalTrainer(again, arguments(tmp_path, **options), train_dataset=rows()).train(resume_from_checkpoint=str(half))
    assert torch.equal(next(again.parameters()), learned)


def test_a_state_is_loaded_whole_or_with_what_it_has() -> None:
    made, other = face(new_model("gpt2")), face(new_model("gpt2"))
    with torch.no_grad():
        next(made.parameters()).add_(1.0)

    class Around(nn.Module):
        def __init__(self, inside: Any) -> None:
            super().__init__()
            self.inside = inside

    assert not Around(other).load_state_dict(Around(made).state_dict()).missing_keys
    assert torch.equal(next(made.parameters()), next(other.parameters()))
    found = other.load_state_dict({}, False)
    assert found.missing_keys == ["_trained.0.rotate_layer.free"]
    assert other._keys_to_ignore_on_save is None


def test_the_model_moves_and_changes_its_mode_with_it_and_may_be_exchanged() -> None:
    model = new_model("llama")
    made = face(model)
    assert made.train().model.training
    assert not made.eval().model.training
    assert made.double().model is model
    assert model.dtype == torch.float64
    made.model = copy.deepcopy(model).train()
    assert made.model.training
    assert "model" not in dict(made.named_children())
    assert copy.deepcopy(made).model is not made.model


def test_its_configuration_is_asked_and_set_at_the_models_and_its_fields_are_frozen() -> None:
    model = new_model("llama")
    made = face(model)
    assert made.config.get_text_config() is model.config
    assert made.config.hidden_size == 32
    assert not hasattr(made.config, "hiden_size")
    assert hash(made.config) == hash(made.config)
    assert isinstance(made.config, IntervenableConfig)
    made.config.use_cache = False
    assert model.config.use_cache is False
    assert "use_cache" not in vars(made.config)
    for name in ("mode", "representations"):
        with pytest.raises(FrozenInstanceError, match=name):
            setattr(made.config, name, None)
    twin = copy.deepcopy(made)
    twin.config.use_cache = True
    assert (twin.model.config.use_cache, model.config.use_cache) == (True, False)
    assert made.hardened().config.hidden_size == 32
    alone = IntervenableModel({"component": "0.output"}, nn.Sequential(nn.Linear(2, 2)))
    alone.config.use_cache = False  # there is none of a model
    assert not alone.config.use_cache
    assert not hasattr(alone.config, "hidden_size")


def test_what_a_trainer_asks_for_by_name_is_the_models() -> None:
    model = new_model("llama")
    made = face(model)
    assert made.generation_config is model.generation_config
    assert made.main_input_name == "input_ids"
    made.generation_config = other = copy.deepcopy(model.generation_config)
    assert model.generation_config is other
    assert "generation_config" not in vars(made)
    assert made.get_input_embeddings() is model.get_input_embeddings()
    assert not hasattr(made, "hf_device_map")  # a Trainer moves the model then
    model.hf_device_map = {"": "cpu"}
    assert made.hf_device_map == {"": "cpu"}
    with pytest.raises(AttributeError, match="no attribute 'parametres'"):
        made.parametres()


# --- gradient checkpointing -------------------------------------------------------------------------------------------


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("way", ["call", "applied"])
@pytest.mark.parametrize("component", ["mlp_activation", "attention_output", "block_output"])
def test_gradients_are_those_of_a_hook_where_the_model_computes_its_blocks_again(way: str, component: str) -> None:
    """Blocks that are edited inside were computed again without the edits: the gradients were wrong in silence."""
    model, ids = new_model("llama").train(), torch.arange(3, 9)[None]
    block, runs = model.model.layers[1], [0] * 3
    module = {"mlp_activation": block.mlp.down_proj, "attention_output": block.self_attn.o_proj}.get(component, block)
    vector = torch.randn(40 if component == "mlp_activation" else 32)
    side = "input" if component == "mlp_activation" else "output"
    with hooked((module, side, lambda value: value + vector)):
        model(input_ids=ids, labels=ids).loss.backward()
    by_hand = gradients(model)
    model.zero_grad()
    for number, one in enumerate(model.model.layers):
        one.mlp.act_fn.register_forward_hook(lambda *_, n=number: runs.__setitem__(n, runs[n] + 1))
    model.gradient_checkpointing_enable()
    add = AdditionIntervention(source_representation=vector)
    made, hooks = (
        IntervenableModel({"layer": 1, "component": component, "intervention": add}, model),
        hook_counts(model),
    )
    with made.applied() if way == "applied" else pytest.MonkeyPatch.context():
        out = model(input_ids=ids, labels=ids) if way == "applied" else made({"input_ids": ids}, labels=ids)[1]
    out.loss.backward()
    found = gradients(model)
    assert found.keys() == by_hand.keys()
    assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in by_hand.items())
    assert hook_counts(model) == hooks
    assert runs[0] == 2


def test_an_edit_in_a_part_that_is_computed_again_is_refused_unless_the_whole_call_is() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.inside, x, use_reentrant=False)

    model, x, source = Again(), torch.randn(2, 4), torch.randn(2, 4)
    swap = IntervenableModel({"component": "inside.0.output", "intervention_type": VanillaIntervention}, model)
    with pytest.raises(PlanError, match="output is in a part of the model that is run again"):
        swap(x, [source])
    with torch.no_grad():
        assert torch.equal(swap(x, [source])[1], model(source))

    plain = IntervenableModel({"component": "0.output", "intervention_type": VanillaIntervention}, model.inside)
    source.requires_grad_()
    checkpoint(lambda base: plain(base, [source])[1], x, use_reentrant=False).sum().backward()
    (expected,) = torch.autograd.grad(model.inside(source).sum(), source)
    assert torch.allclose(source.grad, expected)


# --- a model that learns under edits that stay ------------------------------------------------------------------------


def test_adapters_are_trained_under_applied_edits(tmp_path: Path) -> None:
    """Steps of a hand-written loop with hooks on the same batches end at the same weights."""

    class Seeing(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            batches.append(inputs)
            return super().compute_loss(model, inputs, *rest, **more)

    batches: list[Any] = []
    vector, data = torch.randn(40), [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows()]
    model, by_hand = model_of("lora"), model_of("lora")
    add = AdditionIntervention(source_representation=vector)
    made = IntervenableModel({"layer": 1, "component": "mlp_activation", "intervention": add}, model)
    with made.applied() as edits:
        Seeing(model, arguments(tmp_path, gradient_checkpointing=True), train_dataset=data).train()
    assert edits.calls == 4
    learns = [p for p in by_hand.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learns, 0.05, weight_decay=0.0)
    inside = by_hand.base_model.model.model.layers[1].mlp.down_proj
    with hooked((inside, "input", lambda value: value + vector)):
        for batch in batches:
            optimiser.zero_grad()
            by_hand.train()(**{name: batch[name] for name in ("input_ids", "labels")}).loss.backward()
            optimiser.step()
    for (name, value), (_, expected) in zip(model.named_parameters(), by_hand.named_parameters(), strict=True):
        assert torch.allclose(value, expected, atol=1e-5), name
    assert any("lora" in name for name, _ in model.named_parameters())
