"""`Edit`, `Run` and `Plan`: what is to happen, as plain data. A plan knows no model and no tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from ._errors import PlanError, SpecError, UnknownNameError, near_misses
from .positions import EVERYWHERE, Positions
from .sites import Site
from .subspaces import Choice

Examples = tuple[int, ...]
"""Numbers of examples of a batch, from 0; one may be named twice."""


@dataclass(frozen=True)
class Read:
    """A value taken from another run, after that run's own edits at the same site.

    Args:
        run: name of the run that is read.
        site: where in the network.
        positions: at which places of the read run's sequence.
        examples: which example of the read run each line of `positions` looks at; `None`: the one of the same number,
            or the only one.
    """

    run: str
    site: Site
    positions: Positions = EVERYWHERE
    examples: Examples | None = None


@dataclass(frozen=True)
class Constant:
    """A saved value: `name` is looked up in the constants that are handed in beside the plan."""

    name: str


@dataclass(frozen=True)
class Edit:
    """The five answers: where, at which places, in which coordinates, doing what, with the value from where.

    Args:
        name: unique in the plan; results and the ledger use it.
        site: where in the network.
        intervention: name of the module that computes the new value; modules are handed in beside the plan.
        positions: at which places of the edited run's sequence.
        subspace: for each example the parts of the intervention's partition; `None` for the whole vector.
        source: a read of another run, a constant, or nothing.
    """

    name: str
    site: Site
    intervention: str
    positions: Positions = EVERYWHERE
    subspace: Choice | None = None
    source: Read | Constant | None = None


@dataclass(frozen=True)
class Run:
    """What the model makes of an input while it is edited.

    Args:
        name: unique in the plan.
        input: name of the input.
        edits: what is done on the way, in this order.
        examples: which examples of the input it works on, in this order; one may stand there many times, so that each
            copy is edited elsewhere. `None`: all of them, once.
    """

    name: str
    input: str
    edits: tuple[Edit, ...] = ()
    examples: Examples | None = None


@dataclass(frozen=True)
class Logits:
    """Which logits of the wanted runs are wanted: those at one position of every example.

    Args:
        tokens: ids of the tokens whose logits are wanted, in this order; `None` for the whole vocabulary.
        at: names of inputs, each with the column that is read of each of its examples; inputs that are not named are
            read at the last real token of every example.
    """

    tokens: tuple[int, ...] | None = None
    at: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class Plan:
    """A set of runs, and those whose outputs are wanted. Valid only if no run reads itself, directly or not.

    Args:
        runs: all runs, each with a unique name.
        outputs: names of the runs whose outputs are wanted.
        logits: what of their outputs is wanted, so that nothing else need be computed; `None`: all that the model
            returns.

    Raises:
        PlanError: two runs or two edits share a name, no output is wanted, or the reads form a circle.
        UnknownNameError: a read or an output names no run of the plan.

    >>> swap = Edit("swap", Site("mlp_output", 0), "vanilla", source=Read("source", Site("mlp_output", 0)))
    >>> plan = Plan((Run("base", "base", (swap,)), Run("source", "source")), outputs=("base",))
    >>> [run.name for run in plan.order()]
    ['source', 'base']
    """

    runs: tuple[Run, ...]
    outputs: tuple[str, ...]
    logits: Logits | None = None
    _by_name: dict[str, Run] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {run.name: run for run in self.runs})
        _check_unique([run.name for run in self.runs], "run")
        _check_unique([edit.name for edit in self.edits()], "edit")
        if not self.outputs:
            raise PlanError(f"a plan needs at least one output; its runs are {[run.name for run in self.runs]}")
        for name in (*self.outputs, *(read.run for read in self.reads())):
            if name not in self._by_name:
                raise UnknownNameError(f"the plan has no run {name!r}; {near_misses(name, self._by_name)}")
        self._ordered(self._by_name)

    def run(self, name: str) -> Run:
        """Return the run of that name."""
        return self._by_name[name]

    def edits(self) -> Iterator[Edit]:
        """Yield every edit of every run."""
        for run in self.runs:
            yield from run.edits

    def reads(self) -> Iterator[Read]:
        """Yield every read, in the order of the edits that need it."""
        for edit in self.edits():
            if isinstance(edit.source, Read):
                yield edit.source

    def order(self) -> tuple[Run, ...]:
        """Return the runs that the outputs need, each after all runs that it reads."""
        return self._ordered(self.outputs)

    def _ordered(self, wanted: Iterable[str]) -> tuple[Run, ...]:
        """Return the runs named and all that they read, directly or not, each after those that it reads."""
        needs: dict[str, list[str]] = {}
        waiting = list(wanted)
        while waiting:
            name = waiting.pop()
            if name not in needs:
                needs[name] = [edit.source.run for edit in self.run(name).edits if isinstance(edit.source, Read)]
                waiting += needs[name]
        try:
            return tuple(self.run(name) for name in TopologicalSorter(needs).static_order())
        except CycleError as error:
            raise PlanError(f"runs read each other in a circle: {' -> '.join(error.args[1])}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-able data; `Plan.from_dict` is the inverse."""
        logits = None if self.logits is None else asdict(self.logits)
        return {"runs": [asdict(run) for run in self.runs], "outputs": list(self.outputs), "logits": logits}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read a plan written by `to_dict`, also after a round through JSON.

        Raises:
            SpecError: this is not what `to_dict` writes.
        """
        try:
            logits = data.get("logits")
            wanted = None if logits is None else Logits(_tuples(logits["tokens"]), _tuples(logits.get("at", ())))
            return cls(tuple(_run(run) for run in data["runs"]), tuple(data["outputs"]), wanted)
        except (KeyError, TypeError) as error:
            raise SpecError(f"this is not a plan as Plan.to_dict writes it ({error!r})") from error


def _check_unique(names: Sequence[str], kind: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise PlanError(f"{kind} names must differ; found {', '.join(repr(name) for name in twice)} more than once")


def _run(data: Mapping[str, Any]) -> Run:
    return Run(data["name"], data["input"], tuple(map(_edit, data["edits"])), _tuples(data.get("examples")))


def _edit(data: Mapping[str, Any]) -> Edit:
    site, positions, source = Site(**data["site"]), _positions(data["positions"]), _source(data["source"])
    return Edit(data["name"], site, data["intervention"], positions, _tuples(data["subspace"]), source)


def _source(data: Mapping[str, Any] | None) -> Read | Constant | None:
    if data is None:
        return None
    if "run" in data:
        site, examples = Site(**data["site"]), _tuples(data.get("examples"))
        return Read(data["run"], site, _positions(data["positions"]), examples)
    return Constant(data["name"])


def _positions(data: Mapping[str, Any]) -> Positions:
    return Positions(**{name: _tuples(value) for name, value in data.items()})


def _tuples(value: Any) -> Any:
    """Return nested lists, as JSON has them, as nested tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
