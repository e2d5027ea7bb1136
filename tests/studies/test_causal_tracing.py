"""Causal tracing against hooks written by hand, and its switches against each other."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from tests.fast.families import blocks, shared
from tests.helpers import VOCAB, padded_tokens, tokens
from torch import Tensor
from transformers import MarianConfig, MarianMTModel

from align_transformers import PositionError, SpecError, one_by_one
from align_transformers.studies import causal_tracing
from align_transformers.studies.causal_tracing import ROLES

DRAWS, LAYERS = 3, 3
PARTS = {
    "gpt2": {"mlp_output": "mlp", "attention_output": "attn"},
    "llama": {"mlp_output": "mlp", "attention_output": "self_attn"},
    "neox": {"mlp_output": "mlp", "attention_output": "attention"},
    "gemma2": {"mlp_output": "mlp", "attention_output": "self_attn"},
}


def module(family: str, model: Any, component: str, layer: int) -> Any:
    block = blocks(model)[layer]
    return block if component == "block_output" else block.get_submodule(PARTS[family][component])


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


class ByHand:
    """One prompt traced with plain hooks: every restoration is a whole pass over all draws."""

    def __init__(self, family: str, model: Any, inputs: dict[str, Tensor], noise: Tensor, span: list[int]) -> None:
        self.family, self.model, self.inputs, self.noise, self.span = family, model, inputs, noise, span
        self.clean = self.seen(False)
        self.corrupted = self.seen(True)

    def run(self, corrupt: bool, changes: dict[tuple[str, int], Any]) -> Tensor:
        """Return the next token's probabilities, (draws, vocab), with the outputs of modules changed."""
        count = len(self.noise) if corrupt else 1
        rows = {name: value.expand(count, -1) for name, value in self.inputs.items()}

        def corrupted(_module: Any, _args: Any, output: Tensor) -> Tensor:
            new = output.clone()
            new[:, self.span] += self.noise
            return new

        with ExitStack() as stack, torch.no_grad():
            if corrupt:
                stack.enter_context(self.model.get_input_embeddings().register_forward_hook(corrupted))
            for (component, layer), change in changes.items():

                def hook(_module: Any, _args: Any, output: Any, change: Any = change) -> Any:
                    new = first(output).clone()
                    change(new)
                    return (new, *output[1:]) if isinstance(output, tuple) else new

                stack.enter_context(module(self.family, self.model, component, layer).register_forward_hook(hook))
            return self.model(**rows).logits[:, -1].softmax(-1)

    def seen(self, corrupt: bool) -> dict[tuple[str, int], Tensor]:
        seen: dict[tuple[str, int], Tensor] = {}
        names = [(component, layer) for component in ("block_output", *PARTS[self.family]) for layer in range(LAYERS)]

        def note(name: tuple[str, int]) -> Any:
            return lambda new: seen.update({name: new.clone()})

        self.run(corrupt, {name: note(name) for name in names})
        return seen

    def restored(self, component: str, near: range, at: int, severed: list[str], everywhere: bool) -> Tensor:
        def put(source: Tensor, where: Any) -> Any:
            def change(new: Tensor) -> None:
                new[:, where] = source[:, where]

            return change

        changes = {(component, layer): put(self.clean[component, layer], at) for layer in near}
        where = slice(None) if everywhere else at
        for held in severed:
            for layer in range(near.stop, LAYERS):
                changes[held, layer] = put(self.corrupted[held, layer], where)
        return self.run(True, changes)


def drawn(model: Any, spans: list[list[int]], ids: list[Tensor], level: float, seed: int) -> list[Tensor]:
    with torch.no_grad():
        embedded = [model.get_input_embeddings()(one)[0, span] for one, span in zip(ids, spans, strict=True)]
    deviation = level * torch.cat(embedded).std()
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(DRAWS, len(s), e.shape[-1], generator=generator) * deviation
        for s, e in zip(spans, embedded, strict=True)
    ]


