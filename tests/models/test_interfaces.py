"""Functions around transformers' interfaces: for one thread at a time, and put back in whatever order they leave."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
import torch
from tests.models.small import new
from torch import Tensor, nn
from transformers.integrations.moe import ExpertsInterface
from transformers.modeling_utils import AttentionInterface

from align_transformers import IntervenableModel
from align_transformers.models.interfaces import Around, around_interface
from align_transformers.models.scope import scope
from align_transformers.models.trace import watch

SECONDS = 30
INPUTS = {"input_ids": torch.arange(2, 8)[None]}


class Interface:
    """Stands for one of transformers'."""

    def get_interface(self, implementation: str, default: Callable[..., Any]) -> Callable[..., Any]:
        return default


ORIGINAL = Interface.get_interface


def plain(module: nn.Module, value: str) -> str:
    return value


def saying(word: str) -> Around:
    def around(function: Any, default: Any, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> str:
        assert default is plain
        return f"{word}({function(module, *inputs, **options)})"

    return around


def said() -> str:
    return Interface().get_interface("eager", plain)(nn.Identity(), "x")


def test_the_one_opened_last_is_called_first() -> None:
    with scope(), around_interface(Interface, saying("a")), around_interface(Interface, saying("b")):
        assert said() == "b(a(x))"
        assert Interface().get_interface("eager", default=plain)(nn.Identity(), value="x") == "b(a(x))"
    assert said() == "x"
    assert Interface.get_interface is ORIGINAL


@pytest.mark.parametrize(("order", "between"), [((0, 1), "b(x)"), ((1, 0), "a(x)")])
def test_they_leave_in_any_order(order: tuple[int, int], between: str) -> None:
    opened = [around_interface(Interface, saying(word)) for word in "ab"]
    with scope():
        for one in opened:
            one.__enter__()
        opened[order[0]].__exit__(None, None, None)
        assert said() == between
        opened[order[1]].__exit__(None, None, None)
        assert said() == "x"
    assert Interface.get_interface is ORIGINAL


def test_an_error_inside_puts_the_look_up_back() -> None:
    with pytest.raises(ArithmeticError), scope(), around_interface(Interface, saying("a")):
        raise ArithmeticError
    assert Interface.get_interface is ORIGINAL


def test_another_thread_gets_what_it_would_have_got() -> None:
    with ThreadPoolExecutor(1) as other, scope(), around_interface(Interface, saying("a")):
        assert other.submit(said).result(SECONDS) == "x"
        assert said() == "a(x)"


@pytest.mark.parametrize("first_to_leave", ["a", "b"])
def test_two_threads_that_overlap_see_their_own(first_to_leave: str) -> None:
    inside, leave = {word: Event() for word in "ab"}, {word: Event() for word in "ab"}

    def work(word: str) -> str:
        with scope(), around_interface(Interface, saying(word)):
            inside[word].set()
            assert leave[word].wait(SECONDS)
            return said()

    with ThreadPoolExecutor(2) as threads:
        works = {word: threads.submit(work, word) for word in "ab"}
        assert all(event.wait(SECONDS) for event in inside.values())
        assert said() == "x"
        for word in sorted("ab", key=lambda word: word != first_to_leave):
            leave[word].set()
            assert works[word].result(SECONDS) == f"{word}(x)"
    assert Interface.get_interface is ORIGINAL


def test_what_somebody_else_put_over_it_stays_and_nothing_is_said_twice() -> None:
    def shouting(self: Interface, implementation: str, default: Any) -> Any:
        function = below(self, implementation, default)
        return lambda module, value: function(module, value).upper()

    with scope(), around_interface(Interface, saying("a")):
        below = Interface.get_interface
        Interface.get_interface = shouting  # type: ignore[method-assign]
    try:
        assert Interface.get_interface is shouting
        assert said() == "X"
        with scope(), around_interface(Interface, saying("b")):
            assert said() == "b(X)"
        assert Interface.get_interface is shouting
    finally:
        Interface.get_interface = ORIGINAL  # type: ignore[method-assign]


# --- with models -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_passes_that_overlap_in_two_threads_leave_nothing_behind() -> None:
    """A begins, B begins, A ends, B ends."""
    lookups = AttentionInterface.get_interface, ExpertsInterface.get_interface
    models = {"a": new("llama"), "b": new("llama", 1)}
    clean = {name: model(**INPUTS).logits for name, model in models.items()}
    began, ended = {name: Event() for name in "ab"}, Event()
    overlap = False

    def edit(name: str) -> Callable[[Tensor, Tensor | None], Tensor]:
        def zero(base: Tensor, _source: Tensor | None) -> Tensor:
            if overlap and not began[name].is_set():
                began[name].set()
                assert (began["b"] if name == "a" else ended).wait(SECONDS)
            return base * 0

        return zero

    faces = {
        name: IntervenableModel({"layer": 1, "component": "query_rotary", "intervention": edit(name)}, model)
        for name, model in models.items()
    }
    alone = {name: face(INPUTS)[1].logits for name, face in faces.items()}
    overlap = True
    with ThreadPoolExecutor(2) as threads:
        works = {"a": threads.submit(faces["a"], INPUTS)}
        assert began["a"].wait(SECONDS)
        works["b"] = threads.submit(faces["b"], INPUTS)
        found = {"a": works["a"].result(SECONDS)[1].logits}
        ended.set()
        found["b"] = works["b"].result(SECONDS)[1].logits
    assert (AttentionInterface.get_interface, ExpertsInterface.get_interface) == lookups
    for name, model in models.items():
        assert torch.equal(found[name], alone[name])
        assert not torch.equal(found[name], clean[name])
        assert torch.equal(model(**INPUTS).logits, clean[name])


@pytest.mark.parametrize("same_model", [False, True])
def test_a_pass_in_another_thread_is_not_in_a_trace(same_model: bool) -> None:
    lookup = AttentionInterface.get_interface
    model = new("llama")
    other = model if same_model else new("llama", 1)
    with torch.no_grad():
        clean = other(**INPUTS).logits
    seen: list[Tensor] = []

    def during(*args: Any, **kwargs: Any) -> Any:
        if not seen:
            seen.append(clean)  # the pass below comes by here, too
            with ThreadPoolExecutor(1) as thread, torch.no_grad():
                seen.append(thread.submit(_logits, other).result(SECONDS))
        return type(layer).forward(layer, *args, **kwargs)

    expected, layer = watch(model, INPUTS), model.model.layers[1]
    layer.forward = during
    trace = watch(model, INPUTS)
    assert torch.equal(seen[1], clean)
    assert len(trace.attentions) == len(expected.attentions)
    assert [call.path for call in trace.calls] == [call.path for call in expected.calls]
    assert AttentionInterface.get_interface is lookup


@torch.no_grad()
def _logits(model: nn.Module) -> Tensor:
    return model(**INPUTS).logits
