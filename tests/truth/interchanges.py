"""Causal models of the compiled programs, found through interchanges in a basis that is hidden behind a rotation.

For each program a causal model with the variables that its compilation has, and the places where they are carried; and
one that gives the same answers in another way, mostly as a machine would that reads from left to right. The search is
for both, and must find the first where it is, as the subspace that it is, and refute the second: it does no better than
all of the stream there does by chance.

Fits are to the network's own logits after a true interchange. These depend on the answer alone (to 1e-5), so that the
answer's clean logits are taken. The accuracy is 1 long before the subspace is right; the squared error is not. One
spot is too hard: behind sort's first block a letter's key stands beside the letter, and always varies with it. The
pairs tell them apart (the letter's own coordinates have an IIA of 1); no fit got there, of any number of steps.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from align_transformers import AlignmentResult, CausalModel, CounterfactualDataset, IntervenableModel, align

from .compiled import PROGRAMS, Compiled, hidden, load, texts
from .fact import Fact
from .searches import along, found, most, one, overview

LENGTH = 5
LETTERS = tuple(f"l{n}" for n in range(LENGTH))
LAST = str(LENGTH - 1)
Spot = tuple[str, int, str]
"""Component, layer, and which letter."""


@dataclass(frozen=True)
class Claim:
    """A causal model of a program, and what is known of its variables.

    Args:
        causal_model: of five letters; its output is the answer at the last one.
        variables: that are searched for, with the spots where they are: none for a false model.
        rank: how many dimensions they have.
        coordinates: the coordinates that carry a variable at a spot where nothing else varies with it.
        hard: spots of a variable where something that always varies with it does harm: no method finds them.
    """

    causal_model: CausalModel
    variables: Mapping[str, frozenset[Spot]]
    rank: int
    coordinates: Mapping[tuple[str, Spot], str] = field(default_factory=dict)
    hard: frozenset[tuple[str, Spot]] = frozenset()


def _model(letters: str, parents: Mapping[str, list[str]], functions: Mapping[str, Callable[..., Any]]) -> CausalModel:
    return CausalModel([*LETTERS, *parents], dict.fromkeys(LETTERS, letters and list(letters)), parents, functions)


def _spots(text: str) -> frozenset[Spot]:
    each = (one.split() for one in text.split(", "))
    return frozenset((f"{component}_output", int(layer), place) for component, layer, place in each)


def _share(*crosses: Any) -> int:
    return sum(crosses)


def _count(*text: str) -> int:
    return text.count(text[-1])


def _largest(*letters: str) -> int:
    return max(range(len(letters)), key=lambda n: (letters[n], n))


IS_X = [f"is_{n}" for n in range(LENGTH)]
VALUES = [f"value_{n}" for n in range(LENGTH)]
COUNTED = "hist_10_selector_width_attn_output"


@cache
def claims(name: str) -> tuple[Claim, Claim]:
    """Return the true causal model of a program, and a false one."""
    letters = PROGRAMS[name].letters
    if name == "frac_prevs":
        each = {one: [letter] for one, letter in zip(IS_X, LETTERS, strict=True)}
        functions = dict.fromkeys(IS_X, lambda letter: int(letter == "x"))
        true = _model(letters, {**each, "share": IS_X}, {**functions, "share": _share})
        running = {**each, "so_far": IS_X[:3], "share": ["so_far", *IS_X[3:]]}
        false = _model(letters, running, {**functions, "so_far": _share, "share": _share})
        where = {"is_2": _spots("mlp 0 2, block 0 2"), "share": _spots("attention 1 4, block 1 4")}
        exact = {("is_2", ("mlp_output", 0, "2")): "map_", ("share", ("attention_output", 1, "4")): "frac_prevs"}
        return Claim(true, where, 1, exact), Claim(false, {"so_far": frozenset()}, 1)
    if name == "hist":
        true = _model(letters, {"count": [*LETTERS]}, {"count": _count})
        halves = {"so_far": [*LETTERS[:3], LETTERS[4]], "count": ["so_far", *LETTERS[3:]]}
        false = _model(
            letters,
            halves,
            {"so_far": lambda *text: _count(*text) - 1, "count": lambda n, *text: n + _count(*text)},
        )
        where = {"count": _spots("attention 0 4, mlp 0 4, block 0 4")}
        exact = {("count", ("attention_output", 0, "4")): COUNTED}
        return Claim(true, where, 4, exact), Claim(false, {"so_far": frozenset()}, 4)
    if name == "reverse":
        true = _model(letters, {"first": ["l0"], "said": ["first", *LETTERS[1:]]}, _SAYS_FIRST)
        sums = {"sum": ["l0", "l4"], "said": ["sum", *LETTERS[1:]]}
        false = _model(letters, sums, {"sum": _turned(1), "said": lambda sum, *text: _turned(-1)(sum, text[-1])})
        where = {"first": _spots("block 0 0, block 1 0, block 2 0, attention 3 4, block 3 4")}
        exact = {("first", ("attention_output", 3, "4")): "reverse_", ("first", ("block_output", 2, "0")): "tokens:"}
        return Claim(true, where, 3, exact), Claim(false, {"sum": frozenset()}, 3)
    values = {one: [letter] for one, letter in zip(VALUES, LETTERS, strict=True)}
    functions = dict.fromkeys(VALUES, lambda letter: letter)
    chosen = {**values, "largest": [*LETTERS], "said": ["largest", *VALUES]}
    true = _model(letters, chosen, {**functions, "largest": _largest, "said": lambda n, *each: each[n]})
    running = {"so_far": [*LETTERS[:3]], "said": ["so_far", *LETTERS[3:]]}
    false = _model(letters, running, {"so_far": lambda *each: max(each), "said": lambda *each: max(each)})
    where = {"value_2": _spots("block 0 2, block 1 2"), "said": _spots("attention 2 4, block 2 4")}
    beside_its_key = frozenset({("value_2", ("block_output", 0, "2"))})
    made = Claim(true, where, 4, {("said", ("attention_output", 2, "4")): "sort_"}, beside_its_key)
    return made, Claim(false, {"so_far": frozenset()}, 4)


_SAYS_FIRST = {"first": lambda letter: letter, "said": lambda first, *_: first}


def _turned(sign: int) -> Callable[[str, str], str]:
    """Return the sum or difference of two letters, modulo 4."""
    return lambda one, other: "abcd"[("abcd".index(one) + sign * "abcd".index(other)) % 4]


def classes(here: Compiled) -> list[Any]:
    """Return what the answer may be, in the order of the logits."""
    if len(here.outputs) == 1:
        return list(range(LENGTH + 1))
    names = [name.rpartition(":")[2] for name in here.outputs]
    return [int(name) if here.program.run is PROGRAMS["hist"].run else name for name in names]


def classifying(here: Compiled) -> nn.Module:
    """Return a program's model with a logit for each answer: of a number x, 2 k x - k^2, largest for the nearest k."""
    if len(here.outputs) > 1:
        return here.model
    model = copy.deepcopy(here.model)
    shares = torch.arange(LENGTH + 1) / LENGTH
    model.unembedding = nn.Linear(len(here.labels), LENGTH + 1)
    model.unembedding.weight = nn.Parameter(2 * shares[:, None] * here.model.unembedding.weight, requires_grad=False)
    model.unembedding.bias = nn.Parameter(-(shares**2), requires_grad=False)
    return model


