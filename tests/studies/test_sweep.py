"""The shared sweep: what is between clean runs and cells, dividing, another process, and when the scorer is made."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import weakref
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.helpers import LAYERS, VOCAB, counted, new_model, tiny, tokens

from align_transformers import (
    Edit,
    Logits,
    Positions,
    Read,
    Run,
    Site,
    SpecError,
    VanillaIntervention,
    ZeroIntervention,
    execute,
    one_by_one,
    planned,
)
from align_transformers.studies import CellRun, Clean, Scorer, Sweep, _sweep

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Plain(Scorer):
    """The logits of a cell as they are."""

    clean: Clean

    def rows(self, found):
        for logits, line in zip(found.logits.tolist(), range(len(found.cells)), strict=True):
            yield {"logits": logits, "changes": [effect.changes[line] for effect in found.effects]}

    def meta(self):
        logits = {name: x.tolist() for name, x in self.clean.logits.items()}
        return {"tokens": self.clean.tokens, "clean": logits, "says": self.clean.says}


def zeroes(**changes) -> Sweep:
    """Zero ablation of one block's MLP at each position of two prompts; the second clean run is edited itself."""
    cells = [(prompt, place) for prompt in range(2) for place in range(4)]
    site, examples = Site("mlp_output", 1), tuple(prompt for prompt, _ in cells)
    edit = Edit("zero", site, "zero", Positions(tuple((place,) for _, place in cells)))
    runs = (CellRun(Run("cells", "x", (edit,), examples), tuple({"prompt": p, "position": at} for p, at in cells)),)
    off = Edit("off", Site("mlp_output", 0), "zero", Positions(((3,), (3,))))
    clean = (Run("as it is", "x"), Run("off", "x", (off,)))
    sweep = Sweep("zeroes", {"x": tokens(2, 4)}, clean, runs, {"zero": ZeroIntervention()}, Plain)
    return replace(sweep, **changes)


@torch.no_grad()
def by_hand(model, prompt: int, layer: int, place: int) -> torch.Tensor:
    """The last logits with one MLP output zeroed at one place."""

    def zero(_module, _args, output):
        new = output.clone()
        new[:, place] = 0
        return new

    ids = tokens(2, 4)["input_ids"][prompt : prompt + 1]
    with model.model.layers[layer].mlp.register_forward_hook(zero):
        return model(ids).logits[0, -1]


@pytest.mark.parametrize("planner", [one_by_one, planned], ids=["one_by_one", "planned"])
@torch.no_grad()
def test_logits_of_all_of_some_and_of_the_answers(planner):
    model = tiny("llama")
    full = zeroes().table(model, planner=planner)
    for row in full.rows():
        assert row["logits"] == pytest.approx(by_hand(model, row["prompt"], 1, row["position"]).tolist(), abs=1e-4)
    plain = model(**tokens(2, 4)).logits[:, -1]
    off = torch.stack([by_hand(model, prompt, 0, 3) for prompt in range(2)])
    assert torch.allclose(torch.tensor(full.meta["clean"]["as it is"]), plain, atol=1e-4)
    assert torch.allclose(torch.tensor(full.meta["clean"]["off"]), off, atol=1e-4)
    says = tuple(dict.fromkeys(plain.argmax(-1).tolist()))
    for logits, columns in ((Logits((7, 3)), (7, 3)), (Logits(answers_of=("as it is",)), says)):
        some = zeroes(logits=logits).table(model, planner=planner)
        assert tuple(some.meta["tokens"]) == columns
        answers = {name: plain.argmax(-1).tolist() for name in logits.answers_of}
        assert {name: list(said) for name, said in some.meta["says"].items()} == answers
        for few, all_ in zip(some.rows(), full.rows(), strict=True):
            assert few["logits"] == pytest.approx([all_["logits"][token] for token in columns], abs=1e-4)
            assert few["changes"] == pytest.approx(all_["changes"], rel=1e-5)
        for name in ("as it is", "off"):
            expected = torch.tensor(full.meta["clean"][name])[:, list(columns)]
            assert torch.allclose(torch.tensor(some.meta["clean"][name]), expected, atol=1e-4)


def path(cells: int) -> CellRun:
    """A run that is edited where another one, edited before it, is read: a path from an MLP to the next block."""
    where = tuple((line % 4,) for line in range(cells))
    examples = tuple(line % 2 for line in range(cells))
    sender = Edit("send", Site("mlp_output", 0), "zero", Positions(where))
    read = Read("sender", Site("mlp_output", 1), Positions(where))
    receiver = Edit("take", Site("mlp_output", 1), "swap", Positions(where), source=read)
    run = Run("receiver", "x", (receiver,), examples)
    return CellRun(run, tuple({"line": line} for line in range(cells)), (Run("sender", "x", (sender,), examples),))


@pytest.mark.parametrize("most", [3, 5, 100])
@torch.no_grad()
def test_runs_between_are_divided_with_the_cells(monkeypatch, most):
    model, ids = tiny("llama"), tokens(2, 4)["input_ids"]
    monkeypatch.setattr(sys.modules["align_transformers.studies._sweep"], "_HELD", most)
    monkeypatch.setattr(sys.modules["align_transformers.studies._sweep"], "_CLEAN", 0)
    interventions = {"zero": ZeroIntervention(), "swap": VanillaIntervention()}
    sweep = zeroes(runs=(path(8),), interventions=interventions, clean=(Run("as it is", "x"),))
    table = sweep.table(model)
    assert [row["line"] for row in table.rows()] == list(range(8))
    for row in table.rows():
        example, place, seen = row["line"] % 2, row["line"] % 4, []

        def zero(_module, _args, output, place=place):
            return torch.cat([output[:, :place], output[:, place : place + 1] * 0, output[:, place + 1 :]], 1)

        def take(_module, _args, output, place=place, seen=seen):
            return torch.cat([output[:, :place], seen[0][:, place : place + 1], output[:, place + 1 :]], 1)

        one, layers = ids[example : example + 1], model.model.layers
        look = layers[1].mlp.register_forward_hook(lambda m, a, output, seen=seen: seen.append(output))
        with layers[0].mlp.register_forward_hook(zero), look:
            model(one)
        with layers[1].mlp.register_forward_hook(take):
            assert row["logits"] == pytest.approx(model(one).logits[0, -1].tolist(), abs=1e-4)


