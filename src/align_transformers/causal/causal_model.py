"""A causal model: variables, what they may be, and how each comes of its parents."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from .._checked import checked
from .._errors import SpecError
from .domain import Domain, Mechanism
from .evaluation import Evaluation
from .samples import CausalSamples, Setting
from .structure import (
    check_arity,
    check_names,
    class_columns,
    composed,
    some_inputs,
    sorted_by_parents,
    steps_from_inputs,
)


class CausalModel(CausalSamples):
    """Variables and the functions between them: what a network is supposed to compute.

    Variables without parents are its inputs, those without children its outputs. A model is never changed. Its
    functions are called once for each setting of their parents, so they must give the same for the same.

    Args:
        variables: names.
        values: by name what the variable may be: a list, a range; a function from a generator and n to n samples; or
            nothing, where it may be anything.
        parents: by name the names of those whose values its function takes, in order; inputs may be left out.
        functions: by name, from the values of the parents to that of the variable; or `OnArrays` of one that takes
            arrays. Those of inputs take nothing and give the default, and may be left out.
        timesteps: by name, for pictures; default: how many steps a variable is from the inputs.
        equiv_classes: by name, for each of its values the settings of its parents that give it; default: worked out.

    Raises:
        SpecError: parents go in a circle, a name or function is missing, a function takes another number of values,
            gives one that is not listed, or a value is there twice or cannot be hashed.

    Example:
        >>> digits = range(10)
        >>> model = CausalModel(
        ...     ["a", "b", "c", "x", "sum"],
        ...     values={"a": digits, "b": digits, "c": digits, "x": range(19), "sum": range(28)},
        ...     parents={"x": ["a", "b"], "sum": ["x", "c"]},
        ...     functions={"x": lambda a, b: a + b, "sum": lambda x, c: x + c},
        ... )
        >>> model.run_forward({"a": 1, "b": 2, "c": 3})["sum"]
        6
        >>> base, source = {"a": 1, "b": 2, "c": 3}, {"a": 9, "b": 9, "c": 0}
        >>> model.run_interchange(base, {"x": source})["sum"]  # 9 + 9, and the base's 3
        21
    """

    @checked
    def __init__(
        self,
        variables: Sequence[str],
        values: Mapping[str, Any],
        parents: Mapping[str, Sequence[str]],
        functions: Mapping[str, Any],
        timesteps: Mapping[str, int] | None = None,
        equiv_classes: Mapping[str, Mapping[Any, Sequence[Setting]]] | None = None,
    ) -> None:
        self.variables = tuple(variables)
        named = {"timesteps": timesteps or {}, "equiv_classes": equiv_classes or {}}
        check_names(self.variables, values=values, parents=parents, functions=functions, **named)
        self.values: Mapping[str, Any] = MappingProxyType({name: _values(name, values.get(name)) for name in variables})
        self.parents = MappingProxyType({name: tuple(parents.get(name, ())) for name in variables})
        self.functions: Mapping[str, Any] = MappingProxyType(dict(functions))
        order = sorted_by_parents(self.parents)
        check_arity(self.parents, self.functions)
        self.children = MappingProxyType(
            {name: tuple(one for one in self.variables if name in self.parents[one]) for name in self.variables}
        )
        self.inputs = tuple(name for name in self.variables if not self.parents[name])
        self.outputs = tuple(name for name in self.variables if not self.children[name])
        self.timesteps = MappingProxyType(dict(timesteps or steps_from_inputs(order, self.parents)))
        domains = {name: Domain(name, of) if isinstance(of, tuple) else None for name, of in self.values.items()}
        mechanisms = {
            name: Mechanism(name, of, domains[name], [(one, domains[one]) for one in self.parents[name]])
            for name, of in self.functions.items()
        }
        self._evaluation = Evaluation(order, self.parents, domains, mechanisms)
        self._classes = class_columns(self._evaluation, equiv_classes or {})
        columns, size = some_inputs(self._evaluation, self.inputs)
        if size:
            self._evaluation.run(columns, size)

    def __repr__(self) -> str:
        within = [name for name in self._evaluation.order if name not in self.inputs and name not in self.outputs]
        parts = [", ".join(names) for names in (self.inputs, within, self.outputs) if names]
        return f"CausalModel({' -> '.join(parts)})"

    @checked
    def run_forward(self, intervention: Setting | None = None) -> dict[str, Any]:
        """Return all variables, where some have values that they are given.

        Args:
            intervention: by name; inputs that have no default have to be there.

        Raises:
            SpecError: an input is missing, or a value is not one of the variable's.
            UnknownNameError: there is no such variable.
        """
        given = self._evaluation.encode({name: [value] for name, value in (intervention or {}).items()}, 1)
        return self._evaluation.row(self._evaluation.run(given, 1), 0)

    @checked
    def run_interchange(self, input: Setting, sources: Mapping[str, Setting]) -> dict[str, Any]:
        """Return all variables of an input, where some have the values that they have in other inputs.

        Args:
            input: by name.
            sources: by variable the input that its value comes from.

        Raises:
            SpecError: as `run_forward`.
            UnknownNameError: likewise.
        """
        taken = {name: self.run_forward(source)[self._evaluation.known(name)] for name, source in sources.items()}
        return self.run_forward({**input, **taken})

    @checked
    def find_live_paths(self, setting: Setting) -> dict[int, list[list[str]]]:
        """Return the paths along which another value of their first variable would change each of the further ones.

        Args:
            setting: inputs, and what variables are set to.

        Returns:
            By how many variables they have, from 2: the paths. One is longer by a child that some other value of the
            variable before it would change, all that the setting names held.

        Raises:
            SpecError: the values of a variable are not listed.

        >>> model = CausalModel(["a", "b", "or"], {name: [False, True] for name in ("a", "b", "or")},
        ...                     {"or": ["a", "b"]}, {"or": lambda a, b: a or b})
        >>> model.find_live_paths({"a": True, "b": False})
        {2: [['a', 'or']]}
        """
        actual = self.run_forward(setting)
        live = {
            name: [child for child in self.children[name] if self._changes(name, child, setting, actual)]
            for name in self.variables
        }
        paths, found = [[name] for name in self.variables], {}
        while paths := [[*path, child] for path in paths for child in live[path[-1]]]:
            found[len(paths[0])] = paths
        return found

    @checked
    def add_variable(
        self,
        variable: str,
        values: Any,
        parents: Sequence[str],
        function: Any = None,
        children: Mapping[str, Any] | None = None,
        timestep: int | None = None,
    ) -> CausalModel:
        """Return a model with one variable more.

        Args:
            variable: its name.
            values: what it may be, as for the model.
            parents: their names.
            function: of the parents' values; that of an input may be left out.
            children: by name their new functions: of the values that they took so far, and then of this variable's.
            timestep: for pictures.

        Raises:
            SpecError: there is such a variable, or the model would be none.
        """
        if variable in self.variables:
            raise SpecError(f"there is a variable {variable!r} already")
        new = {self._evaluation.known(child): one for child, one in (children or {}).items()}
        return CausalModel(
            [*self.variables, variable],
            {**self.values, variable: values},
            {**self.parents, variable: parents, **{child: [*self.parents[child], variable] for child in new}},
            {**self.functions, **new} | ({} if function is None else {variable: function}),
            None if timestep is None else {**self.timesteps, variable: timestep},
            self._classes_but(new),
        )

    @checked
    def marginalize(self, variable: str) -> CausalModel:
        """Return the model without a variable: its children are made of its parents instead.

        Outputs are the same for the same inputs; the variable can no longer be set.

        Args:
            variable: no input, unless it has a default, which takes its place.

        Raises:
            SpecError: it is an input without a default.
            UnknownNameError: there is no such variable.

        >>> model = CausalModel(["a", "b", "c"], {"a": range(3)}, {"b": ["a"], "c": ["b"]},
        ...                     {"b": lambda a: a + 1, "c": lambda b: 2 * b})
        >>> small = model.marginalize("b")
        >>> small, small.run_forward({"a": 2})["c"]
        (CausalModel(a -> c), 6)
        """
        function, own = self.functions.get(self._evaluation.known(variable)), self.parents[variable]
        if function is None:
            raise SpecError(f"{variable!r} is an input without a default: nothing can take its place")
        parents, functions = dict(self.parents), dict(self.functions)
        for child in self.children[variable]:
            old = self.parents[child]
            parents[child] = tuple(dict.fromkeys([*(name for name in old if name != variable), *own]))
            functions[child] = composed(functions[child], old, parents[child], variable, function, own)
        kept = [name for name in self.variables if name != variable]
        values, of_parents, of_functions = (
            {name: of[name] for name in kept if name in of} for of in (self.values, parents, functions)
        )
        classes = self._classes_but([variable, *self.children[variable]])
        return CausalModel(kept, values, of_parents, of_functions, None, classes)

    def _classes_but(self, names: Collection[str]) -> dict[str, dict[Any, list[dict[str, Any]]]]:
        """Return the settings of parents that were given, but for those of some variables."""
        found: dict[str, dict[Any, list[dict[str, Any]]]] = {}
        for name, columns in self._classes.items():
            for number in range(len(columns[name])) if name not in names else ():
                setting = self._evaluation.row(columns, number)
                found.setdefault(name, {}).setdefault(setting.pop(name), []).append(setting)
        return found

    def _changes(self, name: str, child: str, setting: Setting, actual: Setting) -> bool:
        """Whether some other value of a variable would change a child of it."""
        domain = self._evaluation.domains[name]
        if domain is None:
            raise SpecError(f"values[{name!r}] is not listed, so its other values cannot be tried")
        if child in setting:
            return False
        given = {**setting, name: domain.values}
        size = len(domain)
        columns = {one: of if one == name else [of] * size for one, of in given.items()}
        found = self._evaluation.run(self._evaluation.encode(columns, size), size)
        return any(self._evaluation.row(found, number)[child] != actual[child] for number in range(size))


def _values(name: str, values: Any) -> Any:
    """Return what a variable may be, a list of it as a tuple."""
    if values is None or callable(values):
        return values
    if isinstance(values, str | set | frozenset | Mapping) or not hasattr(values, "__iter__"):
        raise SpecError(f"values[{name!r}] is a list, a range or a function that draws samples; found {values!r}")
    return tuple(values)
