"""Modules by dotted path, and what is plain to see of one."""

from __future__ import annotations

from torch import nn

from ..sites import Side


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


def module_width(module: nn.Module, side: Side) -> int | None:
    """Return the size of the last axis of a module's input or output where it is plain to see; else `None`."""
    if isinstance(module, nn.Linear):
        return module.in_features if side == "input" else module.out_features
    if isinstance(module, nn.Embedding):
        return module.embedding_dim if side == "output" else None
    return None
