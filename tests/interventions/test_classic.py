"""What was saved before operations and subspaces were apart: it loads, and gives what it gave; see write_classic.py."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tests.interventions.write_classic import FOLDER, VALUES, loaded, outputs

from align_transformers.storage.types import OWN

ONES = loaded()
KEPT = load_file(FOLDER / VALUES)
NOW = dict(outputs(ONES, KEPT))


def test_every_class_of_then_is_there():
    assert {type(one).__name__ for one in ONES} == set(OWN) - SINCE
    assert {name for name in KEPT if not name.startswith(("base", "source"))} == set(NOW)


SINCE = {"SubspaceIntervention"}


@pytest.mark.parametrize("number", range(len(ONES)), ids=lambda number: f"{number}-{type(ONES[number]).__name__}")
def test_it_gives_what_it_gave(number):
    for name, value in NOW.items():
        if name.split(".")[0] == str(number):
            wanted = KEPT[name]
            assert value.dtype == wanted.dtype
            # Processors differ in the order of the sums in a product; on that one they are equal bit for bit.
            bound = 1e-5 if value.dtype == torch.float32 else 1e-2
            torch.testing.assert_close(value, wanted, rtol=bound, atol=bound)