class Own:
    """The squared distance to the network's own logits for an answer.

    Args:
        here: the program.
        causal_model: says the answers.
    """

    def __init__(self, here: Compiled, causal_model: CausalModel) -> None:
        self.by_answer = torch.zeros(len(classes(here)), len(classes(here)))
        given = list(itertools.product(here.program.letters, repeat=LENGTH))
        settings = {letter: [text[n] for text in given] for n, letter in enumerate(LETTERS)}
        (output,) = causal_model.outputs
        answers = [classes(here).index(one) for one in causal_model.run_many(settings)[output].tolist()]
        self.by_answer[answers] = classifying(here)(here.tokens(given)).logits[:, -1]

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return it, a row an example."""
        return (logits - self.by_answer[labels]).square().sum(-1)


@cache
def searched(name: str, right: bool) -> AlignmentResult:
    """Search every layer and letter of a program whose basis is hidden, under its true causal model or a false one.

    Under the false one of the stream alone: all that its parts write is there.
    """
    how = {} if right else {"sites": "block_output"}
    return search(hidden(name)[0], claims(name)[0 if right else 1], **how)


def search(here: Compiled, claim: Claim, size: int = 6000, **how: Any) -> AlignmentResult:
    """Search a compiled program for the variables of a claim."""
    kinds, variables = classes(here), list(claim.variables)
    balanced = None if here.program is PROGRAMS["sort"] else "label"  # the answer 1 is that of a single text
    data = CounterfactualDataset.sample(claim.causal_model, size, variables=variables, balanced=balanced, seed=0)
    learned = {"methods": ("das", "probe"), "ranks": claim.rank, "max_steps": 80, "lr": 0.03, "controls": ("full",)}
    return align(
        classifying(here),
        claim.causal_model,
        data,
        encode=lambda setting: here.tokens([[setting[letter] for letter in LETTERS]])[0],
        label=kinds.index,
        positions={str(n): 1 + n for n in range(LENGTH)},
        loss=Own(here, claim.causal_model),
        **{"sites": ["attention_output", "mlp_output", "block_output"], **learned, **how},
    )


@cache
def coordinates() -> AlignmentResult:
    """Swap each coordinate of frac_prevs' stream behind the first block, at every letter, in the basis that it has."""
    here = load("frac_prevs")
    each = {label: along(torch.eye(len(here.labels))[:, [n]]) for n, label in enumerate(here.labels)}
    only = replace(claims("frac_prevs")[0], variables={"is_2": frozenset()})
    return search(here, only, sites="block_output", layers=[0], methods=each, controls=(), size=2000)


