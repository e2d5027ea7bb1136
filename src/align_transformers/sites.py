"""Where in the network: `Site`, a component of a layer by name or any module's input or output by dotted path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from operator import index
from types import MappingProxyType
from typing import Any, Literal

from ._errors import SpecError, UnknownNameError, near_misses

Side = Literal["input", "output"]
Layers = int | Sequence[int] | Literal["all"]
"""Layer numbers, from 0, negative ones from the last."""
Point = Literal["input", "inside", "output"]
"""Where in a block something is: what goes into it, what it gives, or what lies between."""


@dataclass(frozen=True)
class Component:
    """One named place of a transformer block, or one of the model's ends.

    Args:
        meaning: what tensor it is, in one line.
        point: where in its block it is; of an end of the model: before all blocks (`input`) or behind them (`output`).
        per_head: whether the vector is a row of heads side by side.
        by_token: whether the vector at a token has the same coordinates whatever other tokens there are; False where it
            has one for each key, so that it says nothing without the sequence around it.
        over_keys: whether a pass over later tokens has it for earlier ones, too: attention gets them from the cache.
        other_sequence: whether its positions are those of the sequence that is attended to, not of the block's own.
        skips_from: the component that `SkipIntervention` copies here; `None` where that makes no sense.
        in_block: False for the ends of the model, which have no layer.

    >>> COMPONENTS["block_output"].point, COMPONENTS["attention_pattern"].by_token, COMPONENTS["key_rotary"].over_keys
    ('output', False, True)
    """

    meaning: str
    point: Point = "inside"
    per_head: bool = False
    by_token: bool = True
    over_keys: bool = False
    other_sequence: bool = False
    skips_from: str | None = None
    in_block: bool = True


_ATTENTION: Mapping[str, Component] = {
    "attention_input": Component("what the attention module reads: queries, keys and values all see it"),
    "attention_output": Component(
        "the output projection's output, before any norm, multiplier or residual", skips_from="attention_input"
    ),
    "attention_contribution": Component("what attention adds to the residual stream, after norms and multipliers"),
    "attention_value_output": Component("the heads' z side by side: the output projection's input", per_head=True),
    "query_output": Component("the query projection's output, before norms and rotary", per_head=True),
    "key_output": Component("the key projection's output, before norms and rotary", per_head=True),
    "value_output": Component("the value projection's output", per_head=True),
    "query_rotary": Component("the queries as attention gets them, after norms and rotary", per_head=True),
    "key_rotary": Component("the keys as attention gets them, after norms and rotary", per_head=True, over_keys=True),
    "attention_score": Component(
        "the scaled and masked products of queries and keys, a row a query", per_head=True, by_token=False
    ),
    "attention_pattern": Component(
        "the softmax of the scores: what each query takes from where", per_head=True, by_token=False
    ),
    "head_output": Component("the heads' output as attention gives it, before gates and norms", per_head=True),
    "head_contribution": Component("what each head adds to the residual stream", per_head=True),
}


_GATES = ("reset", "update", "new")
_RECURRENT: Mapping[str, Component] = {
    "cell_input": Component("what a cell of a recurrent network reads at a step", "input"),
    "cell_output": Component("the cell's hidden state after a step", "output"),
    **{f"{gate}_gate_input": Component(f"what goes into the {gate} gate's nonlinearity") for gate in _GATES},
    **{f"{gate}_gate_output": Component(f"the {gate} gate at a step") for gate in _GATES},
    "x2h_output": Component("what the cell's input adds to all gates, side by side"),
    "h2h_output": Component("what the cell's last hidden state adds to all gates, side by side"),
    **{f"{gate}_x2h_output": Component(f"what the cell's input adds to the {gate} gate") for gate in _GATES},
    **{f"{gate}_h2h_output": Component(f"what the last hidden state adds to the {gate} gate") for gate in _GATES},
}


def _across(name: str, component: Component) -> Component:
    """Return what a component of self-attention is where another sequence is attended to, whose cache does not grow."""
    return replace(
        component,
        meaning=f"of the attention to another sequence: {name}",
        over_keys=False,
        other_sequence=name in ("key_output", "value_output", "key_rotary"),
        skips_from=None,
    )


COMPONENTS: Mapping[str, Component] = MappingProxyType(
    {
        "block_input": Component("the residual stream before the block", "input"),
        "block_output": Component("the residual stream after the block", "output", skips_from="block_input"),
        "mlp_input": Component("what the MLP reads (after the norm)"),
        "mlp_activation": Component("the MLP's neurons: the down projection's input"),
        "mlp_output": Component("what the MLP gives, before any norm, multiplier or residual", skips_from="mlp_input"),
        "mlp_contribution": Component("what the MLP adds to the residual stream, after norms and multipliers"),
        **_ATTENTION,
        "mixer_input": Component("what a mixer that is not softmax attention reads (state space, convolution, ...)"),
        "mixer_output": Component("what such a mixer gives", skips_from="mixer_input"),
        "mixer_contribution": Component("what such a mixer adds to the residual stream"),
        "moe_input": Component("what experts read that stand beside a dense MLP, which is the MLP then"),
        "moe_output": Component("what such experts give", skips_from="moe_input"),
        "moe_contribution": Component("what such experts add to the residual stream, after norms and multipliers"),
        "per_layer_mlp_input": Component("what the MLP reads that multiplies by an embedding of each layer's own"),
        "per_layer_mlp_activation": Component("the neurons of that MLP: its down projection's input"),
        "per_layer_mlp_output": Component("what that MLP gives", skips_from="per_layer_mlp_input"),
        "per_layer_mlp_contribution": Component("what that MLP adds to the residual stream, after norms"),
        "router_output": Component("the logits with which experts are chosen"),
        "expert_activation": Component("the neurons of the experts a token was sent to, side by side in routed order"),
        "embedding_output": Component("the token embeddings", "input", in_block=False),
        "final_norm_output": Component("the residual stream after the last norm", "output", in_block=False),
        "logits": Component("the logits", "output", in_block=False),
        **{f"cross_{name}": _across(name, component) for name, component in _ATTENTION.items()},
        **_RECURRENT,
    }
)
"""The named components, each with its meaning. `head_X` is another name for X where `per_head` is true."""

ADDENDS = (
    *("attention_output", "cross_attention_output", "mixer_output"),
    *("mlp_output", "moe_output", "per_layer_mlp_output"),
)
"""What the parts of a block give, in the order in which blocks add it; `X_contribution` is what is added of X."""

HEAD_PREFIX = "head_"
COMPONENT_NAMES: tuple[str, ...] = tuple(
    dict.fromkeys((*COMPONENTS, *(HEAD_PREFIX + name for name, component in COMPONENTS.items() if component.per_head)))
)

_NUMBER = re.compile(r"(?<![^.\[])\d+(?=[.\]])")
_PATH = re.compile(r"^(?:(?P<module>.+)\.)?(?P<side>input|output)$")


@dataclass(frozen=True)
class Site:
    """Where in the network an edit reads and writes.

    Args:
        component: a name from `COMPONENT_NAMES`, or a module's dotted path ending in `.input` or `.output`. Where a
            model has several stacks of blocks, the name has the stack's in front: `encoder.block_output`.
        layer: block number, from 0; `None` when `component` is an end of the model or a path. Beside a path it may be
            one of the numbers in it, and is left out.
        call: which call of the module in one forward pass, from 0; `None` for every call.

    Raises:
        UnknownNameError: `component` is neither a known name nor a path.
        SpecError: `layer` is missing, or another than a path says; `layer` or `call` is not a number from 0.

    >>> Site("mlp_output", 3)
    Site(component='mlp_output', layer=3, call=None)
    >>> Site("encoder.head_value_output", 3).name, Site("encoder.head_value_output", 3).stack
    ('value_output', 'encoder')
    >>> Site("transformer.h[0].mlp.output").path
    ('transformer.h.0.mlp', 'output')
    >>> Site("transformer.h[0].mlp.output", 0).layer is None
    True
    """

    component: str
    layer: int | None = None
    call: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.component, str):
            raise SpecError(f"component is a name or a dotted path, and layer comes first; found {self.component!r}")
        for what, number in (("layer", self.layer), ("call", self.call)):
            if number is not None:
                object.__setattr__(self, what, _number(number, what))
        if self.name is None and self.path is None:
            raise UnknownNameError(
                f"unknown component {self.component!r}; {near_misses(self.component, COMPONENT_NAMES)}"
                " (or a module's dotted path that ends in .input or .output)"
            )
        if self.definition is not None and self.definition.in_block:
            if self.layer is None:
                raise SpecError(f"component {self.component!r} needs a layer number from 0; found layer=None")
        elif self.layer is not None:
            if self.name or str(self.layer) not in _NUMBER.findall(self.component):
                what = "is an end of the model" if self.name else "names its module itself"
                raise SpecError(f"{self.component!r} {what}; found layer={self.layer} beside it")
            object.__setattr__(self, "layer", None)  # it says again what the path says

    @cached_property
    def name(self) -> str | None:
        """The component's canonical name (without a stack's name and without `head_`), or `None` for a path."""
        last = self.component.rpartition(".")[2]
        if last in COMPONENTS:
            return last
        return last.removeprefix(HEAD_PREFIX) if last in COMPONENT_NAMES else None

    @property
    def definition(self) -> Component | None:
        """What is known of the component, whatever the model; `None` for a path.

        >>> Site("head_value_output", 3).definition.per_head, Site("h[3].output").definition
        (True, None)
        """
        return None if self.name is None else COMPONENTS[self.name]

    @property
    def stack(self) -> str:
        """The name of the stack in front of the component's; empty for the only or the main stack."""
        return self.component.rpartition(".")[0] if self.name else ""

    @cached_property
    def sequence(self) -> str:
        """The stack whose sequence positions count here; keys and values of cross-attention are of another one."""
        known = self.definition
        return "encoder" if known is not None and known.other_sequence else self.stack

    @property
    def path(self) -> tuple[str, Side] | None:
        """Dotted module path and side, or `None` for a named component."""
        if self.name is not None:
            return None
        found = _PATH.match(re.sub(r"\[(\w+)\]", r".\1", self.component))
        return None if found is None else (found["module"] or "", "input" if found["side"] == "input" else "output")

    def skip_source(self) -> Site:
        """Return the site whose value `SkipIntervention` puts here: the same module's input.

        Raises:
            SpecError: this is no module's output.

        >>> str(Site("mlp_output", 3).skip_source())
        'layer 3 mlp_input'
        """
        if self.path is not None and self.path[1] == "output":
            return Site(f"{self.path[0]}.input" if self.path[0] else "input", call=self.call)
        origin = None if self.definition is None else self.definition.skips_from
        if origin is None:
            choices = [name for name, component in COMPONENTS.items() if component.skips_from]
            raise SpecError(
                f"{self.component!r} cannot be skipped: only {', '.join(choices)} or a module's .output can"
            )
        return Site(f"{self.stack}.{origin}" if self.stack else origin, self.layer, self.call)

    def __str__(self) -> str:
        where = self.component if self.layer is None else f"layer {self.layer} {self.component}"
        return where if self.call is None else f"{where} (call {self.call})"


