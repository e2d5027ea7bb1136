"""Is a component map true? Checked on one tiny model with plain hooks and weights; no code of the library is used.

For the first block of every kind (signature) in every stack, and for every component it offers:

- `place`: the module is where the path says, is called, and the tensor is as wide as the map says;
- `identity`: writing back what was read changes nothing;
- `effect`: writing zeros changes the model's answer;
- `wiring`: what must follow from a component changes with it, what must not depend on it does not;
- `heads`: the channels of heads are disjoint and cover the component; zeroing a head is zeroing its rows or columns
  of the weights; the heads' contributions add up to the output projection's output;
- `additive`: input + attention + MLP is the block's output, exactly where the map says so;
- `added`: input + contributions is the block's output, and still is when one of them is edited;
- `sole`: with the MLP's activation silenced its output is the same for every token: nothing goes past it;
- `complete`: with attention and MLP silenced the residual stream passes unchanged: no second branch was overlooked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .arithmetic import is_constant, is_out_by_in, silence, unexplained, weight_of
from .taps import SEEN_INSIDE, Tap, channels_of, is_inside, overwrite, run

_WRITERS = (
    *("attention_output", "cross_attention_output", "mixer_output"),
    *("mlp_output", "moe_output", "per_layer_mlp_output"),
)
_ADDED = tuple(name.replace("_output", "_contribution") for name in _WRITERS)
_ATTENTION = ("query_output", "key_output", "value_output", "head_output", "attention_value_output", "attention_output")
_CROSS = ("cross_query_output", "cross_head_output", "cross_attention_value_output", "cross_attention_output")
_INTO_Z = ("head_output", "attention_value_output", "attention_output", "block_output")
_INTO_CROSS_Z = ("cross_head_output", "cross_attention_value_output", "cross_attention_output", "block_output")
FOLLOWS: Mapping[str, tuple[str, ...]] = {
    "block_input": (*_ATTENTION, "mlp_output", "mixer_output", "block_output"),
    "attention_input": (*_ATTENTION, "block_output"),
    "query_output": ("query_rotary", *_INTO_Z),
    "key_output": ("key_rotary", *_INTO_Z),
    "value_output": _INTO_Z,
    "query_rotary": _INTO_Z,
    "key_rotary": _INTO_Z,
    "head_output": _INTO_Z[1:],
    "attention_value_output": _INTO_Z[2:],
    "attention_output": ("attention_contribution", "block_output"),
    "attention_contribution": ("block_output",),
    "cross_attention_input": ("cross_query_output", *_INTO_CROSS_Z),
    "cross_query_output": ("cross_query_rotary", *_INTO_CROSS_Z),
    "cross_key_output": ("cross_key_rotary", *_INTO_CROSS_Z),
    "cross_value_output": _INTO_CROSS_Z,
    "cross_query_rotary": _INTO_CROSS_Z,
    "cross_key_rotary": _INTO_CROSS_Z,
    "cross_head_output": _INTO_CROSS_Z[1:],
    "cross_attention_value_output": _INTO_CROSS_Z[2:],
    "cross_attention_output": ("cross_attention_contribution", "block_output"),
    "cross_attention_contribution": ("block_output",),
    "mixer_input": ("mixer_output", "block_output"),
    "mixer_output": ("mixer_contribution", "block_output"),
    "mixer_contribution": ("block_output",),
    "mlp_input": ("mlp_activation", "mlp_output", "block_output"),
    "mlp_activation": ("mlp_output", "block_output"),
    "mlp_output": ("mlp_contribution", "block_output"),
    "mlp_contribution": ("block_output",),
    "moe_input": ("moe_output", "block_output"),
    "moe_output": ("moe_contribution", "block_output"),
    "moe_contribution": ("block_output",),
    "per_layer_mlp_input": ("per_layer_mlp_activation", "per_layer_mlp_output", "block_output"),
    "per_layer_mlp_activation": ("per_layer_mlp_output", "block_output"),
    "per_layer_mlp_output": ("per_layer_mlp_contribution", "block_output"),
    "per_layer_mlp_contribution": ("block_output",),
    "router_output": ("block_output",),
}
"""What changes when a component is zeroed."""
NOT_BEFORE: Mapping[str, tuple[str, ...]] = {
    "query_output": ("key_output", "value_output"),
    "key_output": ("query_output", "value_output"),
    "value_output": ("query_output", "key_output"),
    "mlp_input": (*_ATTENTION, "mixer_output", *_CROSS),
    "mlp_activation": (*_ATTENTION, "mixer_output", *_CROSS, "mlp_input"),
    "moe_input": (*_ATTENTION, "mixer_output", *_CROSS, "mlp_output"),
    "per_layer_mlp_activation": (*_ATTENTION, "mixer_output", *_CROSS, "mlp_output", "moe_output"),
    "cross_attention_input": _ATTENTION,
    "attention_value_output": ("query_output", "key_output", "value_output", "head_output"),
    "head_output": ("query_output", "key_output", "value_output", "query_rotary", "key_rotary"),
    "query_rotary": ("key_rotary",),
    "key_rotary": ("query_rotary",),
}
"""What does not depend on a component."""


@dataclass(frozen=True)
class Failure:
    """One check that did not hold."""

    stack: str
    block: int
    component: str
    check: str
    detail: str

    def __str__(self) -> str:
        where = f"{self.stack or 'main'}[{self.block}].{self.component}"
        return f"{where}: {self.check}: {self.detail}"


class Verifier:
    """Checks one model against its component map."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        self.model, self.inputs = model, inputs
        self.answer = run(model, inputs)
        self.failures: list[Failure] = []
        self.skipped: list[str] = []
        """Stacks that these inputs do not reach: the image encoder of a model that is given text only."""
        self._where = ("", 0)

    def check(self, components: Any) -> list[Failure]:
        """Check every block kind of a component map; return what failed."""
        for stack, blocks in components.stacks.items():
            if not self._is_run(blocks[0]):
                self.skipped.append(stack)
                continue
            for number in representatives(blocks):
                self._where = (stack, number)
                self._block(blocks[number])
        self._where = ("ends", 0)
        for name, slot in components.ends.items():
            if name.rpartition(".")[0] in self.skipped:
                continue
            values = self._read({name: slot})
            if name in values:
                self._effect(name, slot, {}, values)
        return self.failures

    def _is_run(self, block: Any) -> bool:
        count = 0

        def see(*_: Any) -> None:
            nonlocal count
            count += 1

        handle = self.model.get_submodule(block.path).register_forward_pre_hook(see)
        try:
            run(self.model, self.inputs)
        finally:
            handle.remove()
        return count > 0

    def _fail(self, component: str, check: str, detail: str) -> None:
        self.failures.append(Failure(*self._where, component, check, detail))

    def _block(self, block: Any) -> None:
        values = self._read(block.slots)
        slots = {name: slot for name, slot in block.slots.items() if name in values}
        self._identity(slots)
        for name, slot in slots.items():
            if self._heads_are_sound(name, slot, values[name]):
                self._head_by_weights(name, slot, values[name])
            self._effect(name, slot, slots, values)
        for name, output in (
            ("attention_value_output", "attention_output"),
            ("cross_attention_value_output", "cross_attention_output"),
        ):
            if name in slots and output in slots and slots[name].heads is not None:
                self._sum_of_heads(name, slots[name], values[name], values[output])
        self._additive(block, values)
        self._added(block, slots, values)
        self._complete(block, slots, values)

    def _read(self, slots: Mapping[str, Any]) -> dict[str, Tensor]:
        """Check `place`; return what the well-placed components hold."""
        taps = {name: Tap(slot) for name, slot in slots.items() if not is_inside(slot) or slot.via in SEEN_INSIDE}
        try:
            run(self.model, self.inputs, list(taps.values()))
        except Exception as error:  # a wrong way to the tensor
            self._fail("", "place", f"reading fails: {type(error).__name__}: {error}")
            return {}
        values = {}
        for name, tap in taps.items():
            slot, problem = tap.slot, ""
            if self.model.get_submodule(slot.path) is not slot.module:
                problem = f"{slot.path} is another module"
            elif not tap.values:
                problem = f"call {slot.call} of {slot.path} does not happen ({tap.calls} calls)"
            else:
                problem = _width_problem(slot, tap.value)
                values[name] = tap.value
            if problem:
                values.pop(name, None)
                self._fail(name, "place", problem)
        return values

    def _identity(self, slots: Mapping[str, Any]) -> None:
        def changes(names: list[str]) -> bool:
            taps = [Tap(slots[name], lambda value: value.clone()) for name in names]
            answer = run(self.model, self.inputs, taps)
            if any(is_inside(slots[name]) for name in names):  # their layout in memory changes, and so the rounding
                return not torch.allclose(answer, self.answer, rtol=1e-4, atol=1e-5)
            return not torch.equal(answer, self.answer)

        inside = [name for name in slots if is_inside(slots[name])]
        for names in ([name for name in slots if name not in inside], inside):
            if names and changes(names):
                for name in names:
                    if changes([name]):
                        self._fail(name, "identity", "writing back what was read changes the answer")

    def _effect(self, name: str, slot: Any, slots: Mapping[str, Any], values: Mapping[str, Tensor]) -> None:
        channels = channels_of(slot, values[name])
        write = Tap(slot, overwrite(channels, 0.0))
        others = {key: Tap(other) for key, other in slots.items() if key != name}
        try:
            answer = run(self.model, self.inputs, [write, *others.values()])
        except Exception as error:
            self._fail(name, "effect", f"writing zeros fails: {type(error).__name__}: {error}")
            return
        if torch.equal(answer, self.answer):
            self._fail(name, "effect", "writing zeros changes nothing")
        mlp = others.get("mlp_output") if name == "mlp_activation" else None
        if mlp is not None and not is_constant(mlp.value, values["mlp_output"]):
            self._fail(name, "sole", "with it silenced, mlp_output still differs between tokens")
        self._wiring(name, write, slots, values, others)

    def _wiring(
        self,
        name: str,
        write: Tap,
        slots: Mapping[str, Any],
        values: Mapping[str, Tensor],
        others: Mapping[str, Tap],
    ) -> None:
        """Compare what changed when a component was zeroed with what must."""
        follows = set(FOLLOWS.get(name, ()))
        if name == "router_output":
            follows.add("moe_output" if "moe_output" in others else "mlp_output")
        for other in follows & set(others):
            if others[other].values and torch.equal(others[other].value, values[other]):
                self._fail(name, "wiring", f"{other} does not follow from it")
        for other in set(NOT_BEFORE.get(name, ())) & set(others):
            if _share_channels(write.slot, slots[other]) or not others[other].values:
                continue
            if other == "mixer_output" and _runs_later(others[other], write):
                continue  # Zamba: a whole transformer layer goes first, and its output into the mixer
            mine = channels_of(slots[other], values[other])
            if not torch.equal(others[other].value[..., mine], values[other][..., mine]):
                self._fail(name, "wiring", f"{other} depends on it")

    def _heads_are_sound(self, name: str, slot: Any, value: Tensor) -> bool:
        """Check that heads are disjoint and cover the component; return whether there are sound heads."""
        if slot.heads is None:
            return False
        flat, mine = slot.heads.flatten(), channels_of(slot, value)
        if slot.heads.ndim != 2 or flat.numel() == 0 or int(flat.max()) >= value.shape[-1] or int(flat.min()) < 0:
            self._fail(name, "heads", f"channels of heads are no channels of a tensor of width {value.shape[-1]}")
            return False
        if flat.unique().numel() != flat.numel():
            self._fail(name, "heads", "two heads share a channel")
            return False
        if set(flat.tolist()) != set(mine.tolist()):
            self._fail(name, "heads", f"heads hold {flat.numel()} channels, the component {mine.numel()}")
        return True

    def _head_by_weights(self, name: str, slot: Any, value: Tensor) -> None:
        """Check that zeroing the last head's channels is zeroing its part of the weights."""
        weight, channels = weight_of(slot.module), slot.heads[-1]
        calls = Tap(slot)
        if is_inside(slot) or weight is None or self._is_shared(weight) or slot.leaf not in (None, (), (0, 0)):
            return
        by_hook = run(self.model, self.inputs, [Tap(slot, overwrite(channels, 0.0)), calls])
        if calls.calls != 1:
            return
        with torch.no_grad():
            kept = {key: parameter.clone() for key, parameter in slot.module.named_parameters(recurse=False)}
            try:
                silence(slot.module, slot.side, channels)
                by_weights = run(self.model, self.inputs)
            finally:
                for key, parameter in slot.module.named_parameters(recurse=False):
                    parameter.copy_(kept[key])
        if not torch.allclose(by_hook, by_weights, rtol=1e-4, atol=1e-5):
            self._fail(name, "heads", "zeroing a head's channels is not zeroing its weights")
        others = torch.ones(value.shape[-1], dtype=torch.bool)
        others[channels] = False
        if not torch.equal(calls.value[..., others], value[..., others]):
            self._fail(name, "heads", "writing one head touches others")

    def _is_shared(self, weight: Tensor) -> bool:
        owners = [m for m in self.model.modules() for p in m.parameters(recurse=False) if p is weight]
        return len(owners) > 1

    def _sum_of_heads(self, name: str, slot: Any, z: Tensor, output: Tensor) -> None:
        weight = weight_of(slot.module)
        if weight is None:
            return
        columns = weight if is_out_by_in(slot.module) else weight.T
        total = sum(z[..., head] @ columns[:, head].T for head in slot.heads)
        bias = getattr(slot.module, "bias", None)
        total = total if bias is None else total + bias
        if total.shape != output.shape or not torch.allclose(total, output, rtol=1e-4, atol=1e-5):
            self._fail(name, "heads", "the heads' contributions do not add up to the projection's output")

    def _additive(self, block: Any, values: Mapping[str, Tensor]) -> None:
        claimed = bool(block.flags.get("additive"))
        if not {"block_input", "block_output"} <= set(values):
            return
        total, holds = values["block_input"], True
        for name in _WRITERS:
            if name in values:
                same = values[name].numel() == total.numel()
                holds = holds and same
                total = total + values[name].reshape(total.shape) if same else total
        out = values["block_output"]
        holds = holds and total.shape == out.shape and bool((total - out).abs().max() <= 1e-4 * out.abs().max())
        if claimed != holds:
            said = "claimed, but does not hold" if claimed else "holds, but is not claimed"
            self._fail("block_output", "additive", said)

    def _added(self, block: Any, slots: Mapping[str, Any], values: Mapping[str, Tensor]) -> None:
        """Check that the contributions are what is added: as they are, and when one of them is another."""
        names = [name for name in _ADDED if name in slots]
        if not {"block_input", "block_output"} <= set(values):
            return
        if not names:
            if block.flags.get("additive"):
                self._fail("block_output", "added", "additive, but what is added is not offered")
            return
        taps = {name: Tap(slots[name]) for name in (*names, "block_input", "block_output")}
        for edited in (None, *names):
            if edited is not None:
                noise = torch.randn(values[edited].shape, generator=torch.Generator().manual_seed(0))
                new = values[edited] + noise * values[edited].abs().mean()
                taps[edited] = Tap(slots[edited], lambda _, new=new: new.clone())  # Falcon adds into it
            run(self.model, self.inputs, list(taps.values()))
            parts = [new if name == edited else taps[name].value for name in names]
            total, out = taps["block_input"].value, taps["block_output"].value
            total = total + sum(part.reshape(total.shape) for part in parts)
            if not bool((total - out).abs().max() <= 1e-4 * out.abs().max()):
                self._fail(edited or "block_output", "added", "block_input + contributions is not block_output")
            if edited is not None:
                taps[edited] = Tap(slots[edited])

    def _complete(self, block: Any, slots: Mapping[str, Any], values: Mapping[str, Tensor]) -> None:
        writers = [name for name in _WRITERS if name in slots]
        refused = [name for name in _WRITERS if name in block.missing and not is_absent(block.missing[name])]
        if block.flags.get("adapters"):  # they write as well, and have no name
            return
        if refused or not writers or not {"block_input", "block_output"} <= set(values):
            return
        out = Tap(slots["block_output"])
        taps = [Tap(slots[name], overwrite(channels_of(slots[name], values[name]), 0.0)) for name in writers]
        run(self.model, self.inputs, [*taps, out])
        left = unexplained(values["block_input"], out.value)
        if left > 0:
            detail = f"with {', '.join(writers)} silenced, {left:.0%} of what leaves the block is not what entered"
            self._fail("block_output", "complete", detail)


