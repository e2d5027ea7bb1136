"""Hooks and exchanged methods act in the context that set them, whatever threads and tasks do meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from tests.helpers import new_model, tokens
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from align_transformers import IntervenableModel, SiteError, ZeroIntervention
from align_transformers.models import resolve
from align_transformers.models.detours import forwards, is_detoured
from align_transformers.models.quiet import quietly
from align_transformers.models.scope import Scope, after_call, scope

SECONDS = 30


def linear() -> tuple[nn.Linear, Tensor]:
    """Return a module and an input, of whole numbers: their sums are exact."""
    module = nn.Linear(3, 3).requires_grad_(False)
    module.weight.copy_(torch.arange(9).view(3, 3))
    module.bias.zero_()
    return module, torch.arange(6.0).view(2, 3)


def plus(number: float) -> Callable[..., Tensor]:
    return lambda _module, _arguments, output: output + number


def instead(number: float) -> Callable[..., Any]:
    return lambda method: lambda *args, **kwargs: method(*args, **kwargs) + number


def is_plain(module: nn.Module) -> bool:
    return not (module._forward_hooks or module._forward_pre_hooks or {"forward", "__call__"} & vars(module).keys())


@contextmanager
def changed(module: nn.Module, how: str, number: float) -> Iterator[None]:
    with scope(), ExitStack() as stack:
        if how == "hook":
            stack.enter_context(after_call(module, plus(number)))
        else:
            stack.enter_context(forwards({module: instead(number)}))
        yield


@pytest.mark.parametrize("how", ["hook", "forward"])
def test_tasks_that_take_turns_inside_their_passes(how: str) -> None:
    module, x = linear()

    async def task(number: float, turns: int) -> list[Tensor]:
        seen = []
        await asyncio.sleep(0)
        with changed(module, how, number):
            for _ in range(turns):
                seen.append(module(x))
                await asyncio.sleep(0)  # the others go on, in the middle of this pass
        return [*seen, module(x)]

    async def together() -> list[list[Tensor]]:
        return await asyncio.gather(task(1, 3), task(2, 5), task(4, 2))

    plain = module(x)
    for number, seen in zip((1, 2, 4), asyncio.run(together()), strict=True):
        assert torch.equal(seen.pop(), plain)
        assert all(torch.equal(one, plain + number) for one in seen)
    assert is_plain(module)


def test_tasks_with_calls_in_threads_of_their_own() -> None:
    model, base = new_model("llama"), tokens(2, 5)
    faces = [
        IntervenableModel({"layer": 1, "component": "mlp_output", "intervention": lambda old, by=by: old * by}, model)
        for by in (0.0, 2.0)
    ]

    def call(face: Any) -> Tensor:
        with torch.no_grad():
            return face(base)[1].logits if face is not model else model(**base).logits

    async def together() -> list[Tensor]:
        return await asyncio.gather(*(asyncio.to_thread(call, face) for face in (*faces, model) * 3))

    alone = [call(face) for face in (*faces, model)]
    assert all(map(torch.equal, asyncio.run(together()), alone * 3))


@pytest.mark.parametrize("first_out", [0, 1])
def test_two_threads_exchange_one_forward_and_leave_in_any_order(first_out: int) -> None:
    module, x = linear()
    plain, doors = module(x), [threading.Event(), threading.Event()]
    both_in, seen = threading.Barrier(3), {}

    def run(number: int) -> None:
        with changed(module, "forward", number + 1):
            both_in.wait(SECONDS)
            seen[number] = module(x)
            doors[number].wait(SECONDS)
            seen[number + 2] = module(x)

    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    both_in.wait(SECONDS)
    assert torch.equal(module(x), plain)
    assert not is_detoured(module, "forward")
    for number in (first_out, 1 - first_out):
        doors[number].set()
        threads[number].join(SECONDS)
        assert torch.equal(module(x), plain)
    assert [torch.equal(seen[number], plain + number % 2 + 1) for number in range(4)] == [True] * 4
    assert is_plain(module)


def test_a_method_that_somebody_else_exchanged_meanwhile_stays() -> None:
    module, x = linear()
    plain, own = module(x), module.forward
    with changed(module, "forward", 1):
        under = module.forward
        module.forward = lambda given: under(given) * 2  # as autocast does for good
        assert torch.equal(module(x), (plain + 1) * 2)
    assert torch.equal(module(x), plain * 2)
    with changed(module, "forward", 3):
        assert torch.equal(module(x), plain * 2 + 3)
    assert torch.equal(module(x), plain * 2)
    module.forward = own


def test_passes_in_a_pass_see_only_what_lasts() -> None:
    module, x = linear()
    plain = module(x)
    with scope(Scope(lasting=True)) as stays, after_call(module, plus(1)), changed(module, "hook", 2):
        assert torch.equal(module(x), plain + 3)
        with changed(module, "hook", 4):
            assert torch.equal(module(x), plain + 5)
        with scope(Scope(of=(stays,))) as call:
            assert torch.equal(module(x), plain + 3)
            with scope(Scope(of=(stays,))):
                assert not call.acts
            with scope(Scope(of=(Scope(),))):
                assert call.acts
        with scope(alone=True):
            assert torch.equal(module(x), plain)


# --- passes that nobody else hears ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*[Bb]ackward hook")
def test_hooks_of_all_kinds_that_are_the_users_are_not_called_while_a_model_is_resolved() -> None:
    model, seen = new_model("llama"), []

    def note(kind: str) -> Callable[..., None]:
        return lambda *_: seen.append(kind)

    with ExitStack() as stack:
        for register in (
            global_hooks.register_module_forward_hook,
            global_hooks.register_module_forward_pre_hook,
            global_hooks.register_module_full_backward_hook,
            global_hooks.register_module_full_backward_pre_hook,
            *(getattr(module, f"register_{kind}") for module in model.modules() for kind in (
                "forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook",
            )),
        ):  # fmt: skip
            stack.enter_context(register(note(register.__name__)))
        resolve(model)
        assert seen == []
        model(**tokens(1, 3)).logits.sum().backward()
    assert len(set(seen)) == 8


def test_hooks_that_come_and_go_in_another_thread_meanwhile_are_neither_called_nor_lost() -> None:
    model, seen = nn.Sequential(*linear()[:1], nn.Tanh(), nn.Linear(3, 2)), []
    x, gone, kept = torch.randn(2, 3), model[2].register_forward_hook(lambda *_: seen.append("gone")), []

    def elsewhere() -> None:
        gone.remove()
        kept.append(model[2].register_forward_hook(lambda *_: seen.append("new")))
        model(x)  # the user's own run: it is heard

    def entering(module: nn.Module, _args: Any, _kwargs: Any) -> None:
        if module is model[1]:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(elsewhere).result(SECONDS)

    with quietly(entering):
        model(x)
    assert seen == ["new"]
    assert list(model[2]._forward_hooks) == [kept[0].id]
    model(x)
    assert seen == ["new", "new"]


def test_a_dummy_pass_is_heard_by_parts_of_the_model() -> None:
    module, x = linear()

    def align(_module: nn.Module, arguments: Any) -> Any:
        return (arguments[0] * 2,)

    align.__module__ = "accelerate.hooks"
    plain = module(x * 2)
    module.register_forward_pre_hook(align)
    with quietly():
        assert torch.equal(module(x), plain)


def test_several_devices_with_a_copy_of_the_model_each_are_refused() -> None:
    spec = {"layer": 1, "component": "mlp_output", "intervention_type": ZeroIntervention}
    copies = nn.DataParallel(new_model("llama"))
    copies.device_ids = [0, 1]
    with pytest.raises(SiteError, match=r"nn\.DataParallel .*2 devices.*\.module"):
        IntervenableModel(spec, copies)
    path = {"component": "module.lm_head.output", "intervention_type": ZeroIntervention}
    with pytest.raises(SiteError, match=r"nn\.DataParallel"):
        IntervenableModel(path, copies)
