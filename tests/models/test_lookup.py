"""`find_slot` looks at what it touches, and at nothing else; whatever of that was exchanged is noticed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.models.small import new
from tests.models.test_wrappers import Adapter
from torch import nn

from align_transformers import Site, SiteError
from align_transformers.models import find_slot, resolve

SITES = (
    Site("mlp_output", 1),
    Site("query_output", 0),
    Site("router_output", 1),
    Site("block_output", 0, call=0),
    Site("logits"),
    Site("model.layers[1].self_attn.o_proj.input"),
)
WALKS = ("modules", "named_modules", "parameters", "named_parameters", "children", "named_children", "buffers")


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the walks over a model's modules or parameters that were begun."""
    seen: list[str] = []

    def counting(name: str) -> Callable[..., Any]:
        original = getattr(nn.Module, name)

        def walk(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            return original(self, *args, **kwargs)

        return walk

    for name in WALKS:
        monkeypatch.setattr(nn.Module, name, counting(name))
    return seen


def test_a_known_model_is_not_walked(walks: list[str]) -> None:
    model = new("mixtral")
    resolve(model)
    assert walks
    walks.clear()
    for site in SITES:
        find_slot(model, site)
    assert walks == []
    with pytest.raises(SiteError):
        find_slot(model, Site("mlp_output", 9))
    assert walks  # what the map has not got may have been put in since


@pytest.mark.parametrize("compiled", [False, True])
def test_the_steps_of_a_fused_recurrent_module_are_found_by_the_same_door(compiled: bool, walks: list[str]) -> None:
    model = nn.ModuleDict({"rnn": nn.GRU(3, 5, num_layers=2)})
    model = torch.compile(model, backend="eager") if compiled else model
    asked = [Site(f"rnn.step[{layer}]{part}") for layer in (0, 1) for part in (".input", ".output", ".new_gate.input")]
    walks.clear()
    slots = [find_slot(model, site) for site in asked]
    assert "named_modules" not in walks
    assert [slot.width for slot in slots] == [3, 5, 5, 5, 5, 5]
    assert {type(slot.fused) for slot in slots} == {nn.GRU}
    assert [find_slot(model, site).module for site in asked] == [slot.module for slot in slots]


def test_a_module_named_step_is_that_module() -> None:
    own = nn.ModuleDict({"rnn": nn.ModuleDict({"step": nn.ModuleList([nn.Linear(2, 4)])})})
    assert find_slot(own, Site("rnn.step[0].output")).module is own["rnn"]["step"][0]
    with pytest.raises(SiteError, match=r"has no module 'rnn.step.1'"):
        find_slot(own, Site("rnn.step[1].output"))


def _at(model: nn.Module, name: str) -> nn.Module:
    return find_slot(model, Site(name, 1)).module


@pytest.mark.parametrize("compiled", [False, True])
def test_an_exchanged_module_is_noticed(compiled: bool) -> None:
    model = new("llama")
    asked = torch.compile(model, backend="eager") if compiled else model
    before = _at(asked, "mlp_output")
    model.model.layers[1].mlp = new("llama", 1).model.layers[1].mlp
    assert _at(asked, "mlp_output") is model.model.layers[1].mlp is not before


def test_an_exchanged_block_is_noticed() -> None:
    model = new("llama")
    before = _at(model, "query_output")
    model.model.layers[1] = new("llama", 1).model.layers[1]
    assert _at(model, "query_output") is model.model.layers[1].self_attn.q_proj is not before
    del model.model.layers[1]
    with pytest.raises(SiteError):  # one block is no chain of blocks
        _at(model, "query_output")


def test_a_block_around_which_is_known_is_noticed() -> None:
    """Experts work on tokens in one row: the block's own input tells batch and length."""
    model = new("mixtral")
    slot = find_slot(model, Site("router_output", 1))
    router = slot.module
    assert slot.around is model.model.layers[1]
    other = new("mixtral", 1).model.layers[1]
    other.mlp.gate = router
    model.model.layers[1] = other
    found = find_slot(model, Site("router_output", 1))
    assert found.module is router
    assert found.around is other


def test_an_adapter_is_noticed_when_it_comes_and_when_it_goes() -> None:
    model = new("llama")
    linear = _at(model, "query_output")
    adapter = Adapter(linear)
    model.model.layers[1].self_attn.q_proj = adapter
    assert _at(model, "query_output") is adapter
    assert _at(model, "key_output") is model.model.layers[1].self_attn.k_proj
    model.model.layers[1].self_attn.q_proj = linear
    assert _at(model, "query_output") is linear


def test_an_exchange_elsewhere_leaves_a_slot_as_it_is_until_it_is_looked_for() -> None:
    model = new("llama")
    before = find_slot(model, Site("mlp_output", 0))
    model.model.layers[1].mlp = new("llama", 1).model.layers[1].mlp
    assert find_slot(model, Site("mlp_output", 0)) is before
    assert _at(model, "mlp_output") is model.model.layers[1].mlp
    assert find_slot(model, Site("mlp_output", 0)) is not before
