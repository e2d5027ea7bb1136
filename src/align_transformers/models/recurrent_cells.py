"""The time steps of `nn.GRU` and `nn.LSTM`, which compute all of them in one kernel, as modules that can be named.

`rnn.step[0].output` is the hidden state of the first layer, one step at a time. The module that this names is a cell:
it stands in no model, has no weights of its own, and is called once a step where the fused module runs by its cells.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._errors import SiteError, near_misses
from ..sites import Site
from .detours import forwards
from .modules import submodule
from .slot import Slot

Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""From the input to the gates, from the hidden state to the gates, and the biases of both, as PyTorch lays them out."""

_STEP = re.compile(r"^(?:(?P<fused>.+)\.)?step\.(?P<layer>\d+)(?:\.(?P<part>\w+))?$")
_POINTS: Mapping[type[nn.Module], tuple[str, ...]] = {
    nn.GRU: ("reset_gate", "update_gate", "new_gate"),
    nn.LSTM: ("input_gate", "forget_gate", "cell_gate", "output_gate", "cell"),
}


class RecurrentCell(nn.Module):
    """One layer of a fused module, one step at a time. It has no weights: they are those of the fused module.

    Its input is the layer's input and its state, its output the new state, the hidden one first, each
    `(batch, width)`. Gates are modules: their input is what goes into the nonlinearity.

    Args:
        points: the names of its gates; `cell`, too, where there is a cell state.
    """

    def __init__(self, points: tuple[str, ...]) -> None:
        super().__init__()
        for name in points:
            gate = nn.Tanh() if name in ("new_gate", "cell_gate") else nn.Sigmoid()
            self.add_module(name, nn.Identity() if name == "cell" else gate)

    def forward(self, x: Tensor, state: tuple[Tensor, ...], weights: Weights) -> tuple[Tensor, ...]:
        """Return the next state.

        Args:
            x: `(batch, input)`.
            state: the hidden state, and the cell state of an LSTM, each `(batch, hidden)`.
            weights: those of this layer.
        """
        from_x, from_h = F.linear(x, weights[0], weights[2]), F.linear(state[0], weights[1], weights[3])
        gates = dict(self.named_children())
        if "reset_gate" in gates:
            reset_x, update_x, new_x = from_x.chunk(3, -1)
            reset_h, update_h, new_h = from_h.chunk(3, -1)
            reset, update = gates["reset_gate"](reset_x + reset_h), gates["update_gate"](update_x + update_h)
            new = gates["new_gate"](new_x + reset * new_h)
            return ((1 - update) * new + update * state[0],)
        into, forget, new, out = (from_x + from_h).chunk(4, -1)
        kept = gates["forget_gate"](forget) * state[1]
        cell = gates["cell"](kept + gates["input_gate"](into) * gates["cell_gate"](new))
        return gates["output_gate"](out) * cell.tanh(), cell


_cells: WeakKeyDictionary[nn.Module, nn.ModuleList] = WeakKeyDictionary()


def find_step(model: nn.Module, site: Site) -> Slot | None:
    """Return where the tensor is that a path names at the steps of a fused recurrent module; `None` for other sites.

    Args:
        model: the module that paths begin at.
        site: `rnn.step[0].output` is the hidden state of the first layer of the `nn.GRU` or `nn.LSTM` at `rnn`, one
            step at a time; `rnn.step[0].input` what that layer reads, `rnn.step[0].cell.output` an LSTM's cell state,
            `rnn.step[0].reset_gate.output` one of its gates.

    Raises:
        SiteError: the layer or the part does not exist, or the module cannot be run by its cells.

    >>> find_step(nn.Sequential(nn.GRU(3, 5)), Site("0.step[0].update_gate.output")).path
    '0.step.0.update_gate'
    """
    named = None if site.path is None else _STEP.match(site.path[0])
    fused = None if named is None else submodule(model, named["fused"] or "")
    if named is None or site.path is None or not isinstance(fused, nn.RNNBase):
        return None
    path, side = site.path
    cells, layer, part = cells_of(fused, named["fused"] or ""), int(named["layer"]), named["part"]
    if layer >= len(cells):
        raise SiteError(f"{site}: layer {layer} does not exist, {named['fused']!r} has {len(cells)}, from 0")
    module: nn.Module = cells[layer]
    if part:
        parts = dict(module.named_children())
        if part not in parts:
            raise SiteError(f"{site}: a step has no {part!r}; {near_misses(part, parts)}")
        module = parts[part]
    reads_x = side == "input" and not part
    width = fused.input_size if reads_x and layer == 0 else fused.hidden_size
    return Slot(module, path, side, site.call, width=width, fused=fused)


