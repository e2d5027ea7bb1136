"""The contract of every operation in every subspace; a new one joins by a line in `pairs.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.contracts.cases import BATCH, UNITS, WIDTH, base_and_source, draw
from tests.contracts.each import each
from tests.contracts.pairs import OPERATIONS, PAIRS, SUBSPACES
from tests.storage.kit import assert_same, contents, intervene, mlp

from align_transformers import SpecError, operations, subspaces
from align_transformers.interventions import SubspaceIntervention
from align_transformers.operations import Operation
from align_transformers.storage import load, save
from align_transformers.subspaces import Subspace

README = (Path(__file__).parents[2] / "README.md").read_text()


def those(condition):
    """Run a test for the pairs of which a condition is true, those of one subspace together."""
    return each(
        "pair",
        {
            where: {name: pair for name, pair in PAIRS.items() if pair.space is space and condition(pair)}
            for where, space in SUBSPACES.items()
        },
    )


every = those(lambda pair: True)
writing = those(lambda pair: pair.operation is not OPERATIONS["collect"])
saved = those(lambda pair: pair.operation.saved)


def close(got, wanted, bound=2e-5):
    assert got.shape == wanted.shape
    torch.testing.assert_close(got.double(), wanted, rtol=bound, atol=bound)


def test_every_exported_one_is_paired():
    for module, kind, table in ((operations, Operation, OPERATIONS), (subspaces, Subspace, SUBSPACES)):
        exported = [getattr(module, name) for name in module.__all__]
        concrete = {
            one for one in exported if isinstance(one, type) and issubclass(one, kind) and not one.__abstractmethods__
        }
        missing = [one.__name__ for one in concrete if f"`{one.__name__}`" not in README]
        assert not missing, "the README names all of them"
        made = [one.make(WIDTH, 3) if kind is Operation else one.make(WIDTH) for one in table.values()]
        assert concrete == {type(one) for one in made}


@every
@pytest.mark.parametrize("units", [1, 4])
def test_formula_with_any_number_of_units(pair, units):
    base, source = base_and_source(units)
    one = pair.make()
    close(one(base, source, pair.space.choice), pair.wanted(one, base, source))


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype(pair, dtype):
    base, source = base_and_source(dtype=dtype)
    one = pair.make()
    new = one(base, source.float(), pair.space.choice)
    assert not one.writes or new.dtype == dtype
    close(new, pair.wanted(one, base, source), 5e-2 if dtype == torch.bfloat16 else 2e-5)


@every
def test_device(pair):
    base, source = (value.to("meta") for value in base_and_source())  # nothing may meet what is on CPU
    new = pair.make()(base, source, pair.space.choice)
    assert new.device.type == "meta"


@every
def test_nothing_is_written_and_nothing_is_random(pair):
    base, source = base_and_source()
    kept = base.clone(), source.clone()
    one = pair.make()
    first = one(base, source, pair.space.choice)
    state = torch.get_rng_state()
    one(*base_and_source(5), pair.space.choice)
    with torch.inference_mode():
        assert torch.equal(one(base, source, pair.space.choice), first)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(one(base, source, pair.space.choice), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(base, kept[0])
    assert torch.equal(source, kept[1])


@those(lambda pair: pair.operation.identity)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_source_equal_to_the_base_changes_nothing(pair, dtype):
    base, _ = base_and_source(dtype=dtype)
    one = pair.make()
    if getattr(one.subspace, "include_error", True):
        assert torch.equal(one(base, base.clone(), pair.space.choice), base)


@writing
def test_an_example_that_chooses_nothing_is_kept(pair):
    base, source = base_and_source()
    one = pair.make()
    if pair.space.choice is None and getattr(one.subspace, "include_error", True):
        assert torch.equal(one(base, source, ((0,), ()))[1], base[1])


@every
def test_each_example_has_its_own_subspaces(pair):
    base, source = base_and_source()
    size = pair.make().subspace.size
    if pair.space.choice is not None or size < 3:
        return
    one = pair.make(subspace_partition=[{0, 2}, [[1, 2], [2, 3]]])
    for choice, chosen in ((((0,), (1,)), [{0, 2}, {1, 2}]), (((1,), (1,)), [{1, 2}] * 2)):
        close(one(base, source, choice), pair.wanted(one, base, source, chosen))
    if one.writes:
        close(one(base, source, ((0, 1), ())), pair.wanted(one, base, source, [{0, 1, 2}, set()]))
    few = pair.make(coordinates=[2, 0])
    close(few(base, source), pair.wanted(few, base, source, [{0, 2}] * BATCH))
    assert torch.equal(pair.make(interchange_dim=size)(base, source), pair.make()(base, source))


@writing
def test_examples_and_units_do_not_depend_on_others(pair):
    base, source = base_and_source(6)
    one, choice = pair.make(), pair.space.choice
    both = one(base, source, choice)
    few = one(base[:, :2], source[:, :2], choice)
    torch.testing.assert_close(few, both[:, :2], rtol=1e-5, atol=1e-5)
    alone = one(base[1:, :2], source[1:, :2], None if choice is None else choice[1:])
    if choice is None:
        torch.testing.assert_close(alone, both[1:, :2], rtol=1e-5, atol=1e-5)


@every
def test_units_side_by_side(pair):
    base, source = (value.flatten(1) for value in base_and_source())
    one = pair.make(UNITS * WIDTH, keep_last_dim=False)
    new = one(base, source, pair.space.choice)
    close(new, pair.wanted(one, base.unsqueeze(1), source.unsqueeze(1)).squeeze(1))


@every
def test_gradients_are_those_of_the_formula(pair):
    base, source = (value.double().requires_grad_() for value in base_and_source())
    one = pair.make()
    inputs = base, source, *one.parameters()
    new, wanted = one(base, source, pair.space.choice), pair.wanted(one, base, source)
    weights = draw(*wanted.shape, seed=4)
    got, want = (
        torch.autograd.grad(
            (result * weights).sum() + 0 * base.sum(), inputs, allow_unused=True, materialize_grads=True
        )
        for result in (new, wanted)
    )
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)


@saved
@pytest.mark.parametrize("more", [{}, {"coordinates": [0], "keep_last_dim": False}], ids=["", "options"])
def test_arguments_and_state_make_an_equal_one(pair, more):
    base, source = base_and_source()
    one = pair.make(**more)
    one.set_source_representation(draw(UNITS, WIDTH, seed=3))
    written = json.dumps(one.arguments())
    two = SubspaceIntervention(**json.loads(written))
    two.load_state_dict({name: value.clone() for name, value in one.state_dict().items()}, assign=True)
    for given in (source, None):
        assert torch.equal(two(base, given, pair.space.choice), one(base, given, pair.space.choice))
    assert json.dumps(two.arguments()) == written
    assert [(n, p.requires_grad) for n, p in one.named_parameters()] == [
        (n, p.requires_grad) for n, p in two.named_parameters()
    ]


def test_every_pair_is_saved_and_loaded_bit_for_bit(tmp_path):
    pairs = [pair for pair in PAIRS.values() if pair.operation.saved]
    ones = [pair.make() for pair in pairs]
    folder = save(contents(intervene(ones, mlp())), tmp_path / "kept")
    loaded = [one.intervention for one in load(folder, model=mlp()).config.representations]
    base, source = base_and_source()
    for pair, one, two in zip(pairs, ones, loaded, strict=True):
        assert_same(one, two)
        assert torch.equal(two(base, source, pair.space.choice), one(base, source, pair.space.choice))


@those(lambda pair: pair.operation.source)
def test_a_missing_or_unfitting_source_is_an_error(pair):
    base, _ = base_and_source()
    with pytest.raises(SpecError, match="SubspaceIntervention needs a source: pass one, or construct it with"):
        pair.make()(base, None, pair.space.choice)
    with pytest.raises(SpecError, match=r"the source \(4,\) does not fit the base \(2, 3, 5\)"):
        pair.make()(base, draw(4), pair.space.choice)


@every
def test_wrong_options(pair):
    size = pair.make().subspace.size
    with pytest.raises(SpecError, match=f"coordinates are numbers from 0 to {size - 1}, at least one"):
        pair.make(coordinates=[size])
    message = "members of a stack" if pair.space.choice else f"names coordinate {size}, but the vector has {size}"
    with pytest.raises(SpecError, match=message):
        pair.make(subspace_partition=[[0, size + 1]])
