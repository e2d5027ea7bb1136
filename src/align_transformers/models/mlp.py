"""The MLP of a block: found by dependence, an up projection that a down projection's input comes from; or experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .findings import Findings, common_ancestor, reached, same_values
from .probing import passes_around
from .trace import ModuleCall

NAMES = ("mlp_input", "mlp_activation", "mlp_output")


@dataclass(frozen=True, eq=False)
class Branch:
    """One way through the block that may be its MLP.

    Args:
        members: its linear layers, or the module that holds experts.
        down: the last linear layer; `None` for experts.
        experts: how experts are kept (`stacked` in one tensor, or a `list` of modules); empty for a plain MLP.
    """

    members: tuple[ModuleCall, ...]
    down: ModuleCall | None
    experts: str = ""

    @property
    def straight(self) -> bool:
        """Whether nothing stands between an up and the down projection: two matrices are one, with no neurons."""
        return self.down is not None and any(same_values(self.down.input, m.output) for m in self.members[:-1])

    def reads(self, inputs: Sequence[Tensor | None]) -> bool:
        """Whether one of its linear layers reads one of these tensors."""
        return any(same_values(member.input, seen) for member in self.members for seen in inputs)

    @property
    def width(self) -> float:
        """Number of neurons; experts count as any number."""
        return float("inf") if self.down is None or self.down.input is None else float(self.down.input.shape[-1])


def find_mlp(found: Findings, linears: Sequence[ModuleCall]) -> None:
    """Note the MLP components of a block, or why it has none that is certain.

    Args:
        found: the block; linear layers of its attention and mixers are taken already.
        linears: the linear layers called in it.
    """
    if found.flags["mixer"] == "none" and any(isinstance(c.module, nn.Conv2d) for c in found.trace.during(found.block)):
        found.flags["mlp"] = "unsure"
        found.refuse(NAMES, "a block of convolutions over pictures: no part of it is an MLP over tokens")
        return
    free = [call for call in linears if found.free(call)]
    experts = _expert_branches(found, free)
    inside = {call for branch in experts for call in free if any(call.inside(m) or call is m for m in branch.members)}
    branches = experts + _dense_branches(found, [call for call in free if call not in inside])
    branches = _without_per_layer(found, branches)
    read = [branch.members[0].input for branch in branches if branch.experts]
    wide = [
        branch for branch in branches if not branch.straight and (branch.width >= found.width or branch.reads(read))
    ]
    if wide:  # an adapter narrows or is linear, an MLP widens, or stands beside experts
        found.flags["adapters"] = [b.down.path for b in branches if b not in wide and b.down is not None]
        branches = wide
    found.flags["mlp"] = "unsure"
    if found.flags["mixer"] == "none":
        _doubt_mixer(found, [call for call in free if call not in inside], branches)
    if len(branches) == 2 and bool(branches[0].experts) and not branches[1].experts:
        _note_experts(found, branches.pop(0), [call for call in free if call in inside], "moe")
    if len(branches) > 1:
        ends = [(branch.down or branch.members[0]).path for branch in branches]
        found.refuse(NAMES, f"several MLP branches, so none is the MLP: {', '.join(ends)}")
    elif branches and branches[0].experts:
        found.flags["mlp"] = "experts"
        _note_experts(found, branches[0], [call for call in free if call in inside])
    elif branches and len(branches[0].members) > 3:
        ups = [call.path for call in branches[0].members[:-1]]
        found.refuse(
            NAMES, f"more than a gate and an up projection lead to {branches[0].members[-1].path}: {', '.join(ups)}"
        )
    elif branches:
        found.flags["mlp"] = "dense"
        _note_dense(found, branches[0])
    else:
        _note_by_elimination(found, free)


def _without_per_layer(found: Findings, branches: Sequence[Branch]) -> list[Branch]:
    """Note the MLP whose neurons are multiplied with what comes from before the blocks; return the others."""
    before = [call.cut for call in found.trace.calls if call.cut is not None and -1 < call.end < found.block.start]
    fed = [branch for branch in branches if branch.down is not None and any(reached(branch.down.input, before))]
    if len(fed) == 1 and len(branches) > 1:
        _note_dense(found, fed[0], "per_layer_mlp")
        return [branch for branch in branches if branch is not fed[0]]
    return list(branches)


def _doubt_mixer(found: Findings, free: Sequence[ModuleCall], branches: Sequence[Branch]) -> None:
    """Say that a mixer may have been overlooked where linear layers of a block without one belong to nothing known."""
    if not branches:
        return
    members = [call for branch in branches for call in branch.members]
    left = [c.path for c in free if not any(c is m or c.inside(m) or m.parent is c.parent for m in members)]
    if left:
        found.flags["mixer"] = "unsure"
        found.refuse(("mixer_input", "mixer_output"), f"linear layers belong to nothing known: {', '.join(left)}")


def _note_by_elimination(found: Findings, free: Sequence[ModuleCall]) -> None:
    """Note the only part of the block that has matrices and is not attention, if there is one."""
    parts = [c for c in found.trace.calls if c.parent is found.block and found.keeps_rows(c) and found.free(c)]
    parts = [call for call in parts if any(p.ndim > 1 for p in call.module.parameters())]
    if len(parts) == 1 and not any(parts[0] is call for call in free):
        found.flags["mlp"] = "other"
        found.note("mlp_input", parts[0], "input", "the only other part of the block that has matrices")
        found.note("mlp_output", parts[0], "output", "the only other part of the block that has matrices")
        found.refuse(["mlp_activation"], "no linear layer is seen whose input depends on another one")
    elif free or parts:
        found.refuse(NAMES, "no linear layer whose input depends on another one leads back to the block's width")
    else:
        found.flags["mlp"] = "none"
        found.refuse(NAMES, "this block has no MLP")


def _dense_branches(found: Findings, free: Sequence[ModuleCall]) -> list[Branch]:
    branches: list[Branch] = []
    for down in free:
        if down.output is not None and down.output.shape[-1] == found.width:
            # The residual stream depends on what earlier branches added to it; that is no up projection.
            earlier = [call for call in free if all(call is not branch.down for branch in branches)]
            leaves = [call.cut for call in earlier if call.cut is not None]
            ups = [call for call, yes in zip(earlier, reached(down.input, leaves), strict=True) if yes]
            if ups:
                branches.append(Branch((*ups, down), down))
    return branches


def _expert_branches(found: Findings, free: Sequence[ModuleCall]) -> list[Branch]:
    """Return the modules in which experts work, each with its router and whatever else it holds."""
    kinds: dict[ModuleCall, str] = {}
    parts: dict[ModuleCall, list[ModuleCall]] = {}
    for call in found.trace.during(found.block):
        if _is_stacked(call.module) and found.free(call):
            kinds[_child(found, call)] = "stacked"
            parts.setdefault(_child(found, call), []).append(call)
    for call in free:
        rows = 0 if call.input is None else call.input.numel() // call.input.shape[-1]
        child = _child(found, call)
        repeated = any(isinstance(m, nn.ModuleList | nn.ModuleDict) for m in child.module.modules())
        if repeated and rows != found.batch * found.length:
            kinds.setdefault(child, "list")
    branches = []
    for child, kind in kinds.items():
        home = common_ancestor([*parts.get(child, []), *(call for call in free if call.inside(child))], found.block)
        while home is not None and home is not child and not found.keeps_rows(home):
            home = home.parent
        branches.append(Branch((home or child,), None, kind))
    return branches


def _is_stacked(module: nn.Module) -> bool:
    """Whether a module keeps the weights of several experts in one three-dimensional tensor."""
    return _stacked_experts(module) > 0


def _stacked_experts(module: nn.Module) -> int:
    """Return for how many experts a module keeps weights in one three-dimensional tensor; 0 where it does not."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return 0
    stacked = (p.shape[0] for p in module.parameters(recurse=False) if p.ndim == 3 and min(p.shape) > 1)
    return int(next(stacked, 0))


