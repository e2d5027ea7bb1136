"""Rules of the backward pass, on unmodified modules: values stay what they are, gradients go by a rule.

With `J` the true derivative of a module at x, a rule puts a linear map in its place:

- `norm`: a norm n = s(x) W c(x) + b with its scale s held constant. Its transpose A'g follows from the true one:
  A'g = J'g + c ((n - b).g - x.J'g) / |c|^2, c = x or the centred x; eps is in it already.
- `secant`: an activation function's slope is (f(x) - f(0)) / x.
- `half`: of a product of a gated MLP each factor gets half of the gradient.
- `patterns`: attention patterns are constant: queries and keys get none.
- `temperature` (of GIM): the softmax goes backward as at a temperature of 2, p_T (g - p_T.g); queries and keys get a
  fourth, values half of the gradient, since they are factors of products, too.

Which modules are norms and which activation functions is found by what they do (`_module_kinds`), not by their names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .._errors import SpecError, UnknownNameError, near_misses
from ..engine.hooks import Tap
from ..models import find_leaf, find_slot, replace_leaf, resolve
from ..models.scope import hook_after, hook_before
from ..sites import Site
from ._module_kinds import is_plain, kind_of, same_numbers

Rule = Literal["true", "frozen_norm", "relp", "gim", "norm", "secant", "half", "patterns", "temperature"]
SWITCHES = ("norm", "secant", "half", "patterns", "temperature")
COMBINATIONS: dict[str, tuple[str, ...]] = {
    "true": (),
    "frozen_norm": ("norm",),
    "relp": ("norm", "secant", "half", "patterns"),
    "gim": ("norm", "half", "temperature"),
}
TEMPERATURE = 2.0
_SMALL = 1e-6
"""Closer to 0 an activation function has its own slope, not that of the secant."""


def switches_of(rule: Rule | Sequence[Rule]) -> tuple[str, ...]:
    """Return the switches of a rule, in the order of `SWITCHES`.

    Args:
        rule: a combination, a switch, or several of these.

    Raises:
        UnknownNameError: there is no such rule.

    >>> switches_of("relp"), switches_of(["half", "frozen_norm"])
    (('norm', 'secant', 'half', 'patterns'), ('norm', 'half'))
    """
    names = [rule] if isinstance(rule, str) else list(rule)
    for name in names:
        if name not in get_args(Rule):
            raise UnknownNameError(f"there is no rule {name!r}; {near_misses(str(name), get_args(Rule))}")
    chosen = {switch for name in names for switch in COMBINATIONS.get(name, (name,))}
    if {"patterns", "temperature"} <= chosen:
        raise SpecError("rule: patterns are constant, or go backward at a temperature, but not both")
    return tuple(switch for switch in SWITCHES if switch in chosen)


@dataclass(eq=False)
class BackwardRules:
    """The rules of one backward pass.

    Args:
        switches: those that are on.
        acted: by switch how often it acted in the forward pass.
        further: what else stands downstream of all others.
    """

    switches: tuple[str, ...] = ()
    acted: Counter[str] = field(default_factory=Counter)
    further: Sequence[Tap] = ()

    @property
    def hooks(self) -> bool:
        """Whether modules are hooked that are no sites."""
        return any(switch in self.switches for switch in ("norm", "secant", "half"))

    def taps(self, model: nn.Module) -> tuple[list[Tap], list[Tap]]:
        """Return what stands at sites: upstream of what is recorded there, and downstream of that.

        Args:
            model: the user's.

        Raises:
            SpecError: it is not known where a rule is to act.
        """
        before: list[Tap] = []
        after: list[Tap] = []
        if "half" in self.switches:
            before += [Tap(slot, partial(self._weaken, "half", 0.5, None)) for slot in _gated_experts(model)]
        if "patterns" in self.switches:
            for site in (*_at_attention(model, "query"), *_at_attention(model, "key")):
                slot = find_slot(model, site)
                after.append(Tap(slot, partial(self._stop, slot.channels)))
        if "temperature" in self.switches:
            for site in _at_attention(model, "pattern"):
                slot = find_slot(model, site)
                before.append(Tap(slot, partial(self._warm, slot.n_heads)))
            for name, factor in (("query", 0.25), ("key", 0.25), ("value", 0.5)):
                for site in _at_attention(model, name):
                    slot = find_slot(model, site)
                    after.append(Tap(slot, partial(self._weaken, "temperature", factor, slot.channels)))
        return before, [*after, *self.further]

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        """Let the rules act at modules that are no sites while the context is open.

        Args:
            model: the user's, uncompiled.
        """
        ends: list[Callable[[], None]] = []
        try:
            if self.hooks:
                watch = _Modules(self)
                standing: set[nn.Module] = set()
                for parent in model.modules():
                    children = list(parent.children())
                    plain = [child for child in children if is_plain(child)]
                    for child in set(plain) - standing:
                        ends += watch.stand_at(child, parent)
                    standing.update(plain)
                    if "half" in self.switches and plain:
                        ends += [hook_before(child, partial(watch.enter_sibling, parent)) for child in children]
                        ends.append(hook_before(parent, watch.enter_parent))
            yield
        finally:
            for end in reversed(ends):
                end()

    def check(self, rule: Rule | Sequence[Rule]) -> None:
        """Refuse a rule that acted nowhere.

        Args:
            rule: as the caller said it.

        Raises:
            SpecError: nothing that was asked for by its own name acted.
        """
        asked = [rule] if isinstance(rule, str) else list(rule)
        idle = [name for name in asked if name in SWITCHES and not self.acted[name]]
        if idle or (self.switches and not any(self.acted.values())):
            what = idle[0] if idle else asked[0]
            raise SpecError(
                f"rule {what!r} acts nowhere in this model: there is no module of the kind, or what it is about is "
                "computed without one"
            )

    def _weaken(self, name: str, factor: float, channels: Tensor | None, tensor: Tensor, *_: Any) -> Tensor | None:
        """Return the same value, whose gradient is multiplied with a number on its way up."""
        if not tensor.requires_grad:
            return None
        self.acted[name] += 1
        weights = tensor.new_full((tensor.shape[-1],), factor if channels is None else 1.0)
        if channels is not None:
            weights[channels.to(tensor.device)] = factor
        return _with_hook(tensor, lambda gradient: gradient * weights)

    def _stop(self, channels: Tensor | None, tensor: Tensor, *_: Any) -> Tensor:
        """Return the same value without a gradient."""
        self.acted["patterns"] += 1
        if channels is None:
            return tensor.detach()
        own = torch.zeros(tensor.shape[-1], dtype=torch.bool, device=tensor.device)
        own[channels.to(tensor.device)] = True
        return torch.where(own, tensor.detach(), tensor)

    def _warm(self, heads: int, flat: Tensor, *_: Any) -> Tensor | None:
        """Return the same pattern, from which the gradient goes on as if the softmax had been made at a temperature.

        With h what the softmax of that temperature makes of g, the true softmax makes h of h / p.
        """
        if not flat.requires_grad:
            return None
        self.acted["temperature"] += 1

        def warmed(gradient: Tensor) -> Tensor:
            pattern = flat.detach().unflatten(-1, (heads, -1)).double()
            warm = pattern ** (1 / TEMPERATURE)
            warm = warm / warm.sum(-1, keepdim=True).clamp(min=1e-300)
            given = gradient.view(pattern.shape).double()
            made = warm * (given - (warm * given).sum(-1, keepdim=True))
            return torch.where(pattern > 0, made / pattern.clamp(min=1e-300), 0).to(gradient.dtype).view(gradient.shape)

        return _with_hook(flat, warmed)


def _with_hook(tensor: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    view = tensor.view_as(tensor)
    view.register_hook(act)
    return view


def _only(args: Any, kwargs: Any) -> Tensor | None:
    """Return what a module is called with, if that is one tensor of numbers."""
    given = [*args, *kwargs.values()]
    alone = len(given) == 1 and isinstance(given[0], Tensor) and given[0].is_floating_point()
    return given[0] if alone else None


def _at_attention(model: nn.Module, what: str) -> list[Site]:
    """Return where all queries, keys, values or patterns of a model are, as attention gets them if that is known.

    Raises:
        SpecError: it is not known of a block that attends.
    """
    found = resolve(model)
    names = {
        "query": ("query_rotary", "query_output"), "key": ("key_rotary", "key_output"), "value": ("value_output",),
        "pattern": ("attention_pattern",),
    }[what]  # fmt: skip
    sites = []
    for stack, blocks in found.stacks.items():
        for layer, block in enumerate(blocks):
            for prefix in ("", "cross_"):
                here = [f"{prefix}{name}" for name in names if f"{prefix}{name}" in block.slots]
                if here:
                    sites.append(Site(f"{stack}.{here[0]}" if stack else here[0], layer))
                elif f"{prefix}attention_output" in block.slots:
                    why = block.missing.get(f"{prefix}{names[0]}", "it was not found")
                    raise SpecError(f"rule: it is not known where the {what} of {block.path} is ({why})")
    return sites


def _gated_experts(model: nn.Module) -> list[Any]:
    """Return where the neurons of gated experts are."""
    slots = []
    for stack, blocks in resolve(model).stacks.items():
        for layer, block in enumerate(blocks):
            if "expert_activation" in block.slots:
                slot = find_slot(model, Site(f"{stack}.expert_activation" if stack else "expert_activation", layer))
                if getattr(slot.module, "has_gate", False):
                    slots.append(slot)
            elif block.flags.get("experts"):
                raise SpecError(
                    f"rule 'half': the products of the experts of {block.path} are not to be had "
                    f"({block.missing.get('expert_activation', 'they were not found')})"
                )
    return slots


class _Modules:
    """What acts at modules: norms, activation functions, and what reads the product of one with something else."""

    def __init__(self, rules: BackwardRules) -> None:
        self._rules = rules
        self._kinds: dict[int, str] = {}
        self._views: dict[int, Tensor] = {}
        self._inputs: dict[int, Tensor | None] = {}
        self._armed: dict[int, Tensor] = {}

    def stand_at(self, module: nn.Module, parent: nn.Module) -> list[Callable[[], None]]:
        """Stand at a module, and return what ends that."""
        return [
            hook_before(module, self._enter),
            hook_after(module, partial(self._leave, parent), with_kwargs=True),
        ]

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        x = _only(args, kwargs)
        if x is None or not x.requires_grad or "norm" not in self._rules.switches or self._kind(module, x) != "norm":
            return None
        view = self._views[id(module)] = x.view_as(x)
        return replace_leaf((args, kwargs), find_leaf((args, kwargs), None, "a norm")[0], view)

    def _leave(self, parent: nn.Module, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        x = _only(args, kwargs)
        if x is None or not isinstance(output, Tensor) or not output.requires_grad:
            return None
        kind = self._kind(module, x)
        view = self._views.pop(id(module), None)
        if kind == "norm" and view is not None:
            self._rules.acted["norm"] += 1
            _freeze(module, view, output)
        if kind != "activation":
            return None
        if "half" in self._rules.switches:
            self._armed[id(parent)] = output.detach()
        if "secant" not in self._rules.switches:
            return None
        self._rules.acted["secant"] += 1
        return _secant(module, x, output)

    def enter_parent(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Note what a module reads whose parts are watched."""
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self._inputs[id(module)] = given[0] if given else None
        self._armed.pop(id(module), None)

    def enter_sibling(self, parent: nn.Module, _module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Halve the gradient of a product: what the first part after an activation function reads, if not its output.

        A part that reads what the whole reads, such as an up projection, is none of these.
        """
        made = self._armed.get(id(parent))
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        whole = self._inputs.get(id(parent))
        if made is None or not given or given[0].shape != made.shape or not given[0].requires_grad:
            return None
        if whole is not None and whole.data_ptr() == given[0].data_ptr():
            return None
        del self._armed[id(parent)]
        if torch.equal(given[0].detach(), made):
            return None
        self._rules.acted["half"] += 1
        halved = _with_hook(given[0], lambda gradient: gradient * 0.5)
        return replace_leaf((args, kwargs), find_leaf((args, kwargs), None, "a projection")[0], halved)

    def _kind(self, module: nn.Module, x: Tensor) -> str:
        if id(module) not in self._kinds:
            self._kinds[id(module)] = kind_of(module, x)
        return self._kinds[id(module)]


def _freeze(module: nn.Module, view: Tensor, output: Tensor) -> None:
    """Let the gradient of a norm's input be that with a constant scale."""
    x, out = view.detach(), output.detach()
    kind = torch.promote_types(x.dtype, torch.float32)
    with torch.no_grad():
        bias = module.forward(torch.zeros_like(x[..., :1, :])).to(kind)
        probe = torch.sin(torch.arange(1, x.shape[-1] + 1, device=x.device) * 1.7).to(x.dtype)[None, None]
        shift = bias.reshape(-1, x.shape[-1])[0]
        centred = same_numbers(module.forward(probe + 1) - shift, module.forward(probe) - shift)
    x, normed = x.to(kind), out.to(kind) - bias
    seen: dict[str, Tensor] = {}
    c = x - x.mean(-1, keepdim=True) if centred else x
    square = (c * c).sum(-1, keepdim=True)
    output.register_hook(lambda gradient: seen.__setitem__("g", gradient.to(kind)))

    def corrected(plain: Tensor) -> Tensor:
        j = plain.to(kind)
        missing = (normed * seen.pop("g")).sum(-1, keepdim=True) - (x * j).sum(-1, keepdim=True)
        return torch.where(square > 0, j + c * missing / square.clamp(min=1e-30), j).to(plain.dtype)

    view.register_hook(corrected)


def _secant(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the same value, on which x works by the slope of the secant."""
    with torch.no_grad():
        nothing = module.forward(torch.zeros_like(x[..., :1]))
        small = x.abs() < _SMALL
        slope = torch.where(small, 0, (y - nothing) / torch.where(small, 1, x))
    return torch.where(small, y, y.detach() + (x - x.detach()) * slope)
