"""Modules by dotted path, and what is plain to see of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..sites import Side
from .modes import holding


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the module inside a compiled one: compiled code does not see hooks that are added later."""
    return model._modules.get("_orig_mod") or model


def submodule(root: nn.Module, path: str) -> nn.Module | None:
    """Return the module at a dotted path below `root`, or `None`; the empty path is `root` itself.

    >>> submodule(nn.Sequential(nn.Linear(2, 3)), "0"), submodule(nn.Linear(2, 3), "a.b")
    (Linear(in_features=2, out_features=3, bias=True), None)
    """
    module: nn.Module | None = root
    for name in path.split(".") if path else ():
        module = None if module is None else module._modules.get(name)
    return module


def every_module(root: nn.Module) -> Iterator[nn.Module]:
    """Yield every module below `root`, and itself; one that stands in two places twice. For what is done at each call.

    >>> len(list(every_module(nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU())))))
    4
    """
    waiting: list[nn.Module | None] = [root]
    while waiting:
        module = waiting.pop()
        if module is not None:
            yield module
            waiting.extend(module._modules.values())


@contextmanager
def evaluating(*roots: nn.Module) -> Iterator[None]:
    """Hold every module of some in eval mode, and put back those that were not: whatever measures does so in here.

    Modules are asked one by one: an adapter is born in training mode, whatever the model around it is in. The mode
    is the module's, and so every thread's; of several who hold it at once the last to leave puts it back.

    >>> model = nn.Sequential(nn.Dropout(), nn.Linear(2, 3).eval())
    >>> with evaluating(model):
    ...     print(any(module.training for module in model.modules()))
    False
    >>> [module.training for module in model.modules()]
    [True, True, False]
    """
    with holding((module for root in roots for module in root.modules()), "training", False):
        yield


def module_width(module: nn.Module, side: Side) -> int | None:
    """Return the size of the last axis of a module's input or output where it is plain to see; else `None`."""
    if isinstance(module, nn.Linear):
        return module.in_features if side == "input" else module.out_features
    if isinstance(module, nn.Embedding):
        return module.embedding_dim if side == "output" else None
    return None