def _child(found: Findings, call: ModuleCall) -> ModuleCall:
    while call.parent is not None and call.parent is not found.block:
        call = call.parent
    return call


def _note_experts(found: Findings, branch: Branch, inside: Sequence[ModuleCall], part: str = "mlp") -> None:
    home = branch.members[0]
    found.flags["experts"] = branch.experts
    found.note(f"{part}_input", home, "input", f"the module that holds the experts ({branch.experts})")
    found.note(f"{part}_output", home, "output", f"the module that holds the experts ({branch.experts})")
    if part == "mlp":
        found.refuse(["mlp_activation"], "the neurons are those of experts, row by row: see expert_activation")
    stacked = [c for c in found.trace.during(found.block) if _is_stacked(c.module) and (c is home or c.inside(home))]
    if len(stacked) == 1 and hasattr(stacked[0].module, "has_gate"):
        how = "the neurons inside transformers' experts interface"
        found.note_via("expert_activation", stacked[0], "expert_activation", how, around=found.block.module)
    else:
        found.refuse(["expert_activation"], "the experts do not go through transformers' experts interface")
    count = _expert_count(home.module)
    routers = [c for c in inside if c.output is not None and c.output.shape[-1] == count and c.number == 0]
    if len(routers) == 1 and routers[0].output_leaf != ():  # it chooses itself, so an edit of what it returns is late
        how = f"the first linear map in the module that chooses among {count} experts"
        found.note_via("router_output", routers[0], "router_output", how, width=count, around=found.block.module)
    elif len(routers) == 1:
        found.note(
            "router_output", routers[0], "output", f"the linear layer with one output for each of {count} experts"
        )
    else:
        found.refuse(["router_output"], f"{len(routers)} linear layers have one output for each of {count} experts")


def _expert_count(home: nn.Module) -> int:
    stacked = next((count for count in map(_stacked_experts, home.modules()) if count), 0)
    return stacked or max((len(m) for m in home.modules() if isinstance(m, nn.ModuleList | nn.ModuleDict)), default=0)


def _note_dense(found: Findings, branch: Branch, part: str = "mlp") -> None:
    down = branch.down
    assert down is not None
    ups = [call for call in branch.members if call is not down]
    found.note(f"{part}_activation", down, "input", "the down projection's input, which depends on the up projection")
    home = common_ancestor(branch.members, found.block)
    while home is not None and not (found.keeps_rows(home) and found.free(home)):
        home = None if home.parent is found.block else home.parent
    if home is not None:
        found.note(f"{part}_input", home, "input", "the module that holds the up and the down projection")
        if passes_around(home, [down.module]):
            found.note(
                f"{part}_output",
                down,
                "output",
                "the down projection (past it, more goes through the module around it)",
            )
            found.flags[f"{part}_output_is_down"] = True
            return
        found.note(f"{part}_output", home, "output", "the module that holds the up and the down projection")
        found.flags[f"{part}_output_is_down"] = same_values(home.output, down.output)
        return
    found.note(f"{part}_output", down, "output", "the down projection (there is no module around the MLP)")
    found.flags[f"{part}_output_is_down"] = True
    if len(ups) == 1:
        found.note(f"{part}_input", ups[0], "input", "the up projection's input (there is no module around the MLP)")
    else:
        found.refuse([f"{part}_input"], f"{len(ups)} linear layers read it and there is no module around the MLP")
