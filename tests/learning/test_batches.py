"""How the columns of a batch become the arguments of a call."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.helpers import HEADS, new_model, padded_tokens, tiny, tokens
from torch import nn

from align_transformers import (
    IntervenableConfig,
    IntervenableModel,
    PositionError,
    Positions,
    SpecError,
    UnknownNameError,
    VanillaIntervention,
)
from align_transformers.compose import Call, compose
from align_transformers.learning.batches import read_batch
from align_transformers.locations import Location
from align_transformers.positions import EVERYWHERE

IDS, OTHER = tokens(2, 5), tokens(2, 5, 1)
SOURCE = {f"source_{name}": value for name, value in OTHER.items()}
WHERE = {"source_0->base.0.pos": torch.tensor([[1], [3]]), "source_0->base.1.pos": torch.tensor([[2], [4]])}


def read(batch, spec=None, mode="parallel", model=None):
    spec = spec or {"layer": 1, "component": "mlp_output"}
    face = IntervenableModel(IntervenableConfig(representations=spec, mode=mode), model or tiny("llama"))
    return read_batch(batch, face.model, face.config, face.representations)


def at(*rows, heads=None):
    """Return positions, one argument an example."""
    return Positions(rows or None, heads)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_base_source_and_places():
    call = read({**IDS, **SOURCE, **WHERE, "labels": torch.zeros(2), "text": ["a", "b"], "idx": torch.arange(2)})
    assert same(call.base, IDS)
    assert same(call.sources, OTHER)
    assert call.unit_locations == (Location(at((1,), (3,)), at((2,), (4,))),)
    assert call.subspaces is None


def test_what_is_read_in_the_source_is_written_in_the_base():
    """`.0` is where the source is read, `.1` where the base is written: against a swap done by hand."""
    model = new_model("llama")
    face = IntervenableModel({"layer": 1, "component": "block_output"}, model)
    call = read({**IDS, **SOURCE, **WHERE}, {"layer": 1, "component": "block_output"}, model=model)
    _, got = face(call.base, call.sources, call.unit_locations)
    kept = []
    block = model.model.layers[1]
    handle = block.register_forward_hook(lambda _m, _i, out: kept.append(out))
    model(**OTHER)
    handle.remove()

    def swap(_m, _i, out):
        new = out.clone()
        new[0, 2], new[1, 4] = kept[0][0, 1], kept[0][1, 3]
        return new

    handle = block.register_forward_hook(swap)
    expected = model(**IDS).logits
    handle.remove()
    assert torch.equal(got.logits, expected)


def test_sources_as_a_list_numbered_or_along_an_axis():
    third = tokens(2, 5, 2)
    ids, masks = [OTHER["input_ids"], third["input_ids"]], [OTHER["attention_mask"], third["attention_mask"]]
    spec = [{"layer": n, "component": "mlp_output"} for n in (0, 1)]
    for columns in (
        {"source_input_ids": ids, "source_attention_mask": masks},
        {"source_input_ids": torch.stack(ids, 1), "source_attention_mask": torch.stack(masks, 1)},
        {"source_0_input_ids": ids[0], "source_0_attention_mask": masks[0],
         "source_1_input_ids": ids[1], "source_1_attention_mask": masks[1]},
    ):  # fmt: skip
        call = read({**IDS, **columns}, spec)
        assert same(call.sources[0], OTHER)
        assert same(call.sources[1], third)
    with pytest.raises(SpecError, match="number every source"):
        read({**IDS, "source_0_input_ids": ids[0], "source_attention_mask": masks[0]}, spec)
    with pytest.raises(SpecError, match="from 0"):
        read({**IDS, "source_1_input_ids": ids[0]}, spec)
    with pytest.raises(SpecError, match="as many sources"):
        read({**IDS, "source_input_ids": ids, "source_attention_mask": masks[0]}, spec)


def test_places_of_several_interventions():
    spec = [{"layer": n, "component": "mlp_output"} for n in (0, 1)]
    shared = read({**IDS, **SOURCE, **WHERE}, spec)
    first = Location(at((1,), (3,)), at((2,), (4,)))
    assert shared.unit_locations == (first, first)
    more = {"source_1->base.0.pos": [[0], [0]], "source_1->base.1.pos": torch.tensor([1, 2])}
    own = read({**IDS, **SOURCE, **WHERE, **more}, spec)
    assert own.unit_locations == (first, Location(at((0,), (0,)), at((1,), (2,))))
    only = read({**IDS, **SOURCE, "source_1->base.0.pos": [[0], [0]], "source_1->base.1.pos": [[1], [1]]}, spec)
    assert only.unit_locations == (None, Location(at((0,), (0,)), at((1,), (1,)))), "None: the first is skipped"
    unread = read({**IDS, **SOURCE, "source_1->base.1.pos": [[1], [1]]}, spec)
    assert unread.unit_locations == (None, Location(EVERYWHERE, at((1,), (1,))))
    with pytest.raises(SpecError, match="where intervention 1 reads, but not where it writes"):
        read({**IDS, **SOURCE, **WHERE, "source_1->base.0.pos": [[0], [0]]}, spec)
    with pytest.raises(SpecError, match="source_2"):
        read({**IDS, "source_2->base.0.pos": [[0], [0]]}, spec)


@pytest.mark.parametrize("underscore", ["_", ""])
def test_places_in_serial_mode(underscore):
    chain = f"source_0->source{underscore}1"
    batch = {
        **IDS,
        "source_input_ids": [OTHER["input_ids"]] * 2,
        f"{chain}.0.pos": [[1], [1]],
        f"{chain}.1.pos": [[2], [2]],
        "source_1->base.0.pos": [[3], [3]],
        "source_1->base.1.pos": [[4], [4]],
    }
    call = read(batch, [{"layer": n, "component": "mlp_output"} for n in (0, 1)], "serial")
    assert call.unit_locations == tuple(Location(at((n,), (n,)), at((n + 1,), (n + 1,))) for n in (1, 3))


def test_what_no_column_names_in_serial_mode_is_the_whole_tensor():
    batch = {**IDS, "source_input_ids": [OTHER["input_ids"]] * 2, "source_1->base.1.pos": [[4], [4]]}
    call = read(batch, [{"layer": n, "component": "mlp_output"} for n in (0, 1)], "serial")
    assert call.unit_locations == (Location(EVERYWHERE, EVERYWHERE), Location(EVERYWHERE, at((4,), (4,))))


def test_heads_at_positions():
    spec = {"layer": 1, "component": "head_attention_value_output", "unit": "h.pos"}
    columns = {"source_0->base.0.h": [[0], [1]], "source_0->base.1.h": [[2], [HEADS - 1]]}
    call = read({**IDS, **SOURCE, **WHERE, **columns}, spec)
    heads = ((0,), (1,)), ((2,), (HEADS - 1,))
    assert call.unit_locations == (Location(at((1,), (3,), heads=heads[0]), at((2,), (4,), heads=heads[1])),)
    with pytest.raises(SpecError, match=r"h\.pos"):
        read({**IDS, **SOURCE, **WHERE}, spec)


MANY = {"layer": 1, "component": "mlp_output", "max_number_of_units": 2}
HEAD = {"layer": 1, "component": "head_attention_value_output", "unit": "h", "max_number_of_units": 2}


@pytest.mark.parametrize(
    ("spec", "unit", "read_at", "written_at"),
    [
        (MANY, "pos", [[1], [3]], torch.tensor([[2, 0], [3, 1]])),
        (MANY, "pos", torch.tensor([1, 2]), np.array([[-1], [-2]])),
        (MANY, "pos", [[-1], [-3, 0]], [(0, -1), range(2)]),
        (MANY, "pos", [torch.tensor([-1]), torch.tensor([1, 2])], [torch.tensor(0), torch.tensor(2)]),
        (HEAD, "h", [[0], [1, 2]], torch.tensor([[0, 1], [2, 0]])),
    ],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_column_is_placed_as_the_nested_form_is(spec, unit, read_at, written_at, side):
    """Ragged, counted from the end of the real tokens, heads: the plan is that of `unit_locations` written out."""
    face = IntervenableModel(spec, tiny("llama"))
    base, source = padded_tokens([3, 6], side), padded_tokens([5, 3], side)
    columns = {"source_0->base.0." + unit: read_at, "source_0->base.1." + unit: written_at}
    call = read({**base, **{f"source_{k}": v for k, v in source.items()}, **columns}, spec)
    sides = [[[int(one)] if np.ndim(one) == 0 else [int(n) for n in one] for one in rows]
             for rows in (read_at, written_at)]  # fmt: skip
    nested = Call(base, source, {"sources->base": ([sides[0]], [sides[1]])})
    expected = compose(face.config, face.representations, nested).plan
    assert compose(face.config, face.representations, call).plan == expected


def test_places_of_one_source_for_every_example():
    one = {f"source_{name}": value[:1] for name, value in OTHER.items()}
    call = read({**IDS, **one, "source_0->base.0.pos": [[-2]], "source_0->base.1.pos": [[2], [-1]]})
    assert call.unit_locations == (Location(at((3,), (3,)), at((2,), (4,))),)


@pytest.mark.parametrize(
    ("column", "error", "match"),
    [
        ([[1], [2], [3]], SpecError, "names 3 examples, but the batch has 2"),
        (torch.tensor([[1.0], [2.0]]), SpecError, "expected integers"),
        (torch.tensor([[True], [False]]), SpecError, "expected integers"),
        ([[slice(0, 1)], [slice(0, 1)]], SpecError, "expected integers"),
        ([[1], [-7]], PositionError, "example 1: -7 does not exist; there are 5 real tokens"),
        (3, SpecError, "batch first"),
        (torch.tensor(3), SpecError, "batch first"),
    ],
)
def test_columns_that_name_no_place_are_refused(column, error, match):
    with pytest.raises(error, match=rf"source_0->base\.1\.pos.*{match}"):
        read({**IDS, **SOURCE, "source_0->base.1.pos": column})


def test_more_units_than_said_only_where_each_is_edited_by_itself():
    column = {**IDS, **SOURCE, "source_0->base.1.pos": [[1, 2], [3, 4]]}
    assert read(column).unit_locations == (Location(EVERYWHERE, at((1, 2), (3, 4))),)
    joined = {"layer": 1, "component": "mlp_output", "intervention": VanillaIntervention(keep_last_dim=False)}
    with pytest.raises(SpecError, match=r"source_0->base\.1\.pos.*2 units, but max_number_of_units is 1"):
        read(column, joined)


def test_heads_are_not_counted_from_the_end():
    with pytest.raises(SpecError, match="count from 0"):
        read({**IDS, **SOURCE, "source_0->base.1.h": [[-1], [0]]}, HEAD)


def test_ready_made_locations_are_one_an_intervention():
    face = IntervenableModel([{"layer": n, "component": "mlp_output"} for n in (0, 1)], tiny("llama"))
    with pytest.raises(SpecError, match="2 interventions"):
        face(IDS, OTHER, (Location(EVERYWHERE, EVERYWHERE),))
    with pytest.raises(SpecError, match="2 interventions"):
        face(IDS, OTHER, (Location(EVERYWHERE, EVERYWHERE), 3))
    one = face(IDS, OTHER, (None, Location(at((1,), (3,)), at((2,), (4,)))))[1].logits
    assert one.equal(face(IDS, OTHER, {"sources->base": ([None, [[1], [3]]], [None, [[2], [4]]])})[1].logits)


def test_both_sides_at_once_and_the_base_alone():
    places = torch.tensor([[1], [3]])
    assert read({**IDS, **SOURCE, "sources->base": (1, 2)}).unit_locations == {"sources->base": (1, 2)}
    left, right = read({**IDS, **SOURCE, "sources->base": places}).unit_locations["sources->base"]
    assert left is places
    assert right is places
    alone = read({**IDS, "source_0->base.1.pos": places})
    assert alone.unit_locations == (Location(EVERYWHERE, at((1,), (3,))),)
    assert read({**IDS, **SOURCE}).unit_locations is None
    with pytest.raises(SpecError, match="not both"):
        read({**IDS, **SOURCE, **WHERE, "sources->base": (1, 2)})
    with pytest.raises(UnknownNameError, match=r"source_0->base\.2\.pos"):
        read({**IDS, **SOURCE, "source_0->base.2.pos": places})


@pytest.mark.parametrize("value", [[0, 1], torch.tensor([0, 1]), [[0], [1]], torch.tensor([[0], [1]])])
def test_subspaces_are_batch_first(value):
    assert read({**IDS, **SOURCE, "subspaces": value}).subspaces == [[0], [1]]


def test_the_calls_own_arguments():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    base, source = torch.zeros(2, 3), torch.ones(2, 3)
    batch = {"base": base, "sources": [source], "unit_locations": {"base": 0}, "subspaces": [[[0], [1]]]}
    call = read(batch, {"component": "1.output", "intervention_type": VanillaIntervention}, model=model)
    assert torch.equal(call.base, base)
    assert torch.equal(call.sources[0], source)
    assert (call.unit_locations, call.subspaces) == ({"base": 0}, [[[0], [1]]])


def test_mistakes_are_told():
    with pytest.raises(SpecError, match=r"no base.*remove_unused_columns"):
        read({"labels": torch.zeros(2)})
    with pytest.raises(UnknownNameError, match="'attention_mask'"):
        read({"input_ids": IDS["input_ids"], "atention_mask": IDS["attention_mask"]})
    with pytest.raises(UnknownNameError, match="'labels'"):
        read({**IDS, "label": torch.zeros(2)})
    read({**IDS, "labels": torch.zeros(2), "label": ["yes", "no"]})  # somebody's own


def test_the_batch_is_only_read():
    batch = {**IDS, **SOURCE, **WHERE, "subspaces": [0, 1]}
    before = {name: value.clone() if isinstance(value, torch.Tensor) else list(value) for name, value in batch.items()}
    read(batch)
    assert batch.keys() == before.keys()
    assert all(torch.equal(torch.as_tensor(batch[name]), torch.as_tensor(before[name])) for name in batch)
