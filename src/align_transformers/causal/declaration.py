"""A causal model written as a Python function: every assigned name is a variable."""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, NoReturn, overload

import numpy as np

from .._checked import checked
from .._errors import SpecError
from .causal_model import CausalModel

_OUTPUT = "output"
_LIMIT = 2**20
"""Inputs up to which the values of a variable are found by running all of them."""
_SAID = {
    ast.For: "a loop", ast.While: "a loop", ast.If: "a branch", ast.AugAssign: "an assignment that changes a name",
    ast.Try: "try", ast.With: "with", ast.FunctionDef: "a function inside", ast.Match: "a branch",
}  # fmt: skip


@overload
def causal_model(function: FunctionType) -> CausalModel: ...
@overload
def causal_model(*, values: Mapping[str, Any] | None = None) -> Callable[[Callable[..., Any]], CausalModel]: ...
@checked
def causal_model(
    function: Any = None, *, values: Mapping[str, Any] | None = None
) -> CausalModel | Callable[[Callable[..., Any]], CausalModel]:
    """Read a causal model from a function: its arguments are the inputs, and every name that it assigns is a variable.

    The function is read, and its expressions are run one by one; nothing else is executed. What it returns is the
    variable `output`, or the one whose name stands alone behind `return`.

    Args:
        function: assigns each name once, and returns an expression. An argument's annotation, `a: range(10)`, says
            what it may be; a default value is that of the input.
        values: by name what a variable may be. What a variable that is assigned may be is otherwise found by running
            all inputs, if these are listed and not more than a million.

    Raises:
        SpecError: the function has a loop, a branch, or assigns a name again; its source cannot be read; or as
            `CausalModel`.

    Example:
        >>> @causal_model(values={name: range(10) for name in "abc"})
        ... def add_three_numbers(a, b, c):
        ...     var_x = a + b
        ...     return var_x + c
        >>> add_three_numbers
        CausalModel(a, b, c -> var_x -> output)
        >>> add_three_numbers.run_forward({"a": 1, "b": 2, "c": 3})["output"]
        6
        >>> len(add_three_numbers.values["var_x"])
        19
    """
    if function is None:
        return lambda function: _read(function, values or {})
    return _read(function, values or {})


def _read(function: Any, values: Mapping[str, Any]) -> CausalModel:
    if not isinstance(function, FunctionType):
        raise SpecError(f"causal_model reads a function that is written with def; found {function!r}")
    node = _node(function)
    inputs = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    if node.args.vararg or node.args.kwarg:
        _refuse(node, node, "takes * or **: name each input")
    expressions, annotated = _assigned(node, inputs)
    parents = {name: _names_in(node, one, [*inputs, *expressions]) for name, one in expressions.items()}
    functions: dict[str, Callable[..., Any]] = {
        name: _compiled(function, name, one, parents[name]) for name, one in expressions.items()
    }
    for name, default in _defaults(function).items():
        functions[name] = lambda default=default: default
    known = {**_annotations(function, inputs), **annotated, **values}
    names = [*inputs, *expressions]
    open_ended = CausalModel(names, known, parents, functions)
    return CausalModel(names, {**_reached(open_ended), **known}, parents, functions)


def _reached(model: CausalModel) -> dict[str, Any]:
    """Return what each variable comes to be over all inputs, in order; nothing where inputs are not listed or many."""
    listed = [model.values[name] for name in model.inputs]
    if not all(isinstance(of, tuple) for of in listed) or not 0 < math.prod(map(len, listed)) <= _LIMIT:
        return {}
    every = zip(model.inputs, np.meshgrid(*(np.arange(len(of)) for of in listed), indexing="ij"), strict=True)
    inputs = {
        name: [of[number] for number in grid.ravel().tolist()] for (name, grid), of in zip(every, listed, strict=True)
    }
    found = {name: dict.fromkeys(column.tolist()) for name, column in model.run_many(inputs).items()}
    return {name: _in_order(list(of)) for name, of in found.items()}


