"""What `transformers.Trainer` calls by name on what it trains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tests.helpers import hook_counts, new_model
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from align_transformers import IntervenableModel, LowRankRotatedSpaceIntervention, SpecError


def face(model: Any, layer: int = 1) -> IntervenableModel:
    torch.manual_seed(3)
    kind = LowRankRotatedSpaceIntervention
    place = {"layer": layer, "component": "block_output", "intervention_type": kind, "low_rank_dimension": 2}
    return IntervenableModel(place, model)


def rows(count: int = 4) -> list[dict[str, torch.Tensor]]:
    g, at = torch.Generator().manual_seed(0), torch.tensor([2])
    ids = torch.randint(3, 50, (count, 2, 6), generator=g)
    places = {"source_0->base.0.pos": at, "source_0->base.1.pos": at, "labels": torch.tensor(5)}
    return [{"input_ids": base, "source_input_ids": source, **places} for base, source in ids]


def batch() -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in rows()]) for name in rows()[0]}


def trainer(alignment: Any, folder: Any, **more: Any) -> Trainer:
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
        **{"max_steps": 2, "save_strategy": "no", **more},
    )
    return Trainer(model=alignment, args=arguments, train_dataset=rows(), eval_dataset=rows())


def gradient(alignment: Any) -> torch.Tensor:
    alignment.zero_grad(set_to_none=True)
    alignment(**batch())["loss"].backward()
    (learns,) = alignment.learning()
    return learns.grad.clone()


def test_recomputed_gradients_are_the_same_while_the_model_stays_in_training_mode() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=60, resid_pdrop=0.5)).train()
    alignment, calls = face(model, 0).for_training(), [0] * 3
    plain = gradient(alignment)
    for number, block in enumerate(model.transformer.h):
        block.mlp.c_fc.register_forward_hook(lambda *_, n=number: calls.__setitem__(n, calls[n] + 1))
    hooks = hook_counts(model)
    alignment.gradient_checkpointing_enable()
    assert torch.equal(gradient(alignment), plain)
    again, calls[:] = calls[:], [0] * 3
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert hook_counts(model) == hooks
    alignment.gradient_checkpointing_disable()
    assert torch.equal(gradient(alignment), plain)
    assert again == [calls[0], 2 * calls[1], 2 * calls[2]]  # blocks without interventions ran in the backward pass, too


@pytest.mark.parametrize(
    "asked", [{"offload": True}, {"every_n_layers": 2}, {"gradient_checkpointing_kwargs": {"use_reentrant": True}}]
)
def test_other_ways_of_recomputing_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="gradient checkpointing is done with"):
        face(new_model("llama")).for_training().gradient_checkpointing_enable(**asked)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_it_trains_alike_with_checkpointing_and_what_the_trainer_writes_stays_outside_the_model(tmp_path: Any) -> None:
    losses = []
    for checkpointing in (False, True):
        model = new_model("llama")
        before = copy.deepcopy(model.config.to_dict())
        made = trainer(face(model).for_training(), tmp_path, gradient_checkpointing=checkpointing)
        losses.append(made.train().training_loss)
        losses.append(made.evaluate()["eval_loss"])  # without label_names
        assert model.config.to_dict() == before
    assert losses[:2] == pytest.approx(losses[2:], abs=1e-6)


def adapted(family: str) -> Any:
    """Return a model, or one in PEFT's wrapper, whose own parameters would learn if anybody asked them to."""
    model: Any = new_model("gpt2" if family == "gpt2" else "llama")
    if family == "lora":
        torch.manual_seed(5)
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    return model


@pytest.mark.filterwarnings("ignore:.*checkpointing:FutureWarning")  # PEFT's
@pytest.mark.parametrize("family", ["gpt2", "llama", "lora"])
def test_it_is_saved_and_goes_on_to_the_same_weights_and_has_nothing_of_the_model(tmp_path: Any, family: str) -> None:
    steps = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "learning_rate": 0.05}
    made = face(adapted(family))
    before, learns = copy.deepcopy(made.model.state_dict()), [p.requires_grad for p in made.model.parameters()]
    trainer(made.for_training(), tmp_path, **steps).train()
    half, end = sorted(tmp_path.glob("checkpoint-*"))
    assert list(load_file(half / "model.safetensors")) == ["interventions.0.rotate_layer.free"]
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())
    assert [p.requires_grad for p in made.model.parameters()] == learns
    (learned,) = made.get_trainable_parameters()

    by_hand = face(adapted(family)).for_training()
    (weight,) = by_hand.learning()
    optimiser = torch.optim.AdamW([weight], 0.05, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / 4)
    order = trainer(by_hand, tmp_path, **steps).get_train_dataloader()
    for batch in [batch for _ in range(2) for batch in order]:
        optimiser.zero_grad()
        by_hand(**batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        optimiser.step()
        schedule.step()
    assert torch.allclose(weight, learned, atol=1e-6)

    again = face(adapted(family))
    trainer(again.for_training(), tmp_path, **steps).train(resume_from_checkpoint=str(half))
    (resumed,) = again.get_trainable_parameters()
    assert torch.equal(resumed, learned)
    saved = load_file(end / "model.safetensors")["interventions.0.rotate_layer.free"]
    assert torch.equal(saved, learned)
    assert not torch.equal(load_file(half / "model.safetensors")["interventions.0.rotate_layer.free"], learned)


def test_the_best_weights_are_loaded_at_the_end(tmp_path: Any) -> None:
    made = face(new_model("llama"))
    options = {"save_strategy": "steps", "eval_strategy": "steps", "load_best_model_at_end": True}
    done = trainer(made.for_training(), tmp_path, save_steps=1, eval_steps=1, max_steps=3, learning_rate=3.0, **options)
    done.train()
    losses = {row["step"]: row["eval_loss"] for row in done.state.log_history if "eval_loss" in row}
    best = min(losses, key=lambda step: losses[step])
    saved = load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors")
    (learned,) = made.get_trainable_parameters()
    assert torch.equal(saved["interventions.0.rotate_layer.free"], learned)
    assert len(losses) == 3
    assert done.evaluate()["eval_loss"] == pytest.approx(losses[best], abs=1e-6)


def test_what_would_be_lost_is_refused(tmp_path: Any) -> None:
    with pytest.raises(SpecError, match="leave neftune_noise_alpha out"):
        trainer(face(new_model("llama")).for_training(), tmp_path, neftune_noise_alpha=5.0).train()
    with pytest.raises(SpecError, match="label_smoothing_factor takes it away"):
        trainer(face(new_model("llama")).for_training(), tmp_path, label_smoothing_factor=0.1).train()


def test_its_configuration_answers_as_a_language_models() -> None:
    model = new_model("llama")
    alignment = face(model).for_training()
    assert alignment.config.get_text_config().hidden_size == model.config.hidden_size
    assert alignment.main_input_name == "input_ids"
    assert [name for name, _ in alignment.named_parameters()] == [
        name for name, _ in alignment.named_parameters() if name.startswith("interventions.")
    ]