def representatives(blocks: Any) -> list[int]:
    """Return the number of the first block of every kind."""
    first: dict[str, int] = {}
    for number, block in enumerate(blocks):
        first.setdefault(str(block.flags.get("signature", number)), number)
    return list(first.values())


def _runs_later(mixer: Tap, write: Tap) -> bool:
    """Return whether a mixer is done after an MLP that is no part of it."""
    return mixer.time > write.time and not write.slot.path.startswith(mixer.slot.path + ".")


def _share_channels(slot: Any, other: Any) -> bool:
    """Return whether two slots are one tensor, whose hook sees the other's write."""
    same = (slot.module, slot.side, slot.call) == (other.module, other.side, other.call)
    return same and (slot.channels is None or other.channels is None)


ABSENT = (
    "no softmax attention was seen in this block",
    "this block only attends to another sequence",
    "no part of the block mixes positions",
    "this block has no MLP",
    "the neurons are those of experts",
)
"""Beginnings of the reasons that say: the block has no such thing. All others are refusals."""


def is_absent(reason: str) -> bool:
    """Return whether a component is missing because the block has no such thing, rather than refused."""
    return reason.startswith(ABSENT)


def _width_problem(slot: Any, value: Tensor) -> str:
    wide = value.shape[-1]
    mine = wide if slot.channels is None else len(slot.channels)
    if slot.channels is not None and (int(slot.channels.max()) >= wide or int(slot.channels.min()) < 0):
        return f"channels up to {int(slot.channels.max())} of a tensor of width {wide}"
    if slot.channels is not None and slot.channels.unique().numel() != mine:
        return "a channel is listed twice"
    if slot.width is not None and slot.width != mine:
        return f"width {slot.width}, but the tensor has {mine} channels of it"
    return ""