def _in_order(values: list[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return values


def _node(function: FunctionType) -> ast.FunctionDef:
    """Return the function as it is written."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise SpecError(f"the source of {function.__name__} cannot be read; write a CausalModel instead") from error
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == function.__name__:
            return node
    raise SpecError(f"causal_model reads a function that is written with def; found {function!r}")


def _assigned(node: ast.FunctionDef, inputs: Sequence[str]) -> tuple[dict[str, ast.expr], dict[str, Any]]:
    """Return by name the expression of each variable, and the values that annotations say."""
    found: dict[str, ast.expr] = {}
    annotated: dict[str, Any] = {}
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    for statement in body[:-1]:
        target = statement.targets[0] if isinstance(statement, ast.Assign) and len(statement.targets) == 1 else None
        if isinstance(statement, ast.AnnAssign):
            target = statement.target
        value = getattr(statement, "value", None)
        if not isinstance(target, ast.Name) or value is None:
            what = next((said for kind, said in _SAID.items() if isinstance(statement, kind)), "something else")
            _refuse(node, statement, f"is {what}: a causal model is assignments of one name each, and a return")
        if target.id in found or target.id in inputs:
            _refuse(node, statement, f"assigns {target.id!r} again: give the new value a name of its own")
        found[target.id] = value
        if isinstance(statement, ast.AnnAssign) and (said := _written(statement.annotation)) is not None:
            annotated[target.id] = said
    last = body[-1] if body else node
    if not isinstance(last, ast.Return) or last.value is None:
        _refuse(node, last, "is not a return of a value, which the last line has to be")
    if not (isinstance(last.value, ast.Name) and last.value.id in found):
        if _OUTPUT in found or _OUTPUT in inputs:
            _refuse(node, last, f"returns an expression, whose variable would be called {_OUTPUT!r}, as another is")
        found[_OUTPUT] = last.value
    return found, annotated


def _names_in(node: ast.FunctionDef, expression: ast.expr, variables: Sequence[str]) -> list[str]:
    """Return the variables that an expression reads, in order."""
    names: dict[str, None] = {}
    for one in ast.walk(expression):
        if isinstance(one, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom):
            _refuse(node, expression, "assigns or waits inside an expression: write a line of its own")
        if isinstance(one, ast.Name) and one.id in variables:
            if not isinstance(one.ctx, ast.Load):
                _refuse(node, expression, f"uses the variable {one.id!r} as the name of a loop: choose another")
            names[one.id] = None
        if isinstance(one, ast.arg) and one.arg in variables:
            _refuse(node, expression, f"uses the variable {one.arg!r} as an argument of a lambda: choose another name")
    return list(names)


def _compiled(function: FunctionType, name: str, expression: ast.expr, parents: Sequence[str]) -> Callable[..., Any]:
    """Return an expression as a function of the variables that it reads, in the function's own surroundings."""
    arguments = ast.arguments([], [ast.arg(one) for one in parents], None, [], [], None, [])
    code = ast.Expression(ast.Lambda(arguments, expression))
    around = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
    compiled = compile(ast.fix_missing_locations(code), f"<{function.__name__}: {name}>", "eval")
    return eval(compiled, around)


def _annotations(function: FunctionType, inputs: Sequence[str]) -> dict[str, Any]:
    """Return the values that annotations of arguments say; types such as `int` say nothing."""
    found = {}
    for name in inputs:
        said = function.__annotations__.get(name)
        if isinstance(said, str):  # from __future__ import annotations
            node = ast.parse(said, mode="eval").body
            said = function.__globals__.get(node.id) if isinstance(node, ast.Name) else _written(node)
        if said is not None and not isinstance(said, type) and hasattr(said, "__iter__") and not isinstance(said, str):
            found[name] = said
    return found


def _written(node: ast.expr) -> Any:
    """Return what a list of constants or a range of them is; `None` for anything else."""
    try:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
            return range(*(ast.literal_eval(one) for one in node.args))
        said = ast.literal_eval(node)
    except (ValueError, TypeError):
        return None
    return said if isinstance(said, list | tuple) else None


def _defaults(function: FunctionType) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


def _refuse(function: ast.FunctionDef, at: ast.AST, why: str) -> NoReturn:
    line = getattr(at, "lineno", 1) - function.lineno + 1
    text = ast.unparse(at).splitlines()[0] if at is not function else function.name
    raise SpecError(f"causal_model cannot read {function.name}: line {line} ({text}) {why}")
