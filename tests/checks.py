"""How the package checks its types while tests run.

jaxtyping's hook puts its own wrapper, which binds the signature in every call, around each function, and around those
inside others each time that they are made: that was most of what many tests cost. Here it stands around functions that
name shapes, and around wrappers, which jaxtyping would otherwise wrap as the `__init__` of a dataclass. Others get
beartype alone, which checks the same of them; bare functions inside functions get nothing.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import wraps
from typing import Any

from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError, _import_hook, config

_SHAPES = re.compile(r"\b(Bool|Float|Inexact|Int|Int64|Integer|Num|Real|Shaped)\[")
_PLAIN = ast.parse("jaxtyping._import_hook.Typechecker.lookup['plain']", mode="eval").body


class _Checks(_import_hook.JaxtypingTransformer):
    _lacks_names = False  # which only type checkers import; beartype alone asks for them

    def visit_Module(self, node: ast.Module) -> ast.Module:
        self._lacks_names = any(isinstance(one, ast.Name) and one.id == "TYPE_CHECKING" for one in ast.walk(node))
        return super().visit_Module(node)  # type: ignore[no-any-return]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        names = [node.args, *([node.returns] if node.returns is not None else [])]
        is_inside = any(isinstance(parent, ast.FunctionDef) for parent in self._parents)
        if (
            self._lacks_names
            or any(_SHAPES.search(ast.unparse(one)) for one in names)
            or (is_inside and node.decorator_list)
        ):
            return super().visit_FunctionDef(node)  # type: ignore[no-any-return]
        if not is_inside:
            node.decorator_list.append(_PLAIN)
        self._parents.append(node)
        self.generic_visit(node)
        self._parents.pop()
        return node


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function check its types; it fails, and is switched off, as those are that name shapes."""
    checking = beartype(function)

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if config.jaxtyping_disable:
            return function(*args, **kwargs)
        try:
            return checking(*args, **kwargs)
        except BeartypeCallHintViolation as error:
            raise TypeCheckError(str(error)) from error

    return run


def install(package: str) -> None:
    """Let a package's functions check their types, from its first import on."""
    _import_hook.JaxtypingTransformer = _Checks
    _import_hook.install_import_hook(package, "tests.checks.beartype")
    _import_hook.Typechecker.lookup["plain"] = plain
