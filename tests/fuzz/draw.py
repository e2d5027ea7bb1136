"""From a seed to a plan with its inputs: everything that a plan can say, in small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from tests.fast.families import prompts, roll
from tests.fuzz.models import DTYPES, Place, model_of, places
from tests.helpers import VOCAB
from torch import Tensor

from align_transformers import (
    AdditionIntervention,
    CollectIntervention,
    Edit,
    NoiseIntervention,
    Plan,
    Positions,
    Read,
    Run,
    SubtractionIntervention,
    VanillaIntervention,
    ZeroIntervention,
)
from align_transformers.interventions import FunctionIntervention, Intervention
from align_transformers.plan import Constant, Logits

COLUMNS = 6
READING = ("swap", "add", "subtract")
ALONE = ("zero", "function", "noise", "collect")
_KINDS: Mapping[str, Any] = {
    "swap": VanillaIntervention,
    "add": AdditionIntervention,
    "subtract": SubtractionIntervention,
    "zero": ZeroIntervention,
    "noise": NoiseIntervention,
    "collect": CollectIntervention,
}


@dataclass(frozen=True)
class Case:
    """One plan, all that is needed to run it, and how large its passes may be.

    Args:
        architecture: of the model.
        dtype: of the model.
        plan: what is to happen.
        inputs: of the plan.
        constants: of the plan.
        most: how many tokens a pass may have; `None`: as many as memory allows.
        refusals: seed of the steps for which there is said to be no memory; `None` for none.
    """

    architecture: str
    dtype: str
    plan: Plan
    inputs: Mapping[str, Any]
    constants: Mapping[str, Tensor]
    most: float | None = None
    refusals: int | None = None

    def interventions(self) -> dict[str, Intervention]:
        """Return the interventions that the plan names: a kind, and after a space the width that it divides in two."""
        found: dict[str, Intervention] = {}
        for name in {edit.intervention for edit in self.plan.edits()}:
            kind, _, width = name.partition(" ")
            parts = [[0, int(width) // 2], [int(width) // 2, int(width)]] if width else None
            function = {"function": roll, "mixed": mixed}.get(kind)
            found[name] = FunctionIntervention(function) if function else _KINDS[kind](subspace_partition=parts)
        return found


def mixed(base: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Return the base with the means of several values added, each weighed otherwise."""
    return base + sum(source.mean(-1, keepdim=True) * (n + 1) for n, source in enumerate(sources))


def draw(architecture: str, dtype: str, seed: int) -> Case:
    """Return the case of a seed."""
    return _Drawing(architecture, dtype, Random(f"{architecture} {dtype} {seed}")).case()


