"""`Edit`, `Run` and `Plan`: what is to happen, as plain data. A plan knows no model and no tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from operator import index
from typing import Any

from ._errors import PlanError, SpecError, UnknownNameError, near_misses
from ._summarised import Summarised, Summary
from .positions import EVERYWHERE, Positions
from .sites import Site
from .subspaces import Choice

Examples = tuple[int, ...]
"""Numbers of examples of a batch, from 0; one may be named twice."""


@dataclass(frozen=True)
class Read:
    """A value taken from a run, after that run's own edits at the same site.

    Args:
        run: name of the run that is read: another one, or the edited run itself, where it comes by the site earlier.
        site: where in the network.
        positions: at which places of the read run's sequence.
        examples: which example of the read run each line looks at, of `positions` or, where these name none, of the
            whole sequence; `None`: the one of the same number, or the only one.
    """

    run: str
    site: Site
    positions: Positions = EVERYWHERE
    examples: Examples | None = None

    def __post_init__(self) -> None:
        _check_kinds(self, run=str, site=Site, positions=Positions)
        object.__setattr__(self, "examples", _numbers(self, self.examples))


@dataclass(frozen=True)
class Constant:
    """A saved value: `name` is looked up in the constants that are handed in beside the plan."""

    name: str

    def __post_init__(self) -> None:
        _check_kinds(self, name=str)


@dataclass(frozen=True)
class Edit:
    """The five answers: where, at which places, in which coordinates, doing what, with the value from where.

    Args:
        name: unique in the plan; results and the ledger use it.
        site: where in the network.
        intervention: name of the module that computes the new value; modules are handed in beside the plan.
        positions: at which places of the edited run's sequence.
        subspace: for each example the parts of the intervention's partition; `None` for the whole vector.
        source: a read, several reads (the intervention gets their values as a tuple), a constant, or nothing.
    """

    name: str
    site: Site
    intervention: str
    positions: Positions = EVERYWHERE
    subspace: Choice | None = None
    source: Read | tuple[Read, ...] | Constant | None = None

    def __post_init__(self) -> None:
        _check_kinds(self, name=str, site=Site, intervention=str, positions=Positions)
        if isinstance(self.source, list | tuple):
            object.__setattr__(self, "source", _several(self, "source", Read))
        elif not isinstance(self.source, Read | Constant | None):
            raise SpecError(
                f"source of an Edit is a Read, a tuple of Reads, a Constant or None; found {self.source!r:.80}"
            )

    @property
    def reads(self) -> tuple[Read, ...]:
        """What it reads of runs."""
        return (
            self.source if isinstance(self.source, tuple) else (self.source,) if isinstance(self.source, Read) else ()
        )

    def reading(self, change: Callable[[Read], Read]) -> Edit:
        """Return it with each of its reads changed.

        Args:
            change: given a read, returns another.
        """
        if not self.reads:
            return self
        changed = tuple(map(change, self.reads))
        return replace(self, source=changed if isinstance(self.source, tuple) else changed[0])


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

    def __post_init__(self) -> None:
        _check_kinds(self, name=str, input=str)
        object.__setattr__(self, "edits", _several(self, "edits", Edit))
        object.__setattr__(self, "examples", _numbers(self, self.examples))


@dataclass(frozen=True)
class Logits:
    """Which logits of the wanted runs are wanted: those at one position of every example.

    Args:
        tokens: ids of the tokens whose logits are wanted, in this order; `None` for the whole vocabulary.
        at: names of inputs, each with the column that is read of each of its examples; inputs that are not named are
            read at the last real token of every example.
        answers_of: names of wanted runs. Of these the logits of all tokens are wanted; of all other runs those of the
            tokens that these find most probable, each once, in the order of the runs and their examples.

    Raises:
        PlanError: tokens are named, too.
    """

    tokens: tuple[int, ...] | None = None
    at: tuple[tuple[str, tuple[int, ...]], ...] = ()
    answers_of: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "answers_of", _several(self, "answers_of", str))
        object.__setattr__(self, "tokens", _numbers(self, self.tokens, "tokens"))
        if not isinstance(self.at, tuple) or not all(isinstance(one, tuple) and len(one) == 2 for one in self.at):
            raise SpecError(
                f"at of Logits is a tuple of pairs: a name, and a column for each example; found {self.at!r:.80}"
            )
        if self.answers_of and self.tokens is not None:
            raise PlanError(f"logits of the tokens {list(self.tokens)} are wanted, or those of answers, but not both")


@dataclass(frozen=True, repr=False)
class Plan(Summarised):
    """A set of runs, and those whose outputs are wanted.

    Valid only if no value is needed before it is there: runs read each other in no circle, and themselves at sites that
    come earlier.

    Args:
        runs: all runs, each with a unique name.
        outputs: names of the runs whose outputs are wanted.
        logits: what of their outputs is wanted, so that nothing else need be computed; `None`: all that the model
            returns.
        values: what else is wanted: activations of some runs.

    Raises:
        PlanError: two runs or two edits share a name, nothing is wanted, or the reads form a circle.
        UnknownNameError: a read or an output names no run of the plan.

    >>> swap = Edit("swap", Site("mlp_output", 0), "vanilla", source=Read("source", Site("mlp_output", 0)))
    >>> plan = Plan((Run("base", "base", (swap,)), Run("source", "source")), outputs=("base",))
    >>> [run.name for run in plan.order()]
    ['source', 'base']
    """

    runs: tuple[Run, ...]
    outputs: tuple[str, ...]
    logits: Logits | None = None
    values: tuple[Read, ...] = ()
    _by_name: dict[str, Run] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, kind in (("runs", Run), ("outputs", str), ("values", Read)):
            object.__setattr__(self, name, _several(self, name, kind))
        if not isinstance(self.logits, Logits | None):
            raise SpecError(f"logits of a Plan is a Logits or None; found {self.logits!r:.80}")
        object.__setattr__(self, "_by_name", {run.name: run for run in self.runs})
        _check_unique([run.name for run in self.runs], "run")
        _check_unique([edit.name for edit in self.edits()], "edit")
        if not self.outputs and not self.values:
            raise PlanError(f"a plan needs at least one output; its runs are {[run.name for run in self.runs]}")
        answers = () if self.logits is None else self.logits.answers_of
        for name in (*self.outputs, *answers, *(read.run for read in self.reads())):
            if name not in self._by_name:
                raise UnknownNameError(f"the plan has no run {name!r}; {near_misses(name, self._by_name)}")
        unwanted = [name for name in answers if name not in self.outputs]
        if unwanted:
            raise PlanError(f"the answer of run {unwanted[0]!r} is asked for, so its output has to be wanted, too")
        self._ordered(self._by_name)
        for run in self.runs:
            _check_own_reads(run)

    def _summary(self) -> Summary:
        wanted = f"outputs {', '.join(self.outputs)}" if self.outputs else f"{len(self.values)} values"
        count = f"{len(self.runs)} run{'s' * (len(self.runs) != 1)}"
        return f"Plan of {count}, wanted: {wanted}", ((run.name, _said(run)) for run in self.runs)

    def run(self, name: str) -> Run:
        """Return the run of that name."""
        return self._by_name[name]

    def edits(self) -> Iterator[Edit]:
        """Yield every edit of every run."""
        for run in self.runs:
            yield from run.edits

    def reads(self) -> Iterator[Read]:
        """Yield every read, in the order of the edits that need it, then those that are wanted themselves."""
        for edit in self.edits():
            yield from edit.reads
        yield from self.values

    def needs(self, run: Run) -> tuple[str, ...]:
        """Return the names of the runs that one has to come after: others that it reads, and those that answer."""
        found = [read.run for edit in run.edits for read in edit.reads if read.run != run.name]
        answers = () if self.logits is None or run.name not in self.outputs else self.logits.answers_of
        return tuple(dict.fromkeys(found if run.name in answers else (*found, *answers)))

    def order(self) -> tuple[Run, ...]:
        """Return the runs that are needed for what is wanted, each after those that it needs."""
        return self._ordered((*self.outputs, *(read.run for read in self.values)))

    def _ordered(self, wanted: Iterable[str]) -> tuple[Run, ...]:
        """Return the runs named and all that they need, directly or not, each after those that it needs."""
        needs: dict[str, tuple[str, ...]] = {}
        waiting = list(wanted)
        while waiting:
            name = waiting.pop()
            if name not in needs:
                needs[name] = self.needs(self.run(name))
                waiting += needs[name]
        in_order = {run.name: needs[run.name] for run in self.runs if run.name in needs}
        try:
            return tuple(self.run(name) for name in TopologicalSorter(in_order).static_order())
        except CycleError as error:
            raise PlanError(f"runs read each other in a circle: {' -> '.join(error.args[1])}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-able data; `Plan.from_dict` is the inverse."""
        logits = None if self.logits is None else asdict(self.logits)
        runs, values = [asdict(run) for run in self.runs], [asdict(read) for read in self.values]
        return {"runs": runs, "outputs": list(self.outputs), "logits": logits, "values": values}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read a plan written by `to_dict`, also after a round through JSON.

        Raises:
            SpecError: this is not what `to_dict` writes.
        """
        try:
            logits = data.get("logits")
            wanted = None
            if logits is not None:
                more = (_tuples(logits.get(name, ())) for name in ("at", "answers_of"))
                wanted = Logits(_tuples(logits["tokens"]), *more)
            values = tuple(_read(read) for read in data.get("values", ()))
            return cls(tuple(_run(run) for run in data["runs"]), tuple(data["outputs"]), wanted, values)
        except (KeyError, TypeError) as error:
            raise SpecError(f"this is not a plan as Plan.to_dict writes it ({error!r})") from error


def _check_kinds(of: Any, **kinds: type) -> None:
    """Refuse a field of another kind."""
    for name, kind in kinds.items():
        value = getattr(of, name)
        if not isinstance(value, kind):
            wanted = "a text" if kind is str else f"a {kind.__name__}"
            raise SpecError(f"{name} of {type(of).__name__} is {wanted}; found {value!r:.80}")


def _several(of: Any, name: str, kind: type) -> tuple[Any, ...]:
    """Return the entries of a field that has several of a kind.

    Raises:
        SpecError: it is something else, such as one entry that is not in a tuple.
    """
    value, words = getattr(of, name), "texts" if kind is str else f"{kind.__name__}s"
    if not isinstance(value, list | tuple) or not all(isinstance(one, kind) for one in value):
        hint = f": write ({value!r:.60},)" if isinstance(value, kind) else ""
        raise SpecError(f"{name} of {type(of).__name__} is a tuple of {words}; found {value!r:.80}{hint}")
    return tuple(value)


def _numbers(of: Any, numbers: Any, what: str = "examples") -> Examples | None:
    """Return whole numbers as a tuple.

    Raises:
        SpecError: they are something else.
    """
    try:
        return None if numbers is None else tuple(map(index, numbers))
    except TypeError as error:
        raise SpecError(f"{what} of {type(of).__name__} are whole numbers; found {numbers!r:.80}") from error


def _check_own_reads(run: Run) -> None:
    for edit in run.edits:
        late = [read.site for read in edit.reads if read.run == run.name and not _may_precede(read.site, edit.site)]
        if late:
            raise PlanError(f"run {run.name!r} reads its own {late[0]} for {edit.site}, which comes no later")


def _may_precede(site: Site, other: Site) -> bool:
    """Whether a pass may come by one site before another, as far as their names tell; a run finds out the rest."""
    one, two = site.definition, other.definition
    if one is None or two is None or site.stack != other.stack:
        return site != other
    ends = {"input": -1.0, "output": float("inf")}
    first, second = (ends.get(d.point, 0.0) if s.layer is None else s.layer for s, d in ((site, one), (other, two)))
    points = {"input": 0, "inside": 1, "output": 2}
    return site != other and (first, points[one.point]) <= (second, points[two.point])


def _said(run: Run) -> str:
    """Return in words what a run is: its input, and each edit with where it takes its value from."""
    edits = []
    for edit in run.edits:
        read = ", ".join(dict.fromkeys(one.run for one in edit.reads))
        edits.append(f"{edit.intervention} at {edit.site}" + f" from {read}" * bool(read))
    return f"{run.input}, {'; '.join(edits) or 'unedited'}"


def _check_unique(names: Sequence[str], kind: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise PlanError(f"{kind} names must differ; found {', '.join(repr(name) for name in twice)} more than once")


def _run(data: Mapping[str, Any]) -> Run:
    return Run(data["name"], data["input"], tuple(map(_edit, data["edits"])), _tuples(data.get("examples")))


def _edit(data: Mapping[str, Any]) -> Edit:
    site, positions, source = Site(**data["site"]), _positions(data["positions"]), _source(data["source"])
    return Edit(data["name"], site, data["intervention"], positions, _tuples(data["subspace"]), source)


def _source(data: Any) -> Read | tuple[Read, ...] | Constant | None:
    if data is None:
        return None
    if isinstance(data, list | tuple):
        return tuple(map(_read, data))
    return _read(data) if "run" in data else Constant(data["name"])


def _read(data: Mapping[str, Any]) -> Read:
    return Read(data["run"], Site(**data["site"]), _positions(data["positions"]), _tuples(data.get("examples")))


def _positions(data: Mapping[str, Any]) -> Positions:
    return Positions(**{name: _tuples(value) for name, value in data.items()})


def _tuples(value: Any) -> Any:
    """Return nested lists, as JSON has them, as nested tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
