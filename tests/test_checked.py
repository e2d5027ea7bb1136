"""Arguments as people write them: NumPy numbers and arrays stand for what they hold, others are told what to write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from tests.helpers import new_model, tokens
from tests.untyped import untyped
from torch import Tensor

import align_transformers as at
from align_transformers import SpecError, UnknownNameError
from align_transformers._checked import checked, is_of


@checked
def told(
    count: int = 1,
    share: float | None = None,
    *,
    several: Sequence[int] | Literal["all"] = (),
    named: Mapping[str, Sequence[str]] | None = None,
    rows: Iterable[Any] = (),
    place: Annotated[Sequence[int] | None, "Where it stands, `where` tells"] = None,
    values: Float[Tensor, "batch width"] | None = None,
    call: Callable[..., Any] | None = None,
    **rest: Any,
) -> tuple[Any, ...]:
    return count, share, several, place


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"count": np.int64(3)}, 3),
        ({"count": torch.tensor(3)}, 3),
        ({"share": np.float32(0.5)}, 0.5),
        ({"several": np.array([1, 2])}, [1, 2]),
        ({"several": [np.int64(1), 2]}, [1, 2]),
        ({"several": range(2)}, range(2)),
        ({"several": "all"}, "all"),
    ],
)
def test_what_stands_for_plain_numbers_is_taken(given, taken):
    (name,) = given
    found = dict(zip(("count", "share", "several"), told(**given), strict=False))[name]
    assert (found, type(found)) == (taken, type(taken))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": True}, "^told: count is a whole number; found True$"),
        ({"count": 1.5}, "found 1.5"),
        ({"share": "half"}, "share is a number or None; found 'half'"),
        ({"several": 3}, r"several is whole numbers or 'all'; found 3: write several=\[3\]"),
        ({"several": ["Spain"]}, r"found \['Spain'\]"),
        ({"several": [[3], [6]]}, r"found \[\[3\], \[6\]\]"),
        ({"named": {"a": "text"}}, "named is a dict or None"),
        ({"rows": "text"}, "found 'text'"),
        ({"place": ["Spain"]}, r"place is whole numbers or None; found \['Spain'\]. Where it stands, `where` tells"),
        ({"values": torch.zeros(2)}, r"values is a tensor \(batch width\) or None; found a Tensor"),
        ({"values": torch.zeros(2, 2, dtype=torch.long)}, "values is a tensor"),
        ({"call": 3}, "call is a function or None"),
    ],
)
def test_what_is_of_another_type_is_refused_with_what_to_write(given, message):
    with pytest.raises(SpecError, match=message):
        told(**given)


def test_unknown_words_and_names_are_told_their_neighbours():
    with pytest.raises(UnknownNameError, match="several is whole numbers or 'all'; found 'al'; did you mean 'all'"):
        told(several="al")
    assert told(unheard_of=3)[0] == 1  # it takes any

    with pytest.raises(UnknownNameError, match="grid has no argument 'layer'; did you mean 'layers'"):
        at.grid(new_model("gpt2"), tokens(1, 2), tokens(1, 2), layer=[0])
    with pytest.raises(UnknownNameError, match="IntervenableModel has no argument 'use_fast'"):
        at.IntervenableModel({"layer": 0}, new_model("gpt2"), use_fast=True)


def test_kinds_of_tensors_and_of_collections():
    assert is_of(torch.zeros(3, dtype=torch.long), Int[Tensor, " n"])
    assert not is_of(torch.zeros(3), Int[Tensor, " n"])
    assert is_of([1, 2], tuple[int, ...])
    assert not is_of((1, 2), tuple[int, int, int])
    assert is_of(iter([1]), Iterable[int])
    assert is_of({"a": 1}, Iterable[str])
    assert not is_of({1: 1}, Iterable[str])


def test_numbers_of_numpy_are_numbers_of_layers_units_and_neurons():
    model = new_model("gpt2")
    face = at.IntervenableModel(
        {"layer": np.int64(1), "max_number_of_units": np.int64(2), "intervention_type": at.ZeroIntervention}, model
    )
    plain = at.IntervenableModel(
        {"layer": 1, "max_number_of_units": 2, "intervention_type": at.ZeroIntervention}, model
    )
    assert list(face.interventions) == list(plain.interventions)
    base, source = tokens(1, 3, 1), tokens(1, 3, 2)
    with torch.no_grad(), untyped():
        table = at.grid(
            model,
            base,
            source,
            answers=(4, 5),
            layers=np.array([1]),
            positions=torch.tensor([-1]),
            neurons=np.int64(16),
        )
    assert len(table) == 2


def test_a_device_that_is_not_there_is_told():
    if torch.cuda.is_available():
        pytest.skip("there is such a device")
    for placed in ("cuda", {"": "cuda:0"}):
        with pytest.raises(SpecError, match=r"names a device that is not there .*: leave it out"):
            at.load_model("smollm2-135m", device_map=placed)
    with pytest.raises(SpecError, match=r"dtype is a torch.dtype, the name of one, or 'auto'; found 'float99'"):
        at.load_model("smollm2-135m", dtype="float99")


def test_a_size_that_a_subclass_keeps_as_a_buffer_is_saved_as_a_number(tmp_path):
    class Buffered(at.Intervention):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.register_buffer("embed_dim", torch.tensor(self.embed_dim))

        def forward(self, base, source, subspaces=None):
            return source

    model, base, source = new_model("gpt2"), tokens(1, 3, 1), tokens(1, 3, 2)
    site = {"layer": 0, "component": "mlp_output"}
    face = at.IntervenableModel({**site, "intervention_type": Buffered}, model)
    (made,) = face.interventions.values()
    assert made.arguments()["embed_dim"] == 32
    swap = at.IntervenableModel(site, model)(base, source, {"sources->base": 1})[1].logits
    assert torch.equal(face(base, source, {"sources->base": 1})[1].logits, swap)
    face.save(tmp_path / "saved")
    again = at.IntervenableModel.load(tmp_path / "saved", model=model, classes=[Buffered])
    assert torch.equal(again(base, source, {"sources->base": 1})[1].logits, swap)
