"""The contract of every intervention that the library exports; a new one joins by a line in `CASES` of `cases.py`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests.contracts.cases import BATCH, CASES, UNITS, WIDTH, base_and_source, draw

from align_transformers import SpecError, UnknownNameError, interventions
from align_transformers.interventions import (
    CollectIntervention,
    FunctionIntervention,
    Intervention,
    MeanIntervention,
    NoiseIntervention,
)

every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def those(condition):
    """Parametrise over the cases of which a condition is true."""
    chosen = {name: case for name, case in CASES.items() if condition(case)}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen)


parted = those(lambda case: case.writes and case.parts)
needing = those(lambda case: case.needs_source)


def test_every_exported_intervention_has_a_case():
    exported = {
        value
        for value in (getattr(interventions, name) for name in interventions.__all__)
        if isinstance(value, type) and issubclass(value, Intervention) and not value.__abstractmethods__
    }
    exported.remove(interventions.SubspaceIntervention)  # its contract is test_pairs.py
    assert exported == {case.kind for case in CASES.values()}
    assert len(exported) == len(CASES)


@every
@pytest.mark.parametrize("units", [1, 2, 4, 7])
def test_formula_and_shape_with_any_number_of_units(case, units):
    base, source = base_and_source(units)
    one = case.make()
    case.check(one(base, source, case.must_choose), case.wanted(one, base, source))


@every
def test_neither_base_nor_source_is_written(case):
    base, source = base_and_source()
    kept = base.clone(), source.clone()
    for subspaces in (case.must_choose, ((0,), (0,))) if case.writes else (None,):
        case.make()(base, source, subspaces)
    assert torch.equal(base, kept[0])
    assert torch.equal(source, kept[1])


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_bases_dtype_is_kept(case, dtype):
    base, source = base_and_source(dtype=dtype)
    one = case.make()
    case.check(one(base, source, case.must_choose), case.wanted(one, base, source))
    if case.needs_source:
        assert one(base, source.float(), case.must_choose).dtype == dtype


@those(lambda case: case.identity_on_equal)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_source_equal_to_the_base_changes_nothing(case, dtype):
    base, _ = base_and_source(dtype=dtype)
    assert torch.equal(case.make()(base, base.clone(), case.must_choose), base)


@every
def test_calls_do_not_depend_on_each_other_nor_on_global_randomness(case):
    base, source = base_and_source()
    one = case.make()
    first = one(base, source, case.must_choose)
    one(*base_and_source(5), case.must_choose)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(one(base, source, case.must_choose), first)
    assert torch.equal(case.make()(base, source, case.must_choose), first)
    assert torch.equal(torch.get_rng_state(), state)


@every
def test_an_example_does_not_depend_on_its_batch(case):
    base, source = base_and_source()
    both, one = case.make()(base, source, case.must_choose), case.make()
    for n in range(BATCH):
        choice = None if case.must_choose is None else case.must_choose[n : n + 1]
        alone = one(base[n : n + 1], source[n : n + 1], choice)
        # Matrix products of another size may round otherwise.
        torch.testing.assert_close(alone, both[n : n + 1], rtol=0, atol=0 if case.exact else 1e-5)


@every
def test_a_unit_does_not_depend_on_how_many_follow(case):
    base, source = base_and_source(6)
    one = case.make()
    few = one(base[:, :2], source[:, :2], case.must_choose)
    many = one(base, source, case.must_choose)[:, :2]
    torch.testing.assert_close(few, many, rtol=0, atol=0 if case.exact else 1e-5)


@every
def test_the_same_with_and_without_gradients(case):
    base, source = base_and_source()
    one = case.make()
    wanted = one(base, source, case.must_choose)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(one(base, source, case.must_choose), wanted)
    assert torch.equal(one(base, source, case.must_choose), wanted)


@every
def test_parameters_elsewhere_come_to_the_base(case):
    base, source = (value.to("meta") for value in base_and_source())  # another device: nothing may meet what is on CPU
    new = case.make()(base, source, case.must_choose)
    assert (new.device.type, new.shape) == ("meta", base.shape)


@every
def test_autocast_does_not_make_it_less_exact(case):
    base, source = base_and_source()
    one = case.make()
    wanted = one(base, source, case.must_choose)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(one(base, source, case.must_choose), wanted)


# --- coordinates ---------------------------------------------------------------------------------------------------


def as_written(form: str, k: int):
    """Return the parts {0, 1} and {2, ..., k - 1} in one of the ways to write them."""
    rest = list(range(2, k))
    return {
        "ranges": [[0, 2], [2, k]],
        "explicit": [[[1, 2], [0, 1]], [*rest[1:], rest[0]]],
        "sets": [{1, 0}, set(rest)],
        "tensors": [torch.tensor([0, 1]), torch.tensor(rest[::-1])],
        "a tensor of ranges": torch.tensor([[0, 2], [2, k]]),
        "arrays": [np.array([1, 0]), np.array(rest)],
    }[form]


@parted
@pytest.mark.parametrize("form", ["ranges", "explicit", "sets", "tensors", "a tensor of ranges", "arrays"])
@pytest.mark.parametrize("choice", [((0,), (1,)), ((1,), (1,)), ((0, 1), ()), ((), (0,))], ids=str)
def test_each_example_has_its_own_subspaces(case, form, choice):
    base, source = base_and_source()
    k = case.coordinates(WIDTH)
    parts = [{0, 1}, set(range(2, k))]
    chosen = [set().union(*(parts[number] for number in numbers)) for numbers in choice]
    one = case.make(subspace_partition=as_written(form, k))
    new = one(base, source, choice)
    case.check(new, case.wanted(one, base, source, chosen))
    for example, numbers in enumerate(choice):
        if not numbers:
            assert torch.equal(new[example], base[example])


@parted
def test_without_a_partition_a_subspace_is_a_coordinate(case):
    base, source = base_and_source(units=1)
    one = case.make()
    case.check(one(base, source, ((0,), (2, 1))), case.wanted(one, base, source, [{0}, {1, 2}]))


@parted
def test_subspaces_of_units_side_by_side(case):
    base, source = (value.flatten(1) for value in base_and_source())
    k = case.coordinates(UNITS * WIDTH)
    one = case.make(UNITS * WIDTH, keep_last_dim=False, subspace_partition=[[0, 2], [2, k]])
    new = one(base, source, ((1,), (0,)))
    assert new.shape == base.shape
    rows = base.unsqueeze(1), source.unsqueeze(1)
    case.check(new, case.wanted(one, *rows, [set(range(2, k)), {0, 1}]).squeeze(1))


@parted
def test_interchange_dim_limits_calls_without_subspaces(case):
    base, source = base_and_source()
    one = case.make(interchange_dim=2)
    case.check(one(base, source), case.wanted(one, base, source, [{0, 1}] * BATCH))
    case.check(one(base, source, ((2,), (2,))), case.wanted(one, base, source, [{2}] * BATCH))
    one.set_interchange_dim(0)
    assert torch.equal(one(base, source), base)


@parted
@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (((0,),), "subspaces name 1 examples, but the batch has 2"),
        (((0,), (2,)), "subspace 2 of example 1 does not exist: there are 2"),
    ],
)
def test_wrong_subspaces(case, choice, message):
    with pytest.raises(SpecError, match=message):
        case.make(subspace_partition=[[0, 2], [2, 3]])(*base_and_source(), choice)


@every
def test_wrong_options(case):
    k = case.coordinates(WIDTH)
    if case.must_choose is None:
        with pytest.raises(SpecError, match=f"names coordinate {k}, but the vector has {k}"):
            case.make(subspace_partition=[[0, k + 1]])
    with pytest.raises(SpecError, match="interchange_dim is a number of coordinates, from 0; found -1"):
        case.make(interchange_dim=-1)
    with pytest.raises(UnknownNameError, match="no argument 'colour'"):
        case.make(colour="red")


# --- what is kept --------------------------------------------------------------------------------------------------


@those(lambda case: case.kind is not FunctionIntervention)
@pytest.mark.parametrize("constant", [False, True], ids=["", "constant"])
@pytest.mark.parametrize("partition", [None, [[0, 1], {0, 2}, [2, 1, 0]]], ids=["", "parts"])
def test_arguments_and_state_make_an_equal_one(case, constant, partition):
    if partition is not None and not (case.parts and case.writes):
        partition = None
    base, source = base_and_source()
    one = case.make(subspace_partition=partition, keep_last_dim=False)
    if constant:
        one.set_source_representation(draw(UNITS, WIDTH, seed=3))
    written = json.dumps(one.arguments())
    two = case.kind(**json.loads(written))
    two.load_state_dict({name: value.clone() for name, value in one.state_dict().items()})
    choice = case.must_choose if partition is None else ((1,), (2, 0))
    given = None if constant else source
    assert torch.equal(two(base, given, choice), one(base, given, choice))
    assert json.dumps(two.arguments()) == written
    assert two.keep_last_dim is False
    assert {n: v.dtype for n, v in two.state_dict().items()} == {n: v.dtype for n, v in one.state_dict().items()}


# --- sources -------------------------------------------------------------------------------------------------------


@needing
def test_one_vector_serves_all_units(case):
    base, _ = base_and_source()
    vector = draw(WIDTH, seed=3)
    one, choice = case.make(), case.must_choose
    wanted = case.wanted(one, base, torch.stack([torch.stack([vector] * UNITS)] * BATCH))
    case.check(one(base, vector, choice), wanted)
    case.check(case.make(source_representation=vector)(base, None, choice), wanted)
    case.check(one(base, vector.view(1, 1, WIDTH), choice), wanted)


@needing
def test_a_source_of_the_call_outranks_the_constant(case):
    base, source = base_and_source()
    one = case.make(source_representation=draw(WIDTH))
    case.check(one(base, source, case.must_choose), case.wanted(one, base, source))


@needing
def test_the_constant_is_a_copy_and_is_saved(case):
    base, _ = base_and_source()
    vector = draw(WIDTH, seed=3)
    one = case.make(source_representation=vector)
    wanted = one(base, None, case.must_choose)
    vector.zero_()
    assert torch.equal(one(base, None, case.must_choose), wanted)
    assert torch.equal(one.state_dict()["source_representation"], draw(WIDTH, seed=3))


@needing
def test_a_missing_source_is_an_error(case):
    with pytest.raises(
        SpecError, match=f"{case.kind.__name__} needs a source: pass one, or construct it with source_r"
    ):
        case.make()(draw(BATCH, UNITS, WIDTH), None, case.must_choose)


@needing
def test_a_source_that_does_not_fit_is_an_error(case):
    with pytest.raises(SpecError, match=r"the source \(4,\) does not fit the base \(2, 3, 5\)"):
        case.make()(draw(BATCH, UNITS, WIDTH), draw(4), case.must_choose)
    with pytest.raises(SpecError, match=r"the source \(2, 2, 3, 5\) does not fit"):
        case.make()(draw(BATCH, UNITS, WIDTH), draw(2, BATCH, UNITS, WIDTH), case.must_choose)


@every
def test_gradients_flow_where_the_formula_has_them(case):
    base, source = (value.requires_grad_() for value in base_and_source())
    weights = draw(BATCH, UNITS, WIDTH, seed=4)
    k = case.coordinates(WIDTH)
    by_parts = ([[0, 2], [2, k]], ((0,), (1,)), [{0, 1}, set(range(2, k))])
    for partition, choice, chosen in ((None, case.must_choose, None), by_parts):
        if partition is not None and not (case.parts and case.writes):
            continue
        one = case.make(subspace_partition=partition)
        inputs = base, source, *one.parameters()
        new, wanted = one(base, source, choice), case.wanted(one, base, source, chosen)
        got, want = (
            torch.autograd.grad(
                (result * weights).sum() + 0 * base.sum(), inputs, allow_unused=True, materialize_grads=True
            )
            for result in (new, wanted)
        )
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=0 if case.exact else 1e-4, atol=0 if case.exact else 1e-4)


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
