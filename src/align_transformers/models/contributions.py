"""What each part of a block adds to the residual stream: told by the sum, to which norms and multipliers belong."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..sites import ADDENDS
from .findings import Findings, same_values
from .trace import ModuleCall

CONTRIBUTIONS = {name: name.replace("_output", "_contribution") for name in ADDENDS}
"""What a part gives, and what it adds."""
BY_THE_SUM = "by the sum: "
_CLOSE = 1e-4
"""The sum may be off by this share of what the block adds at most, beside what rounding the stream explains."""


@dataclass(frozen=True, eq=False)
class _Form:
    """One tensor that may be what a part adds: what it gives, or what norms and other modules make of that.

    Args:
        call: the module's call that returns it.
        value: in the shape of the block's input.
        scale: what it is multiplied with by no module.
    """

    call: ModuleCall
    value: Tensor
    scale: float = 1.0


def find_contributions(found: Findings) -> None:
    """Note what attention, mixer and MLP add to the residual stream, and whether that is what they give.

    Args:
        found: a block of which all else is known.
    """
    parts = [name for name in ADDENDS if name in found.slots]
    found.flags["additive"] = bool(parts) and _adds_up(found, [_whole(found, name) for name in parts])
    forms = [list(_forms(found, name)) for name in parts]
    for name in set(ADDENDS) & set(found.missing):
        found.refuse([CONTRIBUTIONS[name]], found.missing[name])
    chosen = _fitting(found, forms) if forms and all(forms) else None
    if chosen is None:
        reason = "block_output is not block_input plus what the parts that are known give, times any number"
        found.refuse([CONTRIBUTIONS[name] for name in parts], reason)
        _refuse_heads(found, parts, reason)
        return
    for name, options, form in zip(parts, forms, chosen, strict=True):
        _note(found, name, _last(found, form, options))
    _note_heads(found, parts, chosen)


def _whole(found: Findings, name: str) -> Tensor | None:
    """Return what a part gives in the shape of the block's input; `None` where it has another size."""
    value, stream = found.value(name), found.block.input
    fits = value is not None and stream is not None and value.numel() == stream.numel()
    return value.reshape(stream.shape) if fits else None  # type: ignore[union-attr]


def _forms(found: Findings, name: str) -> Iterator[_Form]:
    """Yield what a part gives, and what becomes of that on its way to the residual stream."""
    slot, stream = found.slots[name], found.block.input
    if slot.side != "output" or slot.channels is not None or stream is None or _whole(found, name) is None:
        return
    inside, known = found.trace.during(found.block), [_call_at(found, name)]
    for call in sorted((call for call in inside if call.end > known[0].end), key=lambda call: call.end):
        output = call.output
        if output is None or output.numel() != stream.numel():
            continue
        around = any(form.inside(call) for form in known)
        reads = any(form.end < call.start and same_values(call.input, form.output) for form in known)
        works = call.cut is not None or any(c.inside(call) and c.cut is not None for c in inside)
        if (reads and not works) or (around and not any(same_values(output, form.output) for form in known)):
            known.append(call)
    yield from (_Form(c, c.output.detach().reshape(stream.shape)) for c in known if c.output is not None)


def _call_at(found: Findings, name: str) -> ModuleCall:
    slot = found.slots[name]
    return next(c for c in found.trace.calls if c.path == slot.path and c.number == (slot.call or 0))


def _adds_up(found: Findings, parts: Sequence[Tensor | None]) -> bool:
    """Whether the block's output is its input plus these."""
    before, after = found.block.input, found.block.output
    if before is None or after is None or before.shape != after.shape or any(part is None for part in parts):
        return False
    summed = [before.double(), *(part.double() for part in parts if part is not None)]
    total = torch.stack(summed).sum(0)
    # what was added may cancel, so what was rounded on the way may be larger than both ends
    rounding = 4 * torch.finfo(after.dtype).eps * torch.stack([*summed, after.double()]).abs().sum(0)
    added = (after.double() - before.double()).abs().max()
    return bool(((total - after.double()).abs() <= rounding + _CLOSE * added).all())