WORKS = 0.99


def spots(name: str) -> tuple[set[Any], set[Any]]:
    """Return at which spots a search found variables, and where they are; those that are too hard are in neither."""
    claim = claims(name)[0]
    found_at = {
        (row["variables"], (row["component"], row["layer"], row["place"]))
        for row in searched(name, True).table.rows()
        if (row["iia"] or 0.0) >= WORKS
    }
    return found_at - claim.hard, {
        (variable, spot) for variable, of in claim.variables.items() for spot in of
    } - claim.hard


def precision(name: str) -> float:
    """Return the share of spots found that are right."""
    found_at, true = spots(name)
    return len(found_at & true) / max(1, len(found_at))


def recall(name: str) -> float:
    """Return the share of true spots that were found."""
    found_at, true = spots(name)
    return len(found_at & true) / len(true)


@cache
def exact(name: str) -> tuple[float, float]:
    """Return how far the subspaces found are off, at most: in squares of logits, and as projectors on what they carry.

    At each spot where only the variable varies, the method is taken that comes nearest to the logits.
    """
    worst = [
        min(_off(name, variable, spot, finding.candidate.intervention) for finding in _findings(name, variable, spot))
        for variable, spot in claims(name)[0].coordinates
    ]
    return max(one[0] for one in worst), max(one[1] for one in worst)


def _findings(name: str, variable: str, spot: Spot) -> list[Any]:
    wanted = dict(zip(("component", "layer", "place"), spot, strict=True))
    result = searched(name, True)
    rows = zip(result.table.rows(), result.findings, strict=True)
    return [of for row, of in rows if row["variables"] == variable and wanted.items() <= row.items()]


def _off(name: str, variable: str, spot: Spot, intervention: Any) -> tuple[float, float]:
    """Compare an intervention on the hidden program with a swap of known coordinates in the program as it is."""
    here, turned = load(name), hidden(name)[0]
    component, layer, place = spot
    own, true = _carrying(name, claims(name)[0].coordinates[variable, spot])
    base, source = (here.tokens(list(texts(name, 200, seed))) for seed in (1, 2))
    spec = {"component": component, "layer": layer, "intervention": intervention}
    places = {"sources->base": 1 + int(place)}
    made = IntervenableModel(spec, classifying(turned))
    _, output = made({"input_ids": base}, {"input_ids": source}, places)
    errors = output.logits[:, -1] - _by_hand(classifying(here), spot, own, base, source)
    swapped = intervention.rotation.detach()
    return errors.square().sum(-1).mean().item(), (swapped @ (swapped.T @ true) - true).norm().item()


