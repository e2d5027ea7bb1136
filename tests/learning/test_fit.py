"""What `fit` learns, and how: against hand-written loops, and against Trainer and Accelerate."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from tests.helpers import new_model, tiny
from tests.learning.tasks import batches, by_hand, examples, face, free_matrix, joined
from torch import nn
from torch.utils.data import DataLoader

from align_transformers import IntervenableModel, SpecError, UnknownNameError
from align_transformers.interventions import (
    BoundlessRotatedSpaceIntervention,
    LowRankRotatedSpaceIntervention,
    SigmoidMaskIntervention,
    TrainableIntervention,
    VanillaIntervention,
)
from align_transformers.learning import FitError, cross_entropy, evaluate, fit, progress_bar

PLAIN = {"schedule": "constant", "warmup": 0, "lr": 0.01}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_fit_is_what_hooks_and_a_loop_learn(family):
    model = new_model(family)
    made, data = face(model), batches(model=model)
    expected = by_hand(free_matrix(made), data * 4, family)
    fitted = fit(made, data, epochs=4, **PLAIN)
    torch.testing.assert_close(free_matrix(made), expected, rtol=0, atol=1e-5)
    assert fitted.steps == 12
    assert torch.equal(next(iter(fitted.weights.values())), free_matrix(made))


def test_fit_trainer_accelerate_and_a_loop_learn_the_same(tmp_path):
    from accelerate import Accelerator
    from safetensors.torch import load_file
    from transformers import Trainer, TrainingArguments

    model, data = new_model("llama"), batches()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learned = {}

    made = face(model)
    fit(made, data, epochs=2, clip=1.0, **PLAIN | {"schedule": "linear", "warmup": 2})
    learned["fit"] = free_matrix(made)

    made = face(model)
    alignment = made.for_training()
    optimizer = torch.optim.AdamW(alignment.parameters(), lr=0.01, weight_decay=0.0)
    pace = [0, 1 / 2, 1, 3 / 4, 1 / 2, 1 / 4]
    for batch, share in zip(data * 2, pace, strict=True):
        optimizer.param_groups[0]["lr"] = 0.01 * share
        alignment(**batch)["loss"].backward()
        nn.utils.clip_grad_norm_(alignment.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    learned["loop"] = free_matrix(made)

    made = face(model)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=4, learning_rate=0.01, warmup_steps=2,
        lr_scheduler_type="linear", remove_unused_columns=False, label_names=["labels"], report_to=[], use_cpu=True,
        train_sampling_strategy="sequential", save_strategy="epoch", disable_tqdm=True, weight_decay=0.0,
    )  # fmt: skip
    trainer = Trainer(made.for_training(), arguments, train_dataset=examples(data), eval_dataset=examples(data))
    trainer.train()
    learned["Trainer"] = free_matrix(made)
    saved = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert [tuple(value.shape) for value in saved.values()] == [(32, 3)], "the Trainer keeps what learns, and only that"
    assert torch.equal(next(iter(saved.values())), learned["Trainer"])
    assert math.isfinite(trainer.evaluate()["eval_loss"])

    made = face(model)
    alignment = made.for_training()
    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(
        alignment, torch.optim.AdamW(alignment.parameters(), lr=0.01, weight_decay=0)
    )
    for batch, share in zip(data * 2, pace, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * share
        accelerator.backward(prepared(**batch)["loss"])
        accelerator.clip_grad_norm_(alignment.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    learned["Accelerate"] = free_matrix(made)

    for name, value in learned.items():
        torch.testing.assert_close(
            value, learned["fit"], rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert not torch.equal(learned["fit"], free_matrix(face(model))), "nothing was learned"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())


def test_a_trainer_that_drops_columns_is_told(tmp_path):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True)
    with pytest.raises(ValueError, match=r"empty|columns"):
        Trainer(face().for_training(), arguments, train_dataset=examples(batches())).train()
    with pytest.raises(SpecError, match="remove_unused_columns"):
        face().for_training()(labels=torch.zeros(2))


@pytest.mark.parametrize("sizes", [(4, 4, 4, 4, 4), (2, 5, 3, 1, 4)])
def test_accumulated_batches_are_one_batch_and_the_last_is_stepped(sizes):
    made, data = face(), batches(sizes)
    expected = by_hand(free_matrix(made), [joined(data[:2]), joined(data[2:4]), data[4]] * 2)
    fitted = fit(made, data, epochs=2, accumulate=2, **PLAIN)
    torch.testing.assert_close(free_matrix(made), expected, rtol=0, atol=1e-5)
    assert [row["examples"] for row in fitted.history] == [sum(sizes[:2]), sum(sizes[2:4]), sizes[4]] * 2


def test_an_accumulated_step_has_its_penalty_once():
    data, losses = batches((2, 5)), []
    for accumulate, given in ((2, data), (1, [joined(data)])):
        made = face(kind=SigmoidMaskIntervention)
        losses.append((fit(made, given, epochs=3, accumulate=accumulate, **PLAIN).history, free_matrix(made)))
    for one, other in zip(losses[0][0], losses[1][0], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
    torch.testing.assert_close(losses[0][1], losses[1][1], rtol=0, atol=1e-5)


def test_the_loss_has_the_penalty():
    data, made = batches((4,)), face(kind=SigmoidMaskIntervention)
    penalty = made.interventions[next(iter(made.interventions))].penalty().item()
    plain = evaluate(made, data, metrics={"loss": cross_entropy})["loss"]
    assert penalty > 0
    assert fit(made, data, epochs=1).history[0]["loss"] == pytest.approx(plain + penalty, abs=1e-5)
    assert face(kind=SigmoidMaskIntervention).for_training()(**data[0])["loss"].item() == pytest.approx(
        plain + penalty, abs=1e-5
    )


class _Stop(Exception):
    pass


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_frozen_meanwhile_and_as_it_was_afterwards(fails):
    model = new_model("gpt2").train()
    model.transformer.h[0].eval()
    frozen, open_ = model.transformer.wte.weight, model.transformer.h[0].mlp.c_fc.weight
    frozen.requires_grad_(False)
    open_.grad = torch.ones_like(open_)
    handle = model.transformer.h[1].register_forward_hook(lambda *_: None)
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    made, seen = face(model), []

    def look(_row, _total):
        seen.append(any(m.training for m in model.modules()) or any(p.requires_grad for p in model.parameters()))
        if fails:
            raise _Stop

    made.eval()
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    if fails:
        with pytest.raises(_Stop):
            fit(made, batches(), epochs=1, progress=look)
    else:
        fit(made, batches(), epochs=1, progress=look)
    assert seen
    assert not any(seen)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(open_.grad, torch.ones_like(open_))
    assert all(p.grad is None for p in model.parameters() if p is not open_)
    assert all(p.grad is None for p in made.get_trainable_parameters())
    assert not any(one.training for one in made.interventions.values())
    handle.remove()


SCHEDULES = {
    "linear": lambda done, warmup, total: done / warmup if done < warmup else (total - done) / (total - warmup),
    "constant": lambda done, warmup, _total: min(1.0, done / warmup),
    "cosine": lambda done, warmup, total: (
        done / warmup if done < warmup else 0.5 * (1 + math.cos(math.pi * (done - warmup) / (total - warmup)))
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [3, 0.3])
def test_the_learning_rate_follows_its_schedule(name, warmup):
    rates = [row["lr"] for row in fit(face(), batches(), max_steps=10, lr=0.1, schedule=name, warmup=warmup).history]
    assert rates == pytest.approx([0.1 * SCHEDULES[name](done, 3, 10) for done in range(10)])


def test_a_step_at_rate_zero_changes_nothing():
    made = face()
    before = free_matrix(made)
    fit(made, batches(), max_steps=1, warmup=5, lr=0.1)
    assert torch.equal(free_matrix(made), before)


def test_interventions_have_learning_rates_of_their_own():
    two = [{"layer": n, "component": "block_output", "intervention_type": LowRankRotatedSpaceIntervention,
            "low_rank_dimension": 2, "group_key": 0} for n in (0, 1)]  # fmt: skip
    made, data = IntervenableModel(two, tiny("llama")), batches()
    before = [p.detach().clone() for p in made.get_trainable_parameters()]
    fit(made, data, max_steps=2, lr={"layer.1": 0.0, "": 0.1}, schedule="constant", warmup=0)
    after = made.get_trainable_parameters()
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    with pytest.raises(SpecError, match=r"no entry for 'layer\.0"):
        fit(made, data, lr={"layer.1": 0.1})
    with pytest.raises(SpecError, match=r"layer\.7"):
        fit(made, data, lr={"layer.7": 0.1, "": 0.1})


def test_an_intervention_says_which_of_its_parts_learn_faster():
    groups: list = []

    def factory(given):
        groups.extend(given)
        return torch.optim.SGD(given)

    made = face(kind=BoundlessRotatedSpaceIntervention)
    fit(made, batches(), max_steps=1, lr=0.1, optimizer=factory)
    wanted = next(iter(made.interventions.values())).parameter_groups(0.1)
    assert [group["lr"] for group in wanted] != [0.1]
    assert [[id(p) for p in group["params"]] for group in groups] == [[id(p) for p in g["params"]] for g in wanted]


def test_optimiser_and_scheduler_may_be_the_users_own():
    made = face()
    before = free_matrix(made)
    optimizer = torch.optim.SGD(made.get_trainable_parameters(), lr=0.5)
    history = fit(made, batches(), max_steps=3, optimizer=optimizer,
                  scheduler=lambda o, _n: torch.optim.lr_scheduler.ExponentialLR(o, 0.5)).history  # fmt: skip
    assert [row["lr"] for row in history] == pytest.approx([0.5, 0.25, 0.125])
    assert not torch.equal(free_matrix(made), before)


def test_temperatures_are_annealed_and_go_with_the_best_weights():
    made = face(kind=SigmoidMaskIntervention)
    (mask,) = made.interventions.values()
    seen: list = []
    values = iter([0.1, 0.9, 0.5, 0.2])
    fitted = fit(made, batches((3,)), max_steps=4, validation=batches((3,)), validate_every=1,
                 metric=lambda _l, _y: torch.tensor(0.0) if torch.is_grad_enabled() else torch.tensor(next(values)),
                 progress=lambda row, _total: seen.append((row["temperature"], mask.temperature)))  # fmt: skip
    start, end = mask.temperature_schedule
    expected = [start + (end - start) * n / 3 for n in range(4)]
    assert [one for one, _ in seen] == pytest.approx(expected)
    assert [one for _, one in seen] == pytest.approx(expected)
    assert fitted.best_step == 2
    assert mask.temperature == pytest.approx(expected[1])


@pytest.mark.parametrize(
    ("kind", "schedule"), [(SigmoidMaskIntervention, True), (LowRankRotatedSpaceIntervention, False)]
)
def test_annealing_tells_the_temperature(kind, schedule):
    made = face(kind=kind)
    (one,) = made.interventions.values()
    found = [made.for_training().anneal(done) for done in (0.0, 0.25, 1.0)]
    if not schedule:
        assert found == [None] * 3
        return
    start, end = one.temperature_schedule
    assert found == pytest.approx([start, 0.75 * start + 0.25 * end, end])
    assert one.temperature == found[-1]


def test_gradients_are_clipped():
    free, steps = [], []
    for clip in (None, 0.01):
        made = face()
        before = free_matrix(made)
        fitted = fit(made, batches((4,)), max_steps=1, clip=clip, schedule="constant", warmup=0, lr=1.0,
                     optimizer=lambda groups: torch.optim.SGD(groups))  # fmt: skip
        steps.append(fitted.history[0]["gradient"])
        free.append(free_matrix(made) - before)
    assert steps[0] == pytest.approx(steps[1])
    assert steps[0] == pytest.approx(free[0].norm().item(), rel=1e-4)
    assert free[1].norm().item() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(free[1] / 0.01, free[0] / free[0].norm(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("larger", [True, False])
def test_early_stopping_keeps_the_best_weights(larger):
    made, seen = face(), []
    scripted = [0.2, 0.5, 0.4, 0.3, 0.9, 1.0]
    values = iter(scripted if larger else [-v for v in scripted])
    fitted = fit(
        made, batches((3, 3)), epochs=6, validation=batches((2, 3), 1), patience=2, larger_is_better=larger, **PLAIN,
        metric=lambda _l, y: torch.zeros(()) if len(y) == 3 and torch.is_grad_enabled() else _scripted(values, y),
        progress=lambda row, _t: seen.append((row["validation"], free_matrix(made))),
    )  # fmt: skip
    assert fitted.stopped_early
    assert fitted.steps == 8
    assert fitted.best_step == 4
    assert fitted.validation == pytest.approx(0.5 if larger else -0.5)
    assert torch.equal(free_matrix(made), seen[3][1])
    assert not torch.equal(free_matrix(made), seen[7][1])
    assert [value is not None for value, _ in seen] == [False, True] * 4


def _scripted(values, labels):
    """Give the next value for the first validation batch, of 2, and the same again for the one of 3."""
    if len(labels) == 2:
        _scripted.value = next(values)
    return torch.full((len(labels),), _scripted.value)


def test_seeds():
    data = examples(batches((6, 6)))

    def learned(seed):
        made = face()
        fit(made, DataLoader(data, batch_size=4, shuffle=True), max_steps=4, seed=seed, **PLAIN)
        return free_matrix(made)

    numpy = np.random.get_state()[1].tolist()
    first = learned(0)
    assert np.random.get_state()[1].tolist() == numpy
    torch.manual_seed(77)
    assert torch.equal(first, learned(0))
    assert not torch.equal(first, learned(1))


def test_the_users_random_state_is_as_it_was():
    made = face()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(made, DataLoader(examples(batches()), batch_size=4, shuffle=True), max_steps=2)
    assert torch.equal(torch.rand(3), expected)


def test_mixed_precision():
    model, kinds = new_model("llama"), []
    made = face(model)
    handle = model.model.layers[2].mlp.down_proj.register_forward_hook(lambda _m, _i, out: kinds.append(out.dtype))
    fitted = fit(made, batches(), max_steps=6, autocast="bfloat16", **PLAIN)
    handle.remove()
    assert set(kinds) == {torch.bfloat16}
    assert free_matrix(made).dtype == torch.float32
    exact = fit(face(model), batches(), max_steps=6, **PLAIN)
    assert fitted.history[-1]["loss"] == pytest.approx(exact.history[-1]["loss"], rel=0.05)  # bfloat16 has 8 bits
    with pytest.raises(SpecError, match="float16"):
        fit(made, batches(), autocast="float16")


def test_a_bfloat16_model_is_aligned_in_float32():
    made = face(new_model("llama", dtype=torch.bfloat16))
    fit(made, batches(), max_steps=2, **PLAIN)
    assert free_matrix(made).dtype == torch.float32


@pytest.mark.parametrize("component", ["mlp_output", "attention_output"])
def test_gradient_checkpointing_computes_blocks_again_and_learns_the_same(component):
    learned = []
    for again in (False, True):
        model, calls = new_model("llama"), []
        torch.manual_seed(0)
        made = IntervenableModel({"layer": 0, "component": component, "low_rank_dimension": 2,
                                  "intervention_type": LowRankRotatedSpaceIntervention}, model)  # fmt: skip
        for number, block in enumerate(model.model.layers):
            block.mlp.gate_proj.register_forward_hook(lambda *_, number=number, calls=calls: calls.append(number))
        fit(made, batches((4,)), max_steps=1, gradient_checkpointing=again, memory=False, **PLAIN)
        learned.append((free_matrix(made), calls.count(0), calls.count(1), calls.count(2)))
        assert not any("forward" in vars(block) for block in model.model.layers)
    assert torch.equal(learned[0][0], learned[1][0])
    assert learned[1][1] == learned[0][1], "the edited block is not computed again: its hooks are gone by then"
    assert learned[1][2:] == tuple(count + 1 for count in learned[0][2:])


def test_checkpointing_needs_a_block_without_interventions():
    every = [{"layer": n, "component": "mlp_output", "intervention_type": LowRankRotatedSpaceIntervention,
              "low_rank_dimension": 1, "group_key": 0} for n in range(3)]  # fmt: skip
    with pytest.raises(SpecError, match="free of interventions"):
        fit(IntervenableModel(every, tiny("llama")), batches(), gradient_checkpointing=True)


def test_a_users_own_intervention_learns():
    class Scale(TrainableIntervention):
        def __init__(self, *, embed_dim, **kwargs):
            super().__init__(embed_dim=embed_dim, **kwargs)
            self.factor = nn.Parameter(torch.ones(embed_dim))

        def forward(self, base, source, subspaces=None):
            return base + (source - base) * self.factor

    made = face(kind=Scale)
    with torch.no_grad():
        made.get_trainable_parameters()[0].zero_()
    history = fit(made, batches((8,)), max_steps=25, lr=0.1, warmup=0).history
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


def test_linked_interventions_are_one():
    spec = {"component": "block_output", "intervention_type": LowRankRotatedSpaceIntervention, "low_rank_dimension": 2,
            "intervention_link_key": 0, "group_key": 0}  # fmt: skip
    made = IntervenableModel([{"layer": 0, **spec}, {"layer": 1, **spec}], tiny("llama"))
    fitted = fit(made, batches(), max_steps=2)
    assert len(fitted.weights) == 1


def test_history_rows_and_frame():
    made, totals = face(), []
    fitted = fit(made, batches(), epochs=2, progress=lambda row, total: totals.append((row["step"], total)))
    assert totals == [(n, 6) for n in range(1, 7)]
    frame = fitted.to_frame()
    assert frame["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert frame["epoch"].tolist() == [0, 0, 0, 1, 1, 1]
    told = {"loss", "metric", "validation", "lr", "temperature", "gradient", "examples_per_second"}
    assert told <= set(frame.columns)
    with pytest.raises(TypeError):
        fitted.history[0]["loss"] = 0.0


def test_the_bar_shows_loss_metric_and_throughput():
    from rich.console import Console

    stream = io.StringIO()
    with progress_bar(Console(file=stream, force_terminal=True, width=120, color_system=None)) as bar:
        fit(face(), batches(), epochs=1, validation=batches((2,)), progress=bar)
    for word in ("loss", "metric", "validation", "examples/s", "3/3"):
        assert word in stream.getvalue()


def test_mistakes_are_told():
    made, data = face(), batches()
    with pytest.raises(UnknownNameError, match="epochs"):
        fit(made, data, epoch=3)
    with pytest.raises(SpecError, match="accumulate"):
        fit(made, data, accumulate=0)
    with pytest.raises(UnknownNameError, match="lineal"):
        fit(made, data, schedule="lineal")
    with pytest.raises(SpecError, match="nothing learns"):
        fit(face(kind=VanillaIntervention), data)
    with pytest.raises(SpecError, match="'labels'"):
        fit(made, [{k: v for k, v in data[0].items() if k != "labels"}])
    with pytest.raises(SpecError, match="empty"):
        fit(made, [])
    with pytest.raises(SpecError, match="max_steps"):
        fit(made, iter(data))
    with pytest.raises(SpecError, match="once an epoch"):
        fit(made, iter(data), max_steps=5)
    with pytest.raises(SpecError, match="validation"):
        fit(made, data, validation=[])
    with pytest.raises(FitError, match="nan"):
        fit(made, data, loss=lambda logits, _labels: logits.sum() * float("nan"))
    with pytest.raises(FitError, match="depend"):
        fit(made, data, loss=lambda logits, _labels: torch.ones(len(logits)))
    with pytest.raises(SpecError, match="dict"):
        fit(made, [torch.zeros(3)])
    with pytest.raises(SpecError, match="one number"):
        fit(made, data, loss=lambda logits, _labels: logits)


def test_how_a_batch_is_run_can_be_replaced():
    """Another forward, given only what is asked: here it gives logits of its own."""
    made, asked = face(), []
    (rotation,) = made.interventions.values()

    def forward(one):
        asked.append((one.columns.column.tolist(), one.where))
        return rotation(torch.zeros(4, 1, 32), torch.ones(4, 1, 32))[:, 0]

    fit(made, batches((4,)), max_steps=1, forward=forward, loss=lambda logits, _l: logits.sum(-1))
    assert asked == [([4, 4, 4, 4], "last")]


def test_progress_true_is_the_bar(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    monkeypatch.setenv("TERM", "xterm")
    fit(face(), batches(), epochs=1, progress=True)
    assert "3/3" in capsys.readouterr().err


def test_a_classifier_that_squeezes_its_length_is_fitted_with_a_memory_as_without():
    from align_transformers.zoo import MLPConfig, create_mlp_classifier

    torch.manual_seed(0)
    model = create_mlp_classifier(MLPConfig(h_dim=6, n_layer=2, num_classes=3))[2]
    data = {"inputs_embeds": torch.randn(5, 1, 6), "source_inputs_embeds": torch.randn(5, 1, 6)}
    batch = {**data, "labels": torch.tensor([0, 1, 2, 0, 1])}
    learned = []
    for memory in (True, False):
        torch.manual_seed(1)
        turn = LowRankRotatedSpaceIntervention(embed_dim=6, low_rank_dimension=2)
        made = IntervenableModel({"layer": 0, "component": "block_output", "intervention": turn}, model)
        fit(made, [batch], epochs=4, memory=memory, **PLAIN)
        learned.append(turn.rotation.detach())
    torch.testing.assert_close(learned[0], learned[1], rtol=0, atol=1e-5)