def in_block(component: str) -> bool:
    """Whether a component has a layer number; neither paths nor the ends of a model do.

    >>> in_block("encoder.head_value_output"), in_block("logits"), in_block("h[0].output")
    (True, False, False)
    """
    last = component.rpartition(".")[2]
    return last in COMPONENT_NAMES and COMPONENTS[last if last in COMPONENTS else last[len(HEAD_PREFIX) :]].in_block


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of whichever kind; `True` is none, though Python counts it as one."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def read_layers(layers: Any) -> int | tuple[int, ...] | Literal["all"] | None:
    """Return which layers a caller means, whatever the model.

    Args:
        layers: a number, negative from the last layer; several (a list, a range, an array, a tensor); `"all"`; `None`
            where nothing is said.

    Raises:
        SpecError: it is something else, or none.

    >>> read_layers(-1), read_layers(range(2)), read_layers("all")
    (-1, (0, 1), 'all')
    """
    if layers is None or (isinstance(layers, str) and layers == "all"):
        return layers  # type: ignore[return-value]  # the one text that is left
    plain = layers.tolist() if hasattr(layers, "tolist") else layers
    several = isinstance(plain, Iterable) and not isinstance(plain, str | bytes | Mapping)
    numbers = tuple(plain) if several else (plain,)
    if not numbers or not all(map(is_whole, numbers)):
        raise SpecError(f"layer is a number, several numbers, or 'all'; found layer={layers!r}")
    return tuple(map(index, numbers)) if several else index(numbers[0])


def _number(value: Any, what: str) -> int:
    """Return a layer or call number as a plain integer."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not is_whole(value):
        raise SpecError(f"{what} is a number from 0; found {what}={value!r}")
    if index(value) < 0:
        hint = ": a site is of no model, so it cannot count from the last" if what == "layer" else ""
        raise SpecError(f"{what} is a number from 0; found {what}={value!r}{hint}")
    return index(value)