def test_a_part_has_the_lines_of_its_cells():
    whole = path(6)
    part = whole.part(2, 5)
    assert whole.part(0, 6) is whole
    assert (len(part), part.cells) == (3, whole.cells[2:5])
    assert part.run.examples == part.through[0].examples == whole.run.examples[2:5]
    (edit,) = part.run.edits
    assert edit.positions.rows == edit.source.positions.rows == whole.run.edits[0].positions.rows[2:5]
    assert (part.run.name, edit.name, edit.source.run) == ("receiver [2:5]", "take [2:5]", "sender [2:5]")
    assert part.through[0].name == edit.source.run


def test_lines_that_are_not_cells_are_refused():
    with pytest.raises(SpecError, match="run 'r' has 2 examples for 1 cells"):
        CellRun(Run("r", "x", (), (0, 0)), ({},))
    read = Edit("swap", Site("mlp_output", 0), "swap", source=Read("clean", Site("mlp_output", 0)))
    with pytest.raises(SpecError, match="reads run 'clean': of a run in `through`"):
        CellRun(Run("r", "x", (read,), (0,)), ({},))


def test_the_scorer_is_made_before_the_first_cell():
    model = tiny("llama")

    def refuse(clean):
        assert clean.logits["as it is"].shape == (2, VOCAB)
        assert len(clean.says["as it is"]) == 2
        raise SpecError("nothing to tell apart")

    with counted(model) as calls, pytest.raises(SpecError, match="nothing to tell apart"):
        zeroes(scorer=refuse, clean=(Run("as it is", "x"),)).table(model)
    assert calls == [2]  # the clean prompts, and not the eight cells


class Largest(Plain):
    """The largest two logits of a cell, which is all that is kept."""

    seen: list = []  # noqa: RUF012

    def kept(self, logits):
        assert (logits.dtype, logits.shape[1]) == (torch.float32, VOCAB)
        self.seen.append(weakref.ref(logits))
        return logits.topk(2).values

    def rows(self, found):
        gc.collect()
        yield from ({"alive": sum(one() is not None for one in self.seen), **row} for row in super().rows(found))


@pytest.mark.parametrize("planner", [one_by_one, planned], ids=["one_by_one", "planned"])
@pytest.mark.parametrize("most", [2, 100])
def test_what_a_scorer_does_not_keep_is_let_go_of_as_passes_end(planner, most, monkeypatch):
    monkeypatch.setattr(_sweep, "_HELD", most)
    monkeypatch.setattr(_sweep, "_CLEAN", 0)
    model = tiny("llama")
    plain = zeroes().table(model, planner=planner)
    clean = zeroes().clean
    for runs, waits in ((clean[:1], False), (clean, True)):  # an edited clean run may come last
        Largest.seen.clear()
        table = zeroes(clean=runs, scorer=Largest).table(model, planner=planner)
        for row, whole in zip(table.rows(), plain.rows(), strict=True):
            assert row["logits"] == pytest.approx(sorted(whole["logits"])[:-3:-1], abs=1e-4)
            assert row["changes"] == pytest.approx(whole["changes"], abs=1e-4)
        assert len(table.meta["clean"]["as it is"][0]) == VOCAB
        assert waits or set(table.columns["alive"]) == {0}
        assert len(Largest.seen) >= 8 // min(most, 8)


def test_a_later_part_knows_the_answers(monkeypatch):
    monkeypatch.setattr(sys.modules["align_transformers.studies._sweep"], "_HELD", 3)
    monkeypatch.setattr(sys.modules["align_transformers.studies._sweep"], "_CLEAN", 0)
    model, sweep, wanted = tiny("llama"), zeroes(logits=Logits(answers_of=("as it is",))), []

    def watch(bound, planner=None, **options):
        wanted.append(bound.plan.logits)
        return execute(bound, planner, **options)

    monkeypatch.setattr(sys.modules["align_transformers.studies._sweep"], "execute", watch)
    table = sweep.table(model)
    assert wanted == [sweep.logits, *[Logits(tuple(table.meta["tokens"]))] * 2]


def test_a_sweep_is_sent_to_another_process(tmp_path):
    (tmp_path / "sweep").write_bytes(pickle.dumps(zeroes(scorer=partial(Plain))))
    code = (
        "import pickle, sys\n"
        "from pathlib import Path\n"
        "from tests.helpers import new_model\n"
        "sweep = pickle.loads(Path(sys.argv[1], 'sweep').read_bytes())\n"
        "model = new_model('llama')\n"
        "(runs,) = sweep.parts(model, stored=False)\n"
        "sweep.part(model, runs).save(Path(sys.argv[1], 'part.json'))\n"
    )
    paths = f"{ROOT}:{ROOT / 'src'}"
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, env={"PYTHONPATH": paths})
    from align_transformers import Table

    here = zeroes().table(new_model("llama"))
    there = Table.load(tmp_path / "part.json")
    assert there.columns["logits"] == here.columns["logits"]
    assert there.meta["passes"] == here.meta["passes"]
    assert LAYERS == 3