def _fitting(found: Findings, forms: Sequence[Sequence[_Form]]) -> tuple[_Form, ...] | None:
    """Return the form of each part with which the sum holds; `None` if there are none."""
    choices = sorted(itertools.product(*map(enumerate, forms)), key=lambda choice: sum(n for n, _ in choice))
    plain = [tuple(form for _, form in choice) for choice in choices]
    for choice in plain:
        if _adds_up(found, [form.value for form in choice]):
            return choice
    for choice in plain:
        scaled = _scaled(found, choice)
        if scaled is not None and _adds_up(found, [form.value * form.scale for form in scaled]):
            return scaled
    return None


def _scaled(found: Findings, choice: Sequence[_Form]) -> tuple[_Form, ...] | None:
    """Return forms with the numbers that they are multiplied with; `None` where these may be weights.

    A number that the block's modules hold is taken as it is, where it is the one that was fitted.
    """
    before, after = found.block.input, found.block.output
    homes = [call for call in found.trace.during(found.block) if any(form.call.inside(call) for form in choice)]
    modules = [found.block.module, *(call.module for call in homes), *(form.call.module for form in choice)]
    if before is None or after is None or any(list(m.parameters(recurse=False)) for m in modules[: 1 + len(homes)]):
        return None
    columns = torch.stack([form.value.double().flatten() for form in choice], 1)
    fitted = torch.linalg.lstsq(columns, (after.double() - before.double()).flatten().unsqueeze(1)).solution.flatten()
    held = [1.0, *(float(v) for m in modules for v in vars(m).values() if type(v) in (int, float) and v)]
    scales = [min(held, key=lambda number: abs(number - scale)) for scale in fitted.tolist()]
    near = 1e-3 if after.dtype in (torch.float32, torch.float64) else 2e-2
    pairs = zip(choice, fitted.tolist(), scales, strict=True)
    return tuple(replace(f, scale=number if abs(number - s) <= near * abs(s) else s) for f, s, number in pairs)


def _last(found: Findings, form: _Form, options: Sequence[_Form]) -> _Form:
    """Return where the tensor of a form is handed on last: behind the dropout, which does nothing while it is watched.

    Modules that are called twice in the block stay out of it where they can.
    """
    inside = [call.module for call in found.trace.during(found.block)]
    same = [option.call for option in options if torch.equal(option.value, form.value)]
    once = [call for call in same if inside.count(call.module) == 1]
    return replace(form, call=(once or same)[-1])


def _note(found: Findings, name: str, form: _Form) -> None:
    made = name if found.slots[name].path == form.call.path else f"what {form.call.path} makes of {name}"
    how = BY_THE_SUM + made + ("" if form.scale == 1.0 else f", times {form.scale:g}")
    found.note(CONTRIBUTIONS[name], form.call, "output", how)
    found.slots[CONTRIBUTIONS[name]] = replace(found.slots[CONTRIBUTIONS[name]], scale=form.scale)


def _refuse_heads(found: Findings, parts: Sequence[str], reason: str) -> None:
    for name in parts:
        if name.endswith("attention_output"):
            found.refuse([name.replace("attention_output", "head_contribution")], reason)


def _note_heads(found: Findings, parts: Sequence[str], chosen: Sequence[_Form]) -> None:
    """Note what each head adds, where only a number stands between the output projection and the residual stream."""
    for name, form in zip(parts, chosen, strict=True):
        if not name.endswith("attention_output"):
            continue
        z, slot = found.slots[name.replace("_output", "_value_output")], found.slots[name]
        target = name.replace("attention_output", "head_contribution")
        if z.heads is None:
            found.refuse([target], "the heads are mixed before the output projection")
        elif not same_values(form.value, found.value(name)) or z.module is not slot.module:
            found.refuse(
                [target], f"what a head adds has no share of its own: {form.call.path} works on the heads' sum"
            )
        else:
            heads = torch.arange(len(z.heads) * found.width).view(len(z.heads), found.width)
            how = "the output projection's share of each head; its bias is no head's"
            found.note_via(target, _call_at(found, name), "head_contribution", how, heads=heads, width=heads.numel())
            found.slots[target] = replace(
                found.slots[target], call=slot.call, leaf=z.leaf, scale=form.scale, around=slot.around
            )
