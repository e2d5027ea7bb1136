"""Watching one forward pass: which modules ran in which order, on what, and what attention was computed.

While it is watched, the output of every linear layer and of every attention is cut loose from what came before: it
becomes a leaf of the autograd graph. A gradient then tells, exactly and without names, which linear layer a tensor
comes from directly, and which of its channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._errors import SiteError
from .interfaces import around_interface
from .quiet import quietly
from .slot import Leaf, find_leaf, replace_leaf, twins


@dataclass(eq=False)
class ModuleCall:
    """One call of one module.

    Args:
        path: dotted path of the module.
        module: the module.
        number: how many calls of it came before in this pass.
        start: time stamp when it began; `end` when it returned (-1 if it never did).
        parent: the call it happened in; `None` for the model itself.
        arguments: `(args, kwargs)`.
        input: the first floating-point tensor among them, `input_leaf` the way to it, and `input_twins` the ways to
            where it stands again.
        output: the first floating-point tensor of what it returned, and `output_leaf` the way to it.
        cut: for a linear layer the leaf of the autograd graph that its output was replaced with.
    """

    path: str
    module: nn.Module
    number: int
    start: int
    parent: ModuleCall | None
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    input: Tensor | None = None
    input_leaf: Leaf = ()
    input_twins: tuple[Leaf, ...] = ()
    output: Tensor | None = None
    output_leaf: Leaf = ()
    end: int = -1
    cut: Tensor | None = None

    def inside(self, other: ModuleCall) -> bool:
        """Whether this call happened during `other`."""
        return other.start < self.start and -1 < self.end < other.end


@dataclass(eq=False)
class Attention:
    """One softmax attention.

    Args:
        owner: the call it happened in.
        time: time stamp.
        source: `interface` (transformers' attention interface), `sdpa` or `softmax` (seen at the torch function).
        query: what was multiplied with `key`, after norms and rotary; `None` if not seen.
        value: what the pattern was multiplied with.
        pattern: the softmax, where it was seen.
        core: the heads' output, cut loose from what came before; `uncut` the same before that.
    """

    owner: ModuleCall
    time: int
    source: str
    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    pattern: Tensor | None = None
    core: Tensor | None = None
    uncut: Tensor | None = None


@dataclass(eq=False)
class Trace:
    """What was seen in one forward pass."""

    calls: list[ModuleCall] = field(default_factory=list)
    attentions: list[Attention] = field(default_factory=list)

    def during(self, call: ModuleCall) -> list[ModuleCall]:
        """Return the calls that happened during `call`, in order."""
        return [other for other in self.calls if other.inside(call)]

    def attentions_during(self, call: ModuleCall) -> list[Attention]:
        """Return the attentions that were computed during `call`, in order."""
        return [seen for seen in self.attentions if call.start < seen.time < call.end]


def watch(model: nn.Module, inputs: Mapping[str, Any]) -> Trace:
    """Run one forward pass, of which nobody else hears, and return what was seen.

    Args:
        model: any module, in eval mode; gradients are on.
        inputs: its keyword arguments, batch first.
    """
    watcher = _Watcher(model)
    with watcher.watching():
        model(**inputs)
    return watcher.trace


def is_linear(call: ModuleCall) -> bool:
    """Whether a call maps the last axis by one matrix: told by its weight, or by `in_features` if that is packed."""
    inputs, output, module = call.input, call.output, call.module
    if inputs is None or output is None or isinstance(module, nn.Embedding) or min(inputs.ndim, output.ndim) < 2:
        return False
    inner = getattr(module, "base_layer", None)
    while isinstance(inner, nn.Module):  # an adapter around a linear layer
        module, inner = inner, getattr(inner, "base_layer", None)
    composite = call.end != call.start + 1 if module is call.module else next(module.children(), None) is not None
    if composite:  # other modules work in it; packed weights may be a module, too, but one that is never called
        return False
    sizes = inputs.shape[-1], output.shape[-1]
    if (getattr(module, "in_features", None), getattr(module, "out_features", None)) == sizes:
        return True
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and tuple(weight.shape) in (sizes, sizes[::-1])


class _Watcher(TorchFunctionMode):
    """An ear for every module, a wrapper around transformers' attention interface, and an eye on torch functions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.paths = {module: path for path, module in model.named_modules()}
        self.trace = Trace()
        self.clock = 0
        self.open: list[ModuleCall] = []
        self.inside_attention = 0
        self.awaiting_value: Attention | None = None
        self.products: dict[int, list[tuple[Tensor, Tensor, tuple[int, ...]]]] = {}
        self.counts: dict[str, int] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(quietly(self._entering, self._leaving))
            stack.enter_context(_wrapped_interface(self))
            stack.enter_context(self)
            yield

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def _entering(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        path = self.paths.get(module)
        if path is None:  # not one of the model's
            return
        number = self.counts.get(path, 0)
        self.counts[path] = number + 1
        call = ModuleCall(path, module, number, self.tick(), self.open[-1] if self.open else None, (args, kwargs))
        call.input_leaf, call.input = _first_tensor(call.arguments)
        if call.input is not None:
            original = find_leaf(call.arguments, call.input_leaf, path)[1]
            call.input_twins = twins(call.arguments, call.input_leaf, original)
        self.open.append(call)
        self.trace.calls.append(call)

    def _leaving(self, module: nn.Module, output: Any) -> Any:
        if module not in self.paths:
            return None
        call = self.open.pop()
        call.output_leaf, call.output = _first_tensor(output)
        call.end = self.tick()
        nested = any(hasattr(outer.module, "base_layer") for outer in self.open)
        if call.output is None or nested or not is_linear(call):
            return None
        call.cut = call.output.detach().requires_grad_()
        call.output = call.cut
        return replace_leaf(
            output, call.output_leaf, call.cut.clone()
        )  # a clone, so that in-place code goes on working

    def saw(self, attention: Attention, core: Tensor) -> Tensor:
        """Note the output of an attention; return it as a leaf's clone."""
        attention.core, attention.uncut = core.detach().requires_grad_(), core
        attention.time = self.tick()
        return attention.core.clone()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self.inside_attention or not self.open or not isinstance(output, Tensor) or output.ndim < 3:
            return output
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            given = [*args, *(kwargs[key] for key in ("query", "key", "value")[len(args) :])][:3]
            attention = Attention(self.open[-1], self.tick(), "sdpa", *given)
            self.trace.attentions.append(attention)
            return self.saw(attention, output)
        if name in ("softmax", "_softmax"):
            return self._saw_softmax(output)
        if name in ("matmul", "bmm", "einsum", "__matmul__", "baddbmm"):
            return self._saw_product(name, args, kwargs, output)
        return output

    def _saw_softmax(self, output: Tensor) -> Tensor:
        owner = self.open[-2] if isinstance(self.open[-1].module, nn.Softmax) and len(self.open) > 1 else self.open[-1]
        attention = Attention(owner, self.tick(), "softmax", pattern=output)
        # Scores may be a sum of products, with positions for one: the queries and keys are those that make all of it.
        products = self.products.pop(id(owner), [])
        makers = [p for p in products if p[2] == tuple(output.shape[-2:])] if len(products) > 1 else products
        if len(makers) == 1:
            attention.query, attention.key, _ = makers[0]
        self.trace.attentions.append(attention)
        self.awaiting_value = attention
        return output

    def _saw_product(self, name: str, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        flat = [item for value in args for item in (value if isinstance(value, list | tuple) else [value])]
        flat += [kwargs[key] for key in ("batch1", "batch2", "mat2", "other") if key in kwargs]
        factors = [item for item in flat if isinstance(item, Tensor)]
        factors = factors[1:] if name == "baddbmm" and len(factors) == 3 else factors
        waiting, owner = self.awaiting_value, self.open[-1]
        if waiting is not None and waiting.owner is owner and len(factors) == 2 and waiting.pattern is not None:
            self.awaiting_value = None
            first_is_pattern = factors[0].shape[-1] == waiting.pattern.shape[-1]
            waiting.value = factors[1] if first_is_pattern else factors[0]
            return self.saw(waiting, output)
        if len(factors) == 2:
            product = factors[0], factors[1], tuple(output.shape[-2:])
            self.products.setdefault(id(owner), []).append(product)
        return output


def _first_tensor(container: Any) -> tuple[Leaf, Tensor | None]:
    """Return the first tensor as it is now: models go on to change some in place (`mlp_output += attention_output`)."""
    try:
        leaf, tensor = find_leaf(container, None, "")
    except SiteError:
        return (), None
    return leaf, tensor.clone()


@contextmanager
def _wrapped_interface(watcher: _Watcher) -> Iterator[None]:
    """See every call of transformers' attention interface while the context is open."""
    try:
        from transformers.modeling_utils import AttentionInterface
    except ImportError:  # a model of plain torch modules needs no transformers
        yield
        return

    def attend(
        function: Callable[..., Any],
        _eager: Callable[..., Any],
        module: nn.Module,
        inputs: tuple[Any, ...],
        options: dict[str, Any],
    ) -> Any:
        watcher.inside_attention += 1
        try:
            core, *others = function(module, *inputs, **options)
        finally:
            watcher.inside_attention -= 1
        given = dict(zip(("query", "key", "value"), inputs, strict=False)) | options
        owner = next((call for call in reversed(watcher.open) if call.module is module), watcher.open[-1])
        pattern = others[0] if others and isinstance(others[0], Tensor) else None
        query, key, value = given["query"], given["key"], given["value"]
        attention = Attention(owner, watcher.tick(), "interface", query, key, value, pattern)
        watcher.trace.attentions.append(attention)
        return (watcher.saw(attention, core), *others)

    with around_interface(AttentionInterface, attend):
        yield