def _carrying(name: str, stem: str) -> tuple[list[int], Tensor]:
    """Return coordinates of the stream by the stem of their labels, and in the hidden basis what they vary in."""
    unused, rotation = ("tokens:BOS", "tokens:compiler_pad"), hidden(name)[1]
    own = [n for n, label in enumerate(load(name).labels) if label.startswith(stem) and label not in unused]
    columns = rotation[:, own] - rotation[:, own].mean(1, keepdim=True) * (len(own) > 1)
    left, values, _ = torch.linalg.svd(columns, full_matrices=False)
    return own, left[:, values > 1e-4]


def _by_hand(model: nn.Module, spot: Spot, own: list[int], base: Tensor, source: Tensor) -> Tensor:
    """Return the logits at the last letter after a swap of some coordinates, by hooks."""
    component, layer, place = spot
    block, at = model.blocks[layer], 1 + int(place)
    module = {"attention_output": block.attention, "block_output": block}.get(component) or block.mlp
    seen: list[Tensor] = []
    with module.register_forward_hook(lambda _, given, output: seen.append(output)):
        model(source)

    def swap(_: nn.Module, given: Any, output: Tensor) -> Tensor:
        new = output.clone()
        new[:, at, own] = seen[0][:, at, own]
        return new

    with module.register_forward_hook(swap):
        return model(base).logits[:, -1]


def _false(name: str, column: str) -> float:
    (row,) = found(searched(name, False), chosen=True)
    return float(row[column])


def _apart(name: str) -> float:
    low = min(row["low"] for row in found(searched(name, True), chosen=True))
    return float(low - most(list(searched(name, False).table.rows()), "high"))


def _beside_its_key() -> float:
    ((variable, (component, layer, place)),) = claims("sort")[0].hard
    return most(found(searched("sort", True), variables=variable, component=component, layer=layer, place=place))


def _known_beside_its_key() -> float:
    """Return the IIA there of the letter's own coordinates: the pairs tell it from its key, and a fit does not."""
    claim = replace(claims("sort")[0], variables={"value_2": frozenset()})
    methods = {"known": along(_carrying("sort", "tokens:")[1])}
    result = search(hidden("sort")[0], claim, sites="block_output", layers=[0], methods=methods, controls=())
    return float(one(result, place="2")["iia"])


def _others() -> float:
    here = {"component": "block_output", "layer": 0, "place": "2", "method": "map_3"}
    return most([row for row in coordinates().table.rows() if row["method"] != here["method"]])


def table() -> str:
    """Return what was found as text."""
    results = {
        f"{name}, {'true' if right else 'false'}": searched(name, right) for name in PROGRAMS for right in (True, False)
    }
    return overview("compiled programs, hidden basis", results)


def _facts() -> Iterator[Fact]:
    yield Fact(
        "frac_prevs, align: IIA of is_x behind m0, its coordinate",
        lambda: one(coordinates(), method="map_3", place="2")["iia"],
        1.0,
        1.0,
    )
    yield Fact("frac_prevs, align: the same, any other coordinate", _others, 0.0, 0.0)
    for name in PROGRAMS:
        yield Fact(f"{name}, align, hidden: precision of spots", lambda n=name: precision(n), 1.0, 1.0)
        yield Fact(f"{name}, align, hidden: recall of spots", lambda n=name: recall(n), 1.0, 1.0)
        yield Fact(f"{name}, align, hidden: squared error to its own logits", lambda n=name: exact(n)[0], 0.0, 0.03)
        yield Fact(f"{name}, align, hidden: error of the projector", lambda n=name: exact(n)[1], 0.0, 0.1)
        yield Fact(
            f"{name}, align, hidden: low end of the false model minus whole vector",
            lambda n=name: _false(n, "low") - _false(n, "full"),
            -1.0,
            0.0,
        )
        yield Fact(
            f"{name}, align, hidden: low end of the truth minus any high end of the false",
            lambda n=name: _apart(n),
            0.1,
            1.0,
        )
    yield Fact("sort, align, hidden: IIA beside its key (too hard)", _beside_its_key, 0.0, 0.9)
    yield Fact("sort, align, hidden: the same of its own coordinates", _known_beside_its_key, 1.0, 1.0)


FACTS = list(_facts())
