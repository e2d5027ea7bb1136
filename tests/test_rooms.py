"""Every module can be imported, and what is built on the engine works with it alone."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import torch
from tests.helpers import new_model, tokens

import align_transformers
from align_transformers import Edit, Plan, Positions, Read, Run, Site, VanillaIntervention, bind, execute, one_by_one
from align_transformers.plan import Logits
from align_transformers.planners import HAS_FAST

MODULES = [one.name for one in pkgutil.walk_packages(align_transformers.__path__, "align_transformers.")]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_a_module_can_be_imported(name):
    importlib.import_module(name)


def test_what_makes_it_quicker_is_missed_only_where_it_is_asked_for():
    if HAS_FAST:
        assert align_transformers.planned is not None
    else:
        with pytest.raises((ImportError, AttributeError)):
            _ = align_transformers.planned


def test_plans_are_run_with_every_planner(planner):
    model, at = new_model("gpt2"), Positions(((1,), (2,)))
    site = Site("block_output", 1)
    swap = Edit("swap", site, "swap", at, source=Read("source", site, at))
    plan = Plan((Run("base", "x", (swap,)), Run("source", "y")), ("base",), Logits())
    bound = bind(model, plan, {"x": tokens(2, 5, 1), "y": tokens(2, 5, 2)}, {"swap": VanillaIntervention()})
    with torch.no_grad():
        assert torch.equal(execute(bound).outputs["base"], execute(bound, one_by_one).outputs["base"])


def test_a_grid_is_run_with_every_planner(planner):
    model = new_model("gpt2")
    with torch.no_grad():
        table = align_transformers.grid(
            model, tokens(1, 4, 1), tokens(1, 4, 2), answers=(4, 5), components=["block_output"]
        )
    assert len(table) == 3 * 4
