"""Counterfactual pairs: inputs, where some variables take the values that they have in other inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .._checked import checked
from .._errors import SpecError
from .batching import pair_batches
from .causal_model import CausalModel
from .drawing import (
    LABEL,
    DrawnPairs,
    InputSampler,
    distinct_count,
    drawn_pairs,
    equal_rows,
    inputs_drawn,
    output_of,
    sets_of,
)
from .encoded_inputs import Encoder, Labeller, SpotRule
from .examples import names_of
from .given import all_pairs, given_pairs
from .rendering import Template
from .samples import CausalSamples
from .sampling import generator_of
from .splitting import shares_of, split
from .storing import StoredExamples

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerBase


class CounterfactualDataset(StoredExamples):
    """Pairs of a base and sources, and what the causal model says after an interchange.

    The label of an example is `output` in the base, where each interchanged variable has the value that it has in its
    own source: A(b | V := V(s)). Made with `sample`, `of` or `pairs`; never changed.

    Args:
        causal_model: what the labels are of.
        base: by input variable `(n,)`.
        sources: by variable the inputs by name, `(n,)`, that its value comes from; where it is not interchanged, the
            base's.
        where: by variable `(n,)` booleans: in which examples it is interchanged.
        output: the variable that the labels are of.
        labels: `(n,)` its values after the interchange.
        base_labels: `(n,)` its values without.
        entity: input variables whose joint value is the entity of an input; splits never part one.
        facts: how it was made, what was left out and kept; JSON-able.

    Raises:
        SpecError: columns are missing, or of another length than others.

    Geiger et al. 2021, arXiv:2106.02997.

    Example:
        >>> digits = range(10)
        >>> adder = CausalModel(
        ...     ["a", "b", "x"], {"a": digits, "b": digits}, {"x": ["a", "b"]}, {"x": lambda a, b: a + b}
        ... )
        >>> data = CounterfactualDataset.sample(adder, 1000, variables=["a", "b"], seed=0)
        >>> data
        CounterfactualDataset(1000 pairs; a alone 500, b alone 500; labels: x)
        >>> bool((data.labels != data.base_labels).all())
        True
    """

    @checked
    def split(
        self,
        shares: Sequence[float] | Mapping[str, float] = (0.6, 0.2, 0.2),
        *,
        by: str | Sequence[str] | None = None,
        seed: int = 0,
    ) -> dict[str, CounterfactualDataset]:
        """Return parts that share no entity: those of one part are seen in no other, as base or as source.

        Entities are shared out at random. A pair whose inputs are not all of one part's is left out; `facts["split"]`
        counts them.

        Args:
            shares: of the entities, for `"train"`, `"validation"` and `"test"`; or by name, for other parts.
            by: input variables whose joint value is the entity; default: those of `entity`.
            seed: of the draw.

        Raises:
            SpecError: shares are not 1 together, or a part has no pair.
            UnknownNameError: there is no such input.

        >>> adder = CausalModel(["a", "b", "x"], dict.fromkeys("ab", range(10)), {"x": ["a", "b"]},
        ...                     {"x": lambda a, b: a + b})
        >>> data = CounterfactualDataset.sample(adder, 1000, variables="a", seed=0)
        >>> parts = data.split(by="a")
        >>> {name: sorted(set(part.base["a"].tolist())) for name, part in parts.items()}
        {'train': [0, 1, 3, 4, 7, 8], 'validation': [2, 9], 'test': [5, 6]}
        """
        names = self.entity if by is None else names_of(by)
        return split(self, shares_of(shares), names, seed)

    @checked
    def filter(self, keep: Any, *, why: str) -> CounterfactualDataset:
        """Return the pairs that are kept, and say in `facts["kept"]` which share that is.

        Args:
            keep: `(n,)` booleans; or a function that says of an input (by name) whether it is wanted, as base and as
                source. It is asked once for each distinct input.
            why: what is kept, in words: `"the network solves base and source"`.

        Raises:
            SpecError: there are not as many booleans as pairs.
        """
        mask = keep
        if callable(keep):
            inputs = self.distinct_inputs()
            wanted = np.array([bool(keep(setting)) for setting in inputs.settings()], bool)
            mask = np.all([wanted[side] for side in (inputs.base, *inputs.sources.values())], axis=0)
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != (len(self),):
            raise SpecError(f"keep is {len(self)} booleans, or a function of an input; found {keep!r:.80}")
        said = {
            "why": why,
            "pairs": int(mask.sum()),
            "of": len(self),
            "share": float(mask.mean()) if len(mask) else 0.0,
        }
        return self.take(mask).told(kept=[*self.facts.get("kept", ()), said])

    @checked
    def batches(
        self,
        batch_size: int,
        *,
        template: Template | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        encode: Encoder | None = None,
        label: Labeller | None = None,
        positions: SpotRule | Mapping[str, SpotRule] | None = None,
        unit: Literal["pos", "t"] = "pos",
        interventions: Sequence[str] | None = None,
        subspaces: Mapping[str, int | Sequence[int]] | None = None,
        seed: int | None = None,
    ) -> DataLoader[Any]:
        """Return the pairs as batches that `fit` and `evaluate` take, again and again.

        Each input becomes tokens or vectors once, by template and tokenizer or by `encode`. Padding is counted in. A
        variable that is not interchanged in a pair has the base as its source, which changes nothing.

        Args:
            batch_size: pairs of a batch; the last one may have fewer.
            template: `"{a}+{b}="`, as `str.format` takes it, or a function from an input (by name) to its text.
            tokenizer: makes tokens of it, with its special tokens, and padded on its side.
            encode: a function from an input to a vector `(d,)`, a sequence of vectors `(n, d)`, which become
                `inputs_embeds`; to whole numbers `(n,)`, `input_ids`; or to a dict of tensors by the model's names.
            label: how a label is written, which has to be one token: `" {label}"`, with the leading space that many
                tokenizers put before a word inside a text; or a function from a label to such a text, or to the number
                of a token or class. Default: `" {label}"` for words and `"{label}"` for all else; with `encode` whole
                numbers and truth values as they are, others by their place among the values of `output`.
            positions: where interventions read in the source and write in the base: a number over the real tokens of an
                input, `"last"`, `at("{a}")` or `last_token("{a}")`, which is the place of `{a}` in the template; a list
                of these; or by variable. Default: no location columns, so the whole output of a site.
            unit: what positions count: tokens, or the steps of a recurrent network.
            interventions: for each intervention of the configuration the variable that it carries. Default: one for
                each of `variables`, in this order.
            subspaces: by variable the parts that carry it, where all are in one intervention with a partition.
            seed: pairs come in a new order each time; default: in their own order.

        Returns:
            A loader; its columns are explained in `learning.batches`. Besides there are `base_labels` and
            `source_labels`.

        Raises:
            SpecError: a label is not one token, or what is given does not fit the pairs.
            PositionError: an input, which is named, has no such place.
            UnknownNameError: there is no such variable or input.

        >>> both = CausalModel(["a", "b", "and"], dict.fromkeys(["a", "b", "and"], [False, True]),
        ...                    {"and": ["a", "b"]}, {"and": lambda a, b: a and b})
        >>> data = CounterfactualDataset.sample(both, 10, variables="a", seed=0)
        >>> loader = data.batches(4, encode=lambda one: [float(one["a"]), float(one["b"])], seed=0)
        >>> batch = next(iter(loader))
        >>> sorted(batch)
        ['base_labels', 'inputs_embeds', 'labels', 'source_0_inputs_embeds', 'source_labels']
        >>> len(loader), batch["inputs_embeds"].shape
        (3, torch.Size([4, 1, 2]))
        """
        return pair_batches(
            self, batch_size, template=template, tokenizer=tokenizer, encode=encode, label=label, positions=positions,
            unit=unit, interventions=interventions, subspaces=subspaces, seed=seed,
        )  # fmt: skip

    @classmethod
    @checked
    def sample(
        cls,
        causal_model: CausalModel,
        size: int,
        *,
        variables: str | Collection[Any],
        output: str | None = None,
        seed: int,
        balanced: str | None = None,
        where: Callable[[dict[str, Any]], bool] | None = None,
        trivial: bool = False,
        entity: str | Sequence[str] | None = None,
    ) -> CounterfactualDataset:
        """Return pairs that are drawn independently of each other; one may come up again.

        Args:
            causal_model: says the labels.
            size: n, how many.
            variables: what is interchanged: a name; names, each alone in as many examples as another; or among them
                sets of names, which are interchanged together, each with a source of its own.
            output: the variable that labels are of; default: the model's only output.
            seed: of the draws.
            balanced: `"label"`: for each of `variables`, every label that can come up is in as many examples as
                another (to within one). Or a variable: in bases and in sources each of its values is as likely as
                another, and then each setting of its parents that gives it (as `sample_inputs`); of what is drawn,
                before trivial pairs are left out. Default: each input is as likely as another.
            where: says of all variables of an input whether it is wanted, as base or as source.
            trivial: whether pairs whose label is the base's are kept; they are counted in `facts` if not.
            entity: input variables whose joint value is the entity of an input; default: all inputs.

        Raises:
            SpecError: inputs cannot be drawn, or fewer than one pair in 10,000 changes the label, or has one of them.
            UnknownNameError: there is no such variable.

        >>> both = CausalModel(["a", "b", "and"], dict.fromkeys(["a", "b", "and"], [False, True]),
        ...                    {"and": ["a", "b"]}, {"and": lambda a, b: a and b})
        >>> data = CounterfactualDataset.sample(both, 100, variables=["a", {"a", "b"}], balanced="label", seed=0)
        >>> int(data.labels.sum()), data.facts["trivial"] > 0.5
        (50, True)
        """
        generator = generator_of(seed)
        made = drawn_dataset(
            causal_model, size, generator, variables, output=output, sampler=None, where=where, balanced=balanced,
            trivial=trivial, entity=entity,
        )  # fmt: skip
        return made.told(seed=seed)

    @classmethod
    @checked
    def of(
        cls,
        causal_model: CausalModel,
        base: Any,
        source: Any,
        variables: str | Collection[Any],
        *,
        output: str | None = None,
        trivial: bool = False,
        entity: str | Sequence[str] | None = None,
    ) -> CounterfactualDataset:
        """Return pairs of inputs that you have.

        Args:
            causal_model: says the labels.
            base: a list of inputs, each by name; or by name a list of values.
            source: likewise, one a base, for all variables; or by variable those that its value comes from.
            variables: what is interchanged in all pairs, a name or a set of names; or a list of these, one a pair.
            output: as for `sample`.
            trivial: likewise.
            entity: likewise.

        Raises:
            SpecError: there are not as many of one as of another, or a value is none of its variable's.
            UnknownNameError: there is no such variable.

        >>> adder = CausalModel(["a", "b", "x"], dict.fromkeys("ab", range(10)), {"x": ["a", "b"]},
        ...                     {"x": lambda a, b: a + b})
        >>> data = CounterfactualDataset.of(adder, [{"a": 1, "b": 2}], [{"a": 5, "b": 6}], "a")
        >>> data[0]
        {'base': {'a': 1, 'b': 2}, 'sources': {'a': {'a': 5, 'b': 6}}, 'label': 7, 'base_label': 3}
        """
        found = given_pairs(causal_model, base, source, variables, output_of(causal_model, output))
        return _changing(_made(cls, causal_model, found, entity, {"made": "of"}), trivial)

    @classmethod
    @checked
    def pairs(
        cls,
        causal_model: CausalModel,
        inputs: Any,
        variables: str | Collection[Any],
        *,
        output: str | None = None,
        trivial: bool = False,
        entity: str | Sequence[str] | None = None,
    ) -> CounterfactualDataset:
        """Return all ordered pairs of some inputs, once for each set of variables.

        Args:
            causal_model: says the labels.
            inputs: a list of inputs, each by name; or by name a list of values.
            variables: as for `sample`; those that are interchanged together have the same source.
            output: as for `sample`.
            trivial: likewise.
            entity: likewise.

        Raises:
            SpecError: there are not two inputs, or a value is none of its variable's.
            UnknownNameError: there is no such variable.

        >>> adder = CausalModel(["a", "b", "x"], dict.fromkeys("ab", range(10)), {"x": ["a", "b"]},
        ...                     {"x": lambda a, b: a + b})
        >>> inputs = [{"a": 1, "b": 2}, {"a": 5, "b": 6}, {"a": 5, "b": 7}]
        >>> data = CounterfactualDataset.pairs(adder, inputs, ["a", "b"])
        >>> len(data), data.facts["trivial_left_out"]  # 3 x 2 pairs, twice; two of them have the same `a`
        (10, 2)
        """
        found = all_pairs(causal_model, inputs, variables, output_of(causal_model, output))
        return _changing(_made(cls, causal_model, found, entity, {"made": "pairs"}), trivial)


def drawn_dataset(
    causal_model: CausalSamples,
    size: int,
    generator: np.random.Generator,
    variables: str | Collection[Any],
    *,
    output: str | None,
    sampler: InputSampler | None,
    where: Callable[[dict[str, Any]], bool] | None,
    balanced: str | None,
    trivial: bool,
    entity: str | Sequence[str] | None,
) -> CounterfactualDataset:
    """Return pairs that are drawn; the arguments are those of `CausalModel.generate_counterfactual_dataset`."""
    assert isinstance(causal_model, CausalModel)
    if balanced == LABEL and LABEL in causal_model.variables:
        raise SpecError(
            f"balanced={LABEL!r} is the label after the interchange, and a variable is called so: rename it"
        )
    variable = None if balanced == LABEL else balanced
    found = drawn_pairs(
        causal_model, size, sets_of(causal_model, variables), output_of(causal_model, output), generator,
        lambda count: inputs_drawn(causal_model, count, generator, sampler, where, variable),
        by_label=balanced == LABEL, trivial=trivial,
    )  # fmt: skip
    facts = {"made": "sample", **found.facts, "balanced": balanced}
    return _made(CounterfactualDataset, causal_model, found, entity, facts)


def _changing(data: CounterfactualDataset, trivial: bool) -> CounterfactualDataset:
    """Return the pairs whose label is not the base's, or all; `facts` count the others."""
    same, asked = equal_rows(data.labels, data.base_labels), len(data)
    kept = data if trivial else data.take(~same)
    return kept.told(
        asked=asked, drawn=asked, trivial=float(same.mean()), trivial_left_out=asked - len(kept),
        distinct=distinct_count(kept.base, kept.sources, kept.where),
    )  # fmt: skip


def _made(
    cls: type[CounterfactualDataset],
    causal_model: CausalModel,
    drawn: DrawnPairs,
    entity: str | Sequence[str] | None,
    facts: Mapping[str, Any],
) -> CounterfactualDataset:
    names = causal_model.inputs if entity is None else names_of(entity)
    return cls(
        causal_model,
        drawn.base,
        drawn.sources,
        drawn.where,
        drawn.output,
        drawn.labels,
        drawn.base_labels,
        names,
        facts,
    )
