"""Many examples of a causal model at once: run, or drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._checked import checked
from .._errors import SpecError
from .domain import Column
from .drawing import InputSampler, inputs_drawn
from .evaluation import Evaluation
from .sampling import TRIES, balanced_inputs, of_variable, tried

if TYPE_CHECKING:
    from .dataset import CounterfactualDataset

Setting = Mapping[str, Any]
"""By name the value of each variable, or of some."""


class CausalSamples:
    """The part of `CausalModel` that runs many examples at once, and draws them."""

    variables: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: Mapping[str, Any]
    functions: Mapping[str, Any]
    _classes: Mapping[str, Mapping[str, Column]]
    _evaluation: Evaluation

    @checked
    def run_many(
        self, inputs: Mapping[str, Any], interchanged: Mapping[str, Any] | None = None, where: Any = None
    ) -> dict[str, Column]:
        """Return all variables of many inputs at once, with interchanges if wanted.

        Args:
            inputs: by name a list or array `(n,)`; inputs that have no default have to be there.
            interchanged: by variable the inputs `(n,)` by name that its values come from.
            where: by variable a list of booleans `(n,)`: in which examples it is interchanged; default: in all.

        Returns:
            By name an array `(n,)`.

        Raises:
            SpecError: as `run_forward`; or lists have not the same length.
            UnknownNameError: likewise.

        >>> from align_transformers import CausalModel
        >>> model = CausalModel(["a", "b"], {"a": range(4)}, {"b": ["a"]}, {"b": lambda a: a * a})
        >>> model.run_many({"a": [3, 1]})["b"].tolist()
        [9, 1]
        >>> model.run_many({"a": [3, 1]}, {"a": {"a": [2, 2]}}, {"a": [True, False]})["b"].tolist()
        [4, 1]
        """
        size = _length(inputs)
        columns = self._evaluation.encode(inputs, size)
        instead = {}
        for name, source in (interchanged or {}).items():
            mask = None if where is None or name not in where else np.asarray(where[name], bool)
            if (mask is not None and mask.shape != (size,)) or _length(source) != size:
                raise SpecError(f"interchanged[{name!r}] and where[{name!r}] need {size} entries, as inputs have")
            known = self._evaluation.known(name)
            taken = self._evaluation.run(self._evaluation.encode(source, size), size, until=known)[known]
            instead[name] = (mask, taken)
        return self._evaluation.decode(self._evaluation.run(columns, size, instead))

    @checked
    def sample_input(
        self, generator: np.random.Generator, *, where: Callable[[dict[str, Any]], bool] | None = None
    ) -> dict[str, Any]:
        """Return an input, each of its values as likely as another.

        Args:
            generator: of random numbers.
            where: says of all variables of an input whether it is wanted.

        Raises:
            SpecError: an input's values are not known; or none of 10,000 samples is wanted.
        """
        sample = self.sample_inputs(1, generator, where=where)
        return self._evaluation.row(self._evaluation.encode(sample, 1), 0)

    @checked
    def sample_inputs(
        self,
        size: int,
        generator: np.random.Generator,
        *,
        where: Callable[[dict[str, Any]], bool] | None = None,
        balanced: str | None = None,
    ) -> dict[str, Column]:
        """Return many inputs, each value as likely as another.

        Args:
            size: n, how many.
            generator: of random numbers.
            where: says of all variables of an input whether it is wanted.
            balanced: a variable, each of whose values is as likely as another; then each setting of its parents that
                gives the value, and so on towards the inputs. The variables that it comes of have to be a tree.

        Returns:
            By name an array `(n,)`, of the inputs.

        Raises:
            SpecError: an input's values are not known; too few samples are wanted; or it cannot be balanced.
        """
        if size < 0:
            raise SpecError(f"size={size} is how many inputs are wanted")

        def drawn(count: int) -> dict[str, Column]:
            if balanced is not None:
                return self._balanced(self._evaluation.known(balanced), None, count, generator)
            return {name: self._drawn(name, count, generator) for name in self.inputs}

        if where is None:
            return self._evaluation.decode(drawn(size))
        return self._evaluation.decode(tried(drawn, lambda columns, count: self._wanted(columns, count, where), size))

    @checked
    def sample_input_tree_balanced(
        self, generator: np.random.Generator, output: str | None = None, value: Any = None
    ) -> dict[str, Any]:
        """Return an input for which each value of an output is as likely as another.

        Args:
            generator: of random numbers.
            output: a variable; default: the model's only output.
            value: of it; default: any.

        Raises:
            SpecError: the variables that it comes of are no tree, or their values are not listed.
        """
        if output is None and len(self.outputs) != 1:
            raise SpecError(f"the model has the outputs {', '.join(self.outputs)}: name one with output=")
        name = self._evaluation.known(output or self.outputs[0])
        return self._evaluation.row(self._balanced(name, value, 1, generator), 0)

    @checked
    def sample_intervention(
        self, generator: np.random.Generator, *, where: Callable[[dict[str, Any]], bool] | None = None
    ) -> dict[str, Any]:
        """Return values for some variables that are neither inputs nor outputs: at least one, each set as likely.

        Args:
            generator: of random numbers.
            where: says of an intervention whether it is wanted.

        Raises:
            SpecError: there is no such variable, or none of 10,000 samples is wanted.
        """
        within = self._within()
        for _ in range(TRIES):
            chosen = [name for name, taken in zip(within, generator.random(len(within)) < 0.5, strict=True) if taken]
            found = self._evaluation.row({name: self._drawn(name, 1, generator) for name in chosen}, 0)
            if found and (where is None or where(found)):
                return found
        raise SpecError(f"none of {TRIES} samples of interventions is wanted by where=")

    @checked
    def generate_factual_dataset(
        self,
        size: int,
        generator: np.random.Generator,
        *,
        sampler: InputSampler | None = None,
        where: Callable[[dict[str, Any]], bool] | None = None,
        balanced: str | None = None,
    ) -> dict[str, Column]:
        """Return all variables of many inputs that are drawn: the inputs, and what becomes of them.

        Args:
            size: n, how many.
            generator: of random numbers.
            sampler: draws so many inputs, `sampler(generator, n)`, by name `(n,)`; default: `sample_inputs`.
            where: as for `sample_inputs`.
            balanced: likewise.

        Returns:
            By name an array `(n,)`.

        Raises:
            SpecError: as `sample_inputs`; or there is a sampler, and also what only `sample_inputs` takes.

        >>> from align_transformers import CausalModel
        >>> model = CausalModel(["a", "b"], {"a": range(4)}, {"b": ["a"]}, {"b": lambda a: a > 1})
        >>> data = model.generate_factual_dataset(1000, np.random.default_rng(0))
        >>> sorted(data), data["b"].shape
        (['a', 'b'], (1000,))
        """
        return self.run_many(inputs_drawn(self, size, generator, sampler, where, balanced))

    @checked
    def generate_counterfactual_dataset(
        self,
        size: int,
        generator: np.random.Generator,
        *,
        variables: str | Collection[Any] | None = None,
        output: str | None = None,
        sampler: InputSampler | None = None,
        where: Callable[[dict[str, Any]], bool] | None = None,
        balanced: str | None = None,
        trivial: bool = False,
        entity: str | Sequence[str] | None = None,
    ) -> CounterfactualDataset:
        """Return pairs that are drawn, as `CounterfactualDataset.sample` does.

        Args:
            size: n, how many.
            generator: of random numbers.
            variables: what is interchanged; default: each variable that is neither input nor output, alone.
            output: as for `CounterfactualDataset.sample`.
            sampler: as for `generate_factual_dataset`; draws bases and sources.
            where: as for `CounterfactualDataset.sample`.
            balanced: likewise.
            trivial: likewise.
            entity: likewise.

        Raises:
            SpecError: as `CounterfactualDataset.sample`; there is a sampler, and also what only `sample_inputs` takes;
                or the model has inputs and outputs alone.

        >>> from align_transformers import CausalModel
        >>> model = CausalModel(["a", "b", "c"], {"a": range(4)}, {"b": ["a"], "c": ["b"]},
        ...                     {"b": lambda a: a > 1, "c": lambda b: not b})
        >>> model.generate_counterfactual_dataset(100, np.random.default_rng(0))
        CounterfactualDataset(100 pairs; b alone 100; labels: c)
        """
        from .dataset import drawn_dataset  # which knows CausalModel, which is made of this class

        return drawn_dataset(
            self, size, generator, self._within() if variables is None else variables,
            output=output, sampler=sampler, where=where, balanced=balanced, trivial=trivial, entity=entity,
        )  # fmt: skip

    def _within(self) -> list[str]:
        """Return the variables that are neither inputs nor outputs."""
        found = [name for name in self.variables if name not in self.inputs and name not in self.outputs]
        if not found:
            raise SpecError("the model has inputs and outputs alone, so there is no variable between them to set")
        return found

    def _balanced(self, name: str, value: Any, size: int, generator: np.random.Generator) -> dict[str, Column]:
        """Return inputs that are balanced for a variable; those that it does not come of are drawn as ever."""
        found = balanced_inputs(self._evaluation, self._classes, name, value, size, generator)
        for one in self.inputs:
            if one not in found and (self.values[one] is not None or one not in self.functions):
                found[one] = self._drawn(one, size, generator)
        return found

    def _drawn(self, name: str, size: int, generator: np.random.Generator) -> Column:
        return of_variable(self._evaluation, self.values[name], name, size, generator)

    def _wanted(self, columns: Mapping[str, Column], size: int, where: Callable[[dict[str, Any]], bool]) -> Column:
        """Return of each of some inputs whether it is wanted."""
        found = self._evaluation.run(columns, size)
        return np.array([bool(where(self._evaluation.row(found, number))) for number in range(size)], bool)


def _length(inputs: Mapping[str, Any]) -> int:
    """Return how many examples some inputs are."""
    if not inputs:
        raise SpecError("inputs is empty: give a list of values of at least one variable")
    return len(next(iter(inputs.values())))