def cells_of(fused: nn.RNNBase, path: str = "") -> nn.ModuleList:
    """Return the cells of a fused module, one a layer; always the same ones.

    Args:
        fused: an `nn.GRU` or `nn.LSTM`.
        path: its dotted path, for the message.

    Raises:
        SiteError: it cannot be run by its cells.

    >>> rnn = nn.LSTM(3, 5, num_layers=2)
    >>> len(cells_of(rnn)), cells_of(rnn) is cells_of(rnn)
    (2, True)
    """
    kind = type(fused)
    points = _POINTS.get(kind)
    reason = None
    if points is None:
        reason = f"only {', '.join(known.__name__ for known in _POINTS)} can be run by their cells"
    elif fused.bidirectional:
        reason = "it is bidirectional: a call would not be a time step"
    elif fused.proj_size:
        reason = f"it projects its hidden state (proj_size={fused.proj_size})"
    if points is None or reason is not None:
        where = path or kind.__name__
        raise SiteError(f"{where!r} is a {kind.__name__}, whose steps cannot be addressed: {reason}")
    known = _cells.get(fused)
    if known is None:  # another thread may be as far: the first one's are used
        known = _cells.setdefault(fused, nn.ModuleList(RecurrentCell(points) for _ in range(fused.num_layers)))
    return known


@contextmanager
def by_cells(fused: nn.Module) -> Iterator[None]:
    """Let a fused module run cell by cell in this scope while the context is open.

    Args:
        fused: one whose steps a slot is at.
    """
    with forwards({fused: lambda _fused_forward: _unfused(fused, cells_of(fused))}):  # type: ignore[arg-type]
        yield


def _unfused(fused: nn.RNNBase, cells: nn.ModuleList) -> Callable[..., Any]:
    """Return a forward pass that gives what the fused one gives."""

    def forward(input: Any, hx: Any = None) -> Any:  # as PyTorch names them
        if not isinstance(input, Tensor) or input.ndim != 3:
            found = f"shape {tuple(input.shape)}" if isinstance(input, Tensor) else type(input).__name__
            raise SiteError(
                f"a {type(fused).__name__} is run by its cells on a batch of sequences, one tensor with three axes; "
                f"found {found}"
            )
        sequence = input.transpose(0, 1) if fused.batch_first else input
        ends = []
        for layer, cell in enumerate(cells):
            if layer:
                sequence = F.dropout(sequence, fused.dropout, fused.training)
            sequence, state = _run_layer(cell, sequence, _start(fused, hx, sequence, layer), _weights(fused, layer))
            ends.append(state)
        last = tuple(torch.stack(states) for states in zip(*ends, strict=True))
        output = sequence.transpose(0, 1) if fused.batch_first else sequence
        return output, last if isinstance(fused, nn.LSTM) else last[0]

    return forward


def _run_layer(
    cell: nn.Module, sequence: Tensor, state: tuple[Tensor, ...], weights: Weights
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the hidden states `(steps, batch, hidden)` of one layer, and its last state."""
    hidden = []
    for x in sequence:
        state = cell(x, state, weights)
        hidden.append(state[0])
    return torch.stack(hidden), state


def _start(fused: nn.RNNBase, hx: Any, sequence: Tensor, layer: int) -> tuple[Tensor, ...]:
    """Return the state that a layer starts from: what was handed in, or zeros."""
    count = 2 if isinstance(fused, nn.LSTM) else 1
    if hx is None:
        return (sequence.new_zeros(sequence.shape[1], fused.hidden_size),) * count
    return tuple(state[layer] for state in ((hx,) if count == 1 else hx))


def _weights(fused: nn.RNNBase, layer: int) -> Weights:
    """Return the weights and biases of a layer, input's and hidden state's, as they are now."""
    into, along = getattr(fused, f"weight_ih_l{layer}"), getattr(fused, f"weight_hh_l{layer}")
    if not fused.bias:
        return into, along, None, None
    return into, along, getattr(fused, f"bias_ih_l{layer}"), getattr(fused, f"bias_hh_l{layer}")
