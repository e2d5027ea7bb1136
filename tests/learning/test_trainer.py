"""What `transformers.Trainer` calls by name on what it trains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
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
        max_steps=2,
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        **more,
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