@pytest.mark.parametrize(
    ("severed", "everywhere"),
    [([], False), (["mlp_output"], False), (["mlp_output"], True), (["attention_output", "mlp_output"], True)],
    ids=["whole", "mlp at the token", "mlp", "both"],
)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", list(PARTS))
def test_every_cell_is_what_hooks_give(family, side, everywhere, severed):
    model, inputs, spans = shared(family), padded_tokens((6, 4), side, 3), [[1, 2], [1]]
    from_end = [[-5, -4], [-3]]  # a number from 0 of tokens that are padded on the left might be a column, too
    table = causal_tracing(
        model, inputs, from_end, components=[c for c in ("block_output", *PARTS[family]) if c not in severed],
        window={"mlp_output": 2, "attention_output": 3}, draws=DRAWS, seed=5, severed=severed,
        severed_at="all" if everywhere else "restored",
    )  # fmt: skip
    alone = [inputs["input_ids"][n][inputs["attention_mask"][n].bool()][None] for n in range(2)]
    noise = drawn(model, spans, alone, 3.0, 5)
    windows = {"block_output": 1, "mlp_output": 2, "attention_output": 3}
    assert len(table) == (3 - len(severed)) * LAYERS * (6 + 4)
    for prompt in range(2):
        hand = ByHand(family, model, {"input_ids": alone[prompt]}, noise[prompt], spans[prompt])
        clean, corrupted = hand.run(False, {})[0], hand.run(True, {})
        answer = int(clean.argmax())
        assert table.meta["clean"][prompt] == pytest.approx(float(clean[answer]), rel=1e-4)
        assert table.meta["corrupted"][prompt] == pytest.approx(float(corrupted[:, answer].mean()), rel=1e-4)
        for row in table.select(where={"prompt": prompt}).rows():
            width = windows[row["component"]]
            near = range(max(0, row["layer"] - width // 2), min(LAYERS, row["layer"] + (width + 1) // 2))
            found = hand.restored(row["component"], near, row["position"], severed, everywhere)[:, answer]
            assert row["restored"] == pytest.approx(float(found.mean()), rel=2e-4, abs=1e-6)
            effect = float((found - corrupted[:, answer]).mean())
            assert row["indirect_effect"] == pytest.approx(effect, rel=2e-3, abs=1e-6)
            assert row["low"] <= row["indirect_effect"] + 1e-9
            assert row["indirect_effect"] <= row["high"] + 1e-9


def test_both_planners_say_the_same_and_the_usual_one_does_less():
    model, inputs = shared("gpt2"), tokens(2, 5, 1)
    options: dict[str, Any] = {"draws": 2, "window": 2}
    table = causal_tracing(model, inputs, [1, 2], **options)
    plain = causal_tracing(model, inputs, [1, 2], planner=one_by_one, **options)
    for row, other in zip(table.rows(), plain.rows(), strict=True):
        assert row["restored"] == pytest.approx(other["restored"], rel=1e-4, abs=1e-7)
    assert plain.meta["passes"] == {"full": 2 + 3 * LAYERS}
    assert table.meta["passes"]["full"] == 2
    assert "packed" in table.meta["passes"]


def test_without_noise_nothing_is_lost_and_with_all_restored_nothing_is_missing():
    model, inputs = shared("llama"), tokens(1, 5, 1)
    table = causal_tracing(model, inputs, [1], noise=0.0, draws=2, components=["block_output"])
    assert table.meta["total_effect"] == pytest.approx([0.0], abs=1e-6)
    assert table.columns["indirect_effect"] == pytest.approx([0.0] * len(table), abs=1e-6)
    table = causal_tracing(model, inputs, [1], draws=2, components=["block_output"])
    last = table.select(where={"layer": LAYERS - 1, "position": 4})
    assert last.columns["indirect_effect"] == pytest.approx(table.meta["total_effect"], rel=1e-4)


def test_another_prompt_may_stand_for_the_noise():
    model, (one, other) = shared("neox"), (tokens(2, 5, seed) for seed in (1, 2))
    table = causal_tracing(model, one, [1], counterfactual=other, components=["block_output"], window=1)
    with torch.no_grad():
        answers = model(**one).logits[:, -1].argmax(-1)
        gone = model(**other).logits[:, -1].softmax(-1).gather(1, answers[:, None])[:, 0]
        whole = model(**one, output_hidden_states=True).hidden_states
    assert table.meta["corrupted"] == pytest.approx(gone.tolist(), rel=1e-4)
    assert table.meta["noise"] is None

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        new = first(output).clone()
        new[:, 2] = whole[2][:, 2]
        return (new, *output[1:]) if isinstance(output, tuple) else new

    with torch.no_grad(), blocks(model)[1].register_forward_hook(hook):
        found = model(**other).logits[:, -1].softmax(-1).gather(1, answers[:, None])[:, 0]
    rows = list(table.select(where={"layer": 1, "position": 2}).rows())
    assert [row["restored"] for row in rows] == pytest.approx(found.tolist(), rel=1e-4)
    assert [row["low"] for row in rows] == [None, None]


def test_seeds_and_levels_are_what_they_say():
    model, inputs = shared("gpt2"), tokens(1, 5, 1)
    options: dict[str, Any] = {"draws": 2, "components": ["block_output"], "layers": [0], "positions": [1]}
    values = [causal_tracing(model, inputs, [1, 2], seed=seed, **options).columns["restored"][0] for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    with torch.no_grad():
        level = float(model.get_input_embeddings()(inputs["input_ids"])[0, [1, 2]].std())
    relative = causal_tracing(model, inputs, [1, 2], noise=2.0, **options)
    absolute = causal_tracing(model, inputs, [1, 2], noise=2.0 * level, absolute=True, **options)
    assert relative.meta["noise"] == pytest.approx(2.0 * level)
    assert relative.columns["restored"] == pytest.approx(absolute.columns["restored"], rel=1e-5)


def test_every_token_is_told_what_it_is_to_the_subject():
    model, inputs = shared("gpt2"), tokens(1, 9, 1)
    table = causal_tracing(model, inputs, [2, 3, 4], draws=1, components=["block_output"], layers=[0])
    before, begin, middle, end, then, more, last = (ROLES[n] for n in (6, 0, 1, 2, 3, 4, 5))
    assert list(table.columns["role"]) == [before, before, begin, middle, end, then, more, more, last]


def test_an_encoder_decoder_is_traced_in_its_encoder():
    model = shared("t5")
    inputs = tokens(1, 5, 1)
    table = causal_tracing(model, inputs, [1], components=["encoder.block_output"], draws=2, noise=5.0)
    assert len(table) == 5 * LAYERS
    everything = causal_tracing(
        model, inputs, [1], components=["encoder.block_output"], draws=2, noise=5.0, planner=one_by_one
    )
    assert table.columns["restored"] == pytest.approx(everything.columns["restored"], rel=1e-4)
    assert any(abs(effect) > 1e-4 for effect in table.columns["indirect_effect"])


def test_what_makes_no_sense_is_refused_before_a_pass():
    model, inputs = shared("gpt2"), tokens(2, 5, 1)
    calls: list[int] = []
    with model.register_forward_pre_hook(lambda *_: calls.append(1)):
        for options, error, message in (
            ({"subject": "Spain"}, SpecError, "give tokenizer="),
            ({"subject": [9]}, PositionError, "position 9 does not exist"),
            ({"subject": [[1], [1], [1]]}, SpecError, "subject names 3 prompts, but there are 2"),
            ({"draws": 0}, SpecError, "draws a number from 1"),
            ({"window": 0}, SpecError, "window is a number of layers from 1"),
            ({"severed": ["mlp_output"]}, SpecError, "restored and severed"),
            ({"counterfactual": tokens(2, 6, 1)}, SpecError, "numbers of tokens"),
        ):
            with pytest.raises(error, match=message):
                causal_tracing(model, inputs, **{"subject": [1], **options})  # type: ignore[arg-type]
        assert calls == []
        with pytest.raises(SpecError, match="3 answers for 2 prompts"):
            causal_tracing(model, inputs, [1], answers=[1, 2, 3])
    assert int(inputs["input_ids"].max()) < VOCAB


def test_a_model_that_takes_its_own_embeddings_for_something_else_is_refused():
    # Marian multiplies what it looks up for tokens, and takes embeddings as they are: without noise the runs differ.
    small = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "pad_token_id": 0, "vocab_size": VOCAB}
    heads = {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    layers = {f"{side}_layers": 1 for side in ("encoder", "decoder")}
    config = MarianConfig(**small, **heads, **layers, scale_embedding=True, decoder_start_token_id=0, init_std=0.5)
    model, inputs = MarianMTModel(config).eval(), tokens(1, 5, 1)
    options: dict[str, Any] = {"components": ["encoder.block_output"], "draws": 1}
    with pytest.raises(SpecError, match="other logits of its own embeddings"):
        causal_tracing(model, inputs, [1], noise=0.0, **options)
    assert causal_tracing(model, inputs, [1], counterfactual=tokens(1, 5, 2), **options).meta["draws"] == 1


def test_other_prompts_padded_on_the_other_side_are_refused():
    # Their columns are not those of the prompts: the token at the column of a prompt's first may be their last.
    one, other = (padded_tokens((5, 3), side, seed=3) for side in ("left", "right"))
    with pytest.raises(SpecError, match="padded on the side"):
        causal_tracing(shared("llama"), one, [-2], positions=[-3], counterfactual=other)
