"""The contract of every intervention that the library exports; a new one joins by a line in `CASES`.

The formulas are written out here, coordinate by coordinate for subspaces; nothing of the library computes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import align_transformers
from align_transformers import (
    AdditionIntervention,
    CollectIntervention,
    FunctionIntervention,
    Intervention,
    MeanIntervention,
    NoiseIntervention,
    SkipIntervention,
    SpecError,
    SubtractionIntervention,
    VanillaIntervention,
    ZeroIntervention,
)

BATCH, UNITS, WIDTH = 2, 3, 5


def noise(units: int) -> Tensor:
    """Return unit after unit the standard normal numbers of seed 7."""
    generator = torch.Generator().manual_seed(7)
    return torch.stack([torch.randn(WIDTH, generator=generator) for _ in range(units)])


@dataclass(frozen=True)
class Case:
    """One intervention: how to make it, and its formula for whole vectors."""

    kind: Callable[..., Intervention]
    formula: Callable[[Tensor, Tensor], Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    needs_source: bool = False
    identity_on_equal: bool = False
    writes: bool = True

    def make(self, **more: Any) -> Intervention:
        return self.kind(**self.options, **more)


CASES = {
    "vanilla": Case(VanillaIntervention, lambda b, s: s, needs_source=True, identity_on_equal=True),
    "addition": Case(AdditionIntervention, lambda b, s: b + s, needs_source=True),
    "subtraction": Case(SubtractionIntervention, lambda b, s: b - s, needs_source=True),
    "zero": Case(ZeroIntervention, lambda b, s: b * 0),
    "mean": Case(MeanIntervention, lambda b, s: s, needs_source=True, identity_on_equal=True),
    "noise": Case(
        NoiseIntervention,
        lambda b, s: b + (noise(b.shape[1]) * 0.5).to(b),
        {"noise_level": 2.0, "std": 0.25, "seed": 7},
    ),
    "skip": Case(SkipIntervention, lambda b, s: s, needs_source=True, identity_on_equal=True),
    "collect": Case(CollectIntervention, lambda b, s: b, writes=False),
    "function": Case(
        FunctionIntervention, lambda b, s: 2 * b - s, {"function": lambda b, s: 2 * b - s}, identity_on_equal=True
    ),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
WRITING = {name: case for name, case in CASES.items() if case.writes}
writing = pytest.mark.parametrize("case", WRITING.values(), ids=WRITING)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def base_and_source(units: int = UNITS, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return draw(BATCH, units, WIDTH, seed=1, dtype=dtype), draw(BATCH, units, WIDTH, seed=2, dtype=dtype)


def limited(new: Tensor, base: Tensor, chosen: list[set[int]]) -> Tensor:
    """Return `new` in the chosen coordinates of each example, `base` elsewhere."""
    out = base.clone()
    for example, coordinates in enumerate(chosen):
        for c in coordinates:
            out[example, ..., c] = new[example, ..., c]
    return out


def test_every_exported_intervention_has_a_case():
    exported = {
        value
        for value in vars(align_transformers).values()
        if isinstance(value, type) and issubclass(value, Intervention) and not value.__abstractmethods__
    }
    assert exported == {case.kind for case in CASES.values()}


@every
@pytest.mark.parametrize("units", [1, 2, 4, 7])
def test_formula_and_shape_with_any_number_of_units(case, units):
    base, source = base_and_source(units)
    new = case.make()(base, source)
    assert new.shape == base.shape
    assert torch.equal(new, case.formula(base, source))


@every
def test_neither_base_nor_source_is_written(case):
    base, source = base_and_source()
    kept = base.clone(), source.clone()
    for subspaces in (None, ((0,), (1,))) if case.writes else (None,):
        case.make()(base, source, subspaces)
    assert torch.equal(base, kept[0])
    assert torch.equal(source, kept[1])


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_bases_dtype_is_kept(case, dtype):
    base, source = base_and_source(dtype=dtype)
    new = case.make()(base, source)
    assert new.dtype == dtype
    assert torch.equal(new, case.formula(base, source))
    if case.needs_source:
        assert case.make()(base, source.float()).dtype == dtype


@pytest.mark.parametrize("case", [case for case in CASES.values() if case.identity_on_equal])
def test_a_source_equal_to_the_base_changes_nothing(case):
    base, _ = base_and_source()
    assert torch.equal(case.make()(base, base.clone()), base)


@every
def test_calls_do_not_depend_on_each_other_nor_on_global_randomness(case):
    base, source = base_and_source()
    one = case.make()
    first = one(base, source)
    one(*base_and_source(5))
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(one(base, source), first)
    assert torch.equal(case.make()(base, source), first)
    assert torch.equal(torch.get_rng_state(), state)


@every
def test_an_example_does_not_depend_on_its_batch(case):
    base, source = base_and_source()
    both, one = case.make()(base, source), case.make()
    for n in range(BATCH):
        assert torch.equal(one(base[n : n + 1], source[n : n + 1]), both[n : n + 1])


@every
def test_a_unit_does_not_depend_on_how_many_follow(case):
    base, source = base_and_source(6)
    few = case.make()(base[:, :2], source[:, :2])
    assert torch.equal(case.make()(base, source)[:, :2], few)


# --- coordinates ---------------------------------------------------------------------------------------------------

PARTITIONS = {
    "ranges": [[0, 2], [2, 5]],
    "explicit": [[0, 1], [4, 2, 3]],
    "sets": [{1, 0}, {2, 3, 4}],
    "tensors": [torch.tensor([0, 1]), torch.tensor([3, 2, 4])],
    "a tensor of ranges": torch.tensor([[0, 2], [2, 5]]),
    "arrays": [np.array([1, 0]), np.array([2, 3, 4])],
}
PARTS = {"explicit": [{0}, {2, 3, 4}]}  # [0, 1] is a range of one


@writing
@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("choice", [((0,), (1,)), ((1,), (1,)), ((0, 1), ()), ((), (0,))], ids=str)
def test_each_example_has_its_own_subspaces(case, partition, choice):
    base, source = base_and_source()
    parts = PARTS.get(partition, [{0, 1}, {2, 3, 4}])
    chosen = [set().union(*(parts[number] for number in numbers)) for numbers in choice]
    new = case.make(subspace_partition=PARTITIONS[partition])(base, source, choice)
    assert torch.equal(new, limited(case.formula(base, source), base, chosen))


@writing
def test_without_a_partition_a_subspace_is_a_coordinate(case):
    base, source = base_and_source(units=1)
    new = case.make()(base, source, ((0,), (3, 1)))
    assert torch.equal(new, limited(case.formula(base, source), base, [{0}, {1, 3}]))


@writing
def test_subspaces_of_units_side_by_side(case):
    base, source = (value.flatten(1) for value in base_and_source())
    one = case.make(keep_last_dim=False, embed_dim=WIDTH, subspace_partition=[[0, 7], [7, 15]])
    whole = case.make(keep_last_dim=False)(base, source)
    assert whole.shape == base.shape
    new = one(base, source, ((1,), (0,)))
    assert torch.equal(new, limited(whole, base, [set(range(7, 15)), set(range(7))]))


@writing
def test_interchange_dim_limits_calls_without_subspaces(case):
    base, source = base_and_source()
    one, formula = case.make(interchange_dim=2), case.formula(base, source)
    assert torch.equal(one(base, source), limited(formula, base, [{0, 1}] * BATCH))
    assert torch.equal(one(base, source, ((4,), (4,))), limited(formula, base, [{4}] * BATCH))
    one.set_interchange_dim(0)
    assert torch.equal(one(base, source), base)


@every
@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (((0,),), "subspaces name 1 examples, but the batch has 2"),
        (((0,), (2,)), "subspace 2 of example 1 does not exist: there are 2"),
    ],
)
def test_wrong_subspaces(case, choice, message):
    with pytest.raises(SpecError, match=message):
        case.make(subspace_partition=[[0, 2], [2, 5]])(*base_and_source(), choice)


@every
def test_wrong_options(case):
    with pytest.raises(SpecError, match="names coordinate 5, but the vector has 5"):
        case.make(subspace_partition=[[0, 6]], embed_dim=WIDTH)
    with pytest.raises(SpecError, match="interchange_dim is a number of coordinates, from 0; found -1"):
        case.make(interchange_dim=-1)
    with pytest.raises(TypeError, match="colour"):
        case.make(colour="red")


# --- sources -------------------------------------------------------------------------------------------------------

needing = pytest.mark.parametrize("case", [case for case in CASES.values() if case.needs_source])


@needing
def test_one_vector_serves_all_units(case):
    base, _ = base_and_source()
    vector = draw(WIDTH, seed=3)
    wanted = case.formula(base, torch.stack([torch.stack([vector] * UNITS)] * BATCH))
    assert torch.equal(case.make()(base, vector), wanted)
    assert torch.equal(case.make(source_representation=vector)(base), wanted)
    assert torch.equal(case.make()(base, vector.view(1, 1, WIDTH)), wanted)


@needing
def test_a_source_of_the_call_outranks_the_constant(case):
    base, source = base_and_source()
    assert torch.equal(case.make(source_representation=draw(WIDTH))(base, source), case.formula(base, source))


@needing
def test_the_constant_is_a_copy_and_is_saved(case):
    base, _ = base_and_source()
    vector = draw(WIDTH, seed=3)
    one = case.make(source_representation=vector)
    wanted = one(base)
    vector.zero_()
    assert torch.equal(one(base), wanted)
    assert set(one.state_dict()) == {"source_representation"}


@needing
def test_a_missing_source_is_an_error(case):
    with pytest.raises(
        SpecError, match=f"{case.kind.__name__} needs a source: pass one, or construct it with source_r"
    ):
        case.make()(draw(BATCH, UNITS, WIDTH))


@needing
def test_a_source_that_does_not_fit_is_an_error(case):
    with pytest.raises(SpecError, match=r"the source \(4,\) does not fit the base \(2, 3, 5\)"):
        case.make()(draw(BATCH, UNITS, WIDTH), draw(4))
    with pytest.raises(SpecError, match=r"the source \(2, 2, 3, 5\) does not fit"):
        case.make()(draw(BATCH, UNITS, WIDTH), draw(2, BATCH, UNITS, WIDTH))


@every
def test_gradients_flow_where_the_formula_has_them(case):
    base, source = (value.requires_grad_() for value in base_and_source())
    weights = draw(BATCH, UNITS, WIDTH, seed=4)
    for partition, choice, chosen in ((None, None, None), ([[0, 2], [2, 5]], ((0,), (1,)), [{0, 1}, {2, 3, 4}])):
        if choice is not None and not case.writes:
            continue
        new = case.make(subspace_partition=partition)(base, source, choice)
        wanted = case.formula(base, source)
        wanted = wanted if chosen is None else limited(wanted, base, chosen)
        got = torch.autograd.grad((new * weights).sum() + 0 * (base.sum() + source.sum()), (base, source))
        want = torch.autograd.grad((wanted * weights).sum() + 0 * (base.sum() + source.sum()), (base, source))
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


# --- what only some have -------------------------------------------------------------------------------------------


def test_collect_returns_the_chosen_coordinates_side_by_side():
    base, _ = base_and_source()
    one = CollectIntervention(subspace_partition=[[0, 2], [3, 5]])
    got = one(base, None, ((1,), (0,)))
    assert torch.equal(got, torch.stack([base[0][:, [3, 4]], base[1][:, [0, 1]]]))
    assert torch.equal(CollectIntervention(interchange_dim=2)(base), base[..., :2])
    assert one(base, None, ((), ())).shape == (BATCH, UNITS, 0)
    with pytest.raises(SpecError, match=r"subspaces of \[2, 4\] coordinates cannot be collected in one call"):
        one(base, None, ((0,), (0, 1)))


def test_mean_takes_it_from_activations():
    activations = draw(4, 2, WIDTH, seed=5)
    got = MeanIntervention(activations=activations)(draw(BATCH, UNITS, WIDTH))
    assert torch.allclose(got[1, 2], activations.sum((0, 1)) / 8)
    with pytest.raises(SpecError, match="MeanIntervention needs a source"):
        MeanIntervention()(draw(BATCH, UNITS, WIDTH))


def test_noise_has_the_stated_deviation_and_differs_with_the_seed():
    zeros = torch.zeros(1, 50, 400)
    one = NoiseIntervention(noise_level=3.0, std=0.1)(zeros)
    assert abs(float(one.std()) - 0.3) < 0.01
    assert abs(float(one.mean())) < 0.01
    assert not torch.equal(one, NoiseIntervention(noise_level=3.0, std=0.1, seed=1)(zeros))
    assert not torch.equal(one[:, 0], one[:, 1])


def test_noise_of_no_units_is_none():
    assert NoiseIntervention()(torch.zeros(2, 0, 4)).shape == (2, 0, 4)