class _Drawing:
    def __init__(self, architecture: str, dtype: str, random: Random) -> None:
        self.architecture, self.dtype, self.random = architecture, dtype, random
        self.places = places(architecture)
        self.apart = Random(str(random.getstate()[1][:9]))  # a stream of its own: all else is drawn as it was before it
        self.inputs: dict[str, Any] = {}
        self.runs: list[Run] = []
        self.constants: dict[str, Tensor] = {}
        self.chance = {name: random.random() < 0.5 for name in ("paths", "ends", "deep")}

    def case(self) -> Case:
        random = self.random
        whole = random.random() < 0.25
        self.texts(whole)
        if random.random() < 0.7:
            self.runs += [Run(f"clean {name}", name) for name in self.inputs if random.random() < 0.8]
        for number in range(random.randint(1, 6)):
            self.runs.append(self.run(f"run {number}"))
        if random.random() < 0.2:
            name = random.choice(list(self.inputs))
            self.runs.append(Run("clean copies", name, (), self.copies(name)))
        names = [run.name for run in self.runs]
        outputs = tuple(name for name in names if random.random() < 0.7)
        values = tuple(self.value() for _ in range(random.choice([0, 0, 1, 2])))
        outputs = outputs or (() if values else (names[-1],))
        logits = None if whole else self.logits(outputs)
        runs = tuple(reversed(self.runs)) if random.random() < 0.3 else tuple(self.runs)
        plan = Plan(runs, outputs, logits, tuple(dict.fromkeys(values)))
        most = random.choice([None, None, None, 5.0, 7.0, 13.0, 40.0])
        refusals = random.randrange(10**6) if random.random() < 0.15 else None
        return Case(self.architecture, self.dtype, plan, self.inputs, self.constants, most, refusals)

    # --- inputs -----------------------------------------------------------------------------------------------------

    def texts(self, whole: bool) -> None:
        random = self.random
        for name in "xyz"[: random.randint(1, 3)]:
            if self.inputs and random.random() < 0.35:  # equal contents, other tensors
                first = self.inputs["x"]
                self.inputs[name] = {key: v.clone() if isinstance(v, Tensor) else v for key, v in first.items()}
                continue
            lengths = tuple(random.randint(2, COLUMNS) for _ in range(random.randint(1, 3)))
            columns = COLUMNS if random.random() < 0.5 else None
            kind = "t5" if self.architecture == "t5" else "gpt2"
            text = prompts(kind, lengths, random.choice(["left", "right"]), random.randrange(1000), columns)
            if kind == "t5" and random.random() < 0.5:  # stacks of different lengths
                text["decoder_input_ids"] = text["decoder_input_ids"][:, : random.randint(2, COLUMNS)]
            self.inputs[name] = self.settings(text, whole)

    def settings(self, text: dict[str, Any], whole: bool) -> dict[str, Any]:
        random, ids = self.random, text["input_ids"]
        if bool(text["attention_mask"].all()) and random.random() < 0.3 and self.architecture != "t5":
            del text["attention_mask"]
        if random.random() < 0.2 and self.architecture != "t5":
            embed = model_of(self.architecture, self.dtype).get_input_embeddings()
            text["inputs_embeds"] = embed(text.pop("input_ids")).detach()
        if self.architecture in ("gpt2", "llama", "qwen3", "neox") and random.random() < 0.15:
            text["position_ids"] = torch.arange(ids.shape[1])[None] + random.randint(0, 3)
        if random.random() < 0.15:
            labels = text.get("decoder_input_ids", ids).clone()
            text["labels"] = labels.roll(1, 1)
        if (whole and random.random() < 0.85) or random.random() < 0.2:
            text["use_cache"] = False
        return text

    def batch(self, name: str) -> int:
        found = self.inputs[name]
        return len(found["input_ids"] if "input_ids" in found else found["inputs_embeds"])

    def length(self, name: str) -> int:
        found = self.inputs[name]
        return int((found["input_ids"] if "input_ids" in found else found["inputs_embeds"]).shape[1])

    def copies(self, name: str) -> tuple[int, ...]:
        return tuple(self.random.randrange(self.batch(name)) for _ in range(self.random.randint(1, 5)))

    def examples(self, run: Run) -> list[int]:
        return list(range(self.batch(run.input))) if run.examples is None else list(run.examples)

    def columns(self, name: str, example: int, place: Place) -> list[int]:
        given = self.inputs[name]
        if self.architecture == "t5" and place.site.stack != "encoder" and not str(place.site).startswith("encoder"):
            return list(range(given["decoder_input_ids"].shape[1]))
        if "attention_mask" in given:
            return given["attention_mask"][example].nonzero().flatten().tolist()
        tokens = given["input_ids"] if "input_ids" in given else given["inputs_embeds"]
        return list(range(tokens.shape[1]))

    # --- runs -------------------------------------------------------------------------------------------------------

    def run(self, name: str) -> Run:
        random = self.random
        given = random.choice(list(self.inputs))
        run = Run(name, given, (), self.copies(given) if random.random() < 0.4 else None)
        edits = self.shared(run) if random.random() < 0.45 else []
        edits += [self.edit(run) for _ in range(random.choice([1, 1, 1, 2, 3]))]
        edits += [edit for edit in [self.mixed(run)] if edit is not None and self.apart.random() < 0.2]
        if random.random() < 0.1:
            random.shuffle(edits)
        made = [replace(edit, name=f"{name}.{number}") for number, edit in enumerate(edits)]
        return replace(run, edits=tuple(made))

    def shared(self, run: Run) -> list[Edit]:
        """Return the first edits of an earlier run, as far as they can be made of this one."""
        others = [other for other in self.runs if other.edits and self.equal(other.input, run.input)]
        others = [other for other in others if run.examples is None or other.examples is None]
        if not others:
            return []
        other = self.random.choice(others)
        edits = list(other.edits[: self.random.randint(1, len(other.edits))])
        if other.examples is not None:
            return [edit for edit in edits if not _by_example(edit)]
        if run.examples is None:
            return edits
        edits = [edit for edit in edits if not isinstance(edit.source, tuple)]
        return [self.picked(edit, run.examples) for edit in edits]

    def equal(self, one: str, other: str) -> bool:
        a, b = self.inputs[one], self.inputs[other]
        return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a if isinstance(a[k], Tensor))

    def picked(self, edit: Edit, examples: Sequence[int]) -> Edit:
        """Return what an edit of all examples does to some of them; now and then something else."""
        source = edit.source
        if isinstance(source, Read):
            read = source.positions
            if read.rows is not None:
                one = len(self.examples(next(run for run in self.runs if run.name == source.run))) == 1
                lines = [source.examples[e] if source.examples else 0 if one else e for e in examples]
                there = Positions(_lines(read.rows, examples), _lines(read.heads, examples))
                source = replace(source, positions=there, examples=tuple(lines))
        subspace = None if edit.subspace is None else tuple(edit.subspace[e] for e in examples)
        rows = _lines(edit.positions.rows, examples)
        if rows is not None and self.random.random() < 0.2:
            rows = rows[::-1]
        positions = Positions(rows, _lines(edit.positions.heads, examples))
        return replace(edit, positions=positions, subspace=subspace, source=source)

    def place(self) -> Place:
        kind = self.random.random()
        ends = [p for p in self.places if p.site.path is None and p.site.layer is None]
        paths = [p for p in self.places if p.site.path is not None]
        if kind < 0.1 and self.chance["ends"]:
            return self.random.choice(ends)
        if kind < 0.35 and self.chance["paths"] and paths:
            return self.random.choice(paths)
        named = [p for p in self.places if p.site.layer is not None]
        if self.chance["deep"]:
            named = [p for p in named if p.site.layer] or named
        blocks = [p for p in named if "block" in (p.site.component or "")]
        return self.random.choice(blocks if self.random.random() < 0.5 else named)

    def edit(self, run: Run) -> Edit:
        random, place = self.random, self.place()
        examples = self.examples(run)
        rows = self.rows(run.input, examples, place)
        heads = self.heads(place, len(examples))
        kinds = [*ALONE, "constant"] if not self.runs else [*READING, *READING, *ALONE, "constant"]
        kind, source, subspace, name = random.choice(kinds), None, None, ""
        if kind == "constant":
            kind, source = random.choice(READING), self.constant(place, rows, heads, len(examples))
        elif kind in READING:
            source = self.read(place, rows, heads, run.input, examples)
            kind = kind if source is not None else "zero"
            read = next((one for one in self.runs if source is not None and one.name == source.run), None)
            if kind == "subtract" and read is not None and self.equal(read.input, run.input):
                kind = "add"  # what is subtracted from itself leaves rounding alone, which a norm then makes large
        if heads is None and kind in (*READING, "zero", "noise") and random.random() < 0.15 and place.width > 1:
            subspace = tuple((random.randint(0, 1),) for _ in examples)
            name = f"{kind} {place.width}"
        return Edit("", place.site, name or kind, Positions(rows, heads), subspace, source)

    def mixed(self, run: Run) -> Edit | None:
        """Return an edit that reads its own run, in an earlier block, and now and then another run, too."""
        random, state = self.apart, self.random.getstate()
        self.random = random
        place = self.place()
        same = [p for p in self.places if p.site.layer is not None and p.site.stack == place.site.stack]
        before = [p for p in same if p.sequence == place.sequence and p.site.layer < (place.site.layer or 0)]
        rows = self.rows(run.input, self.examples(run), place)
        read = self.read(place, rows, None, run.input, self.examples(run)) if self.runs else None
        self.random = Random()
        self.random.setstate(state)
        if not before or place.site.layer is None:
            return None
        own = Read(run.name, random.choice(before).site, Positions(rows))
        sources = (own, read) if read is not None and random.random() < 0.6 else (own,)
        return Edit("", place.site, "mixed", Positions(rows), None, random.choice([sources, sources[::-1]]))

    def rows(self, name: str, examples: Sequence[int], place: Place) -> Any:
        random = self.random
        if not place.sequence or random.random() < 0.15:
            return None
        columns = [self.columns(name, example, place) for example in examples]
        ragged = random.random() < 0.15
        count = random.randint(1, min(2, *map(len, columns)))
        sizes = [random.randint(0, len(real)) if ragged else count for real in columns]
        return tuple(tuple(random.sample(real, size)) for real, size in zip(columns, sizes, strict=True))

    def heads(self, place: Place, lines: int) -> Any:
        if not place.heads or not place.sequence or self.random.random() < 0.5:
            return None
        count = min(self.random.randint(1, 2), place.heads)
        return tuple(tuple(self.random.sample(range(place.heads), count)) for _ in range(lines))

    def read(self, place: Place, rows: Any, heads: Any, given: str, examples: Sequence[int]) -> Read | None:
        random = self.random
        run = random.choice(self.runs)
        same = [p for p in self.places if p.width == place.width and p.sequence == place.sequence]
        there = place if heads is not None or random.random() < 0.8 else random.choice(same)
        if rows is None:
            fit = [one for one in self.runs if self.length(one.input) == self.length(given)]
            fit = [one for one in fit if len(self.examples(one)) == len(examples)]
            return Read(random.choice(fit).name, place.site, Positions(None, heads)) if fit else None
        of_run = self.examples(run)
        wanted = rows if len(rows) > 1 else rows * len(examples)
        picked = [random.randrange(len(of_run)) for _ in examples]
        read = []
        for line, row in zip(picked, wanted, strict=True):
            columns = self.columns(run.input, of_run[line], there)
            read.append(tuple(random.choice(columns) for _ in row))
        if len(of_run) in (1, len(examples)) and random.random() < 0.3:
            lines = [0] * len(examples) if len(of_run) == 1 else range(len(examples))
            fit = [self.columns(run.input, of_run[line], there) for line in lines]
            read = [tuple(random.choice(cols) for _ in row) for cols, row in zip(fit, wanted, strict=True)]
            return Read(run.name, there.site, Positions(tuple(read), heads))
        wide = heads if heads is None or len(heads) > 1 else heads * len(examples)
        return Read(run.name, there.site, Positions(tuple(read), wide), tuple(picked))

    def constant(self, place: Place, rows: Any, heads: Any, lines: int) -> Constant:
        name, random = f"constant {len(self.constants)}", self.random
        per_head = 1 if heads is None else place.heads
        width = place.width if heads is None else place.width // per_head * len(heads[0])
        shape = random.choice([(width,), (1, 1, width), (lines, 1, width)] if place.sequence else [(width,)])
        generator = torch.Generator().manual_seed(random.randrange(10**6))
        self.constants[name] = torch.randn(shape, generator=generator).to(DTYPES[self.dtype])
        return Constant(name)

    # --- what is wanted ---------------------------------------------------------------------------------------------

    def value(self) -> Read:
        run, place = self.random.choice(self.runs), self.place()
        rows = self.rows(run.input, self.examples(run), place)
        return Read(run.name, place.site, Positions(rows, None))

    def logits(self, outputs: Sequence[str]) -> Logits:
        random = self.random
        tokens = tuple(random.sample(range(VOCAB), random.randint(1, 4))) if random.random() < 0.4 else None
        answers = ()  # in half precision rounding may change what is most probable
        if tokens is None and self.dtype == "float32" and outputs and random.random() < 0.4:
            free = [name for name in outputs if not self.needs(name, set(outputs))]
            answers = tuple(random.sample(free, random.randint(1, min(2, len(free))))) if free else ()
        at = []
        last = self.places[0]
        for name in self.inputs:
            if random.random() < 0.3:
                real = [
                    list(range(self.inputs[name]["decoder_input_ids"].shape[1]))
                    if self.architecture == "t5"
                    else self.columns(name, example, last)
                    for example in range(self.batch(name))
                ]
                at.append((name, tuple(random.choice(columns) for columns in real)))
        return Logits(tokens, tuple(at), answers)

    def needs(self, name: str, wanted: set[str]) -> bool:
        """Whether a run reads another one that is wanted, so that it could not answer before."""
        run = next(run for run in self.runs if run.name == name)
        sources = [read.run for edit in run.edits for read in edit.reads if read.run != name]
        return any(one in wanted or self.needs(one, wanted) for one in sources)


def _by_example(edit: Edit) -> bool:
    read = edit.source.positions if isinstance(edit.source, Read) else Positions()
    lines = [edit.positions.rows, edit.positions.heads, edit.subspace, read.rows, read.heads]
    return isinstance(edit.source, Constant | tuple) or any(one is not None for one in lines)


def _lines(lines: Any, examples: Sequence[int]) -> Any:
    return None if lines is None else tuple(lines[example] for example in examples)
