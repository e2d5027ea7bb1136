"""A circuit run exactly, in one forward pass: every receiver reads a residual stream of its own.

A receiver's input is that of the run, plus for each edge that is not in the circuit the difference (other value - value
of the run) of its sender. Every head's projection is applied to its own stream, which costs what the one projection
costs. Untouched receivers keep what the model gives, so the full circuit is the model, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ...engine import Inputs
from ...engine.hooks import Tap
from ...models import find_slot
from ...sites import Site
from .._norms import FrozenNorm
from .._taped import Tape, record, tapped_pass
from .expert_streams import ExpertStreams
from .shared_buffer import SharedBuffer
from .wiring import Port, StreamReader, StreamWriter, Wiring

_TOGETHER = 8
"""Parts of blocks, one after the other, for which what was written before the first is read from memory once."""
Shares = Mapping[int, Tensor]
"""By number of the first sender of a part what its senders add: of heads `(heads, ...)`, broadcastable to
`(senders, examples, tokens, width)`."""


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """What a circuit needs of a run.

    Args:
        tape: what was written, and where and how it was read.
        experts: by layer what each expert adds, `(experts, tokens, width)`.
    """

    tape: Tape
    experts: Mapping[int, Tensor]

    @property
    def values(self) -> Mapping[Site, Tensor]:
        """By site what stood there."""
        return self.tape.values


def record_run(model: nn.Module, wiring: Wiring, inputs: Inputs) -> RecordedRun:
    """Run a model and return what a circuit needs of a run.

    Args:
        model: the user's.
        wiring: of it.
        inputs: of the model.
    """
    sites = [site for one in wiring.writings for site in _written(one)]
    sites += [site for one in wiring.readings for site in (one.stream, *_sites(one))]
    called = ExpertStreams([one for one in wiring.readings if one.experts is not None])
    slots = {one.stream: one.slot for one in wiring.readings}
    tape = record(model, inputs, list(dict.fromkeys(sites)), graph=False, within=called.open, slots=slots)
    return RecordedRun(tape, called.every_share())


def _sites(one: StreamReader) -> list[Site]:
    """Return where receivers have vectors to themselves."""
    return list(dict.fromkeys(port.site for port in one.ports if port.site is not None))


def _written(one: StreamWriter) -> list[Site]:
    """Return what has to be seen to tell what senders add."""
    if one.z is None:
        return [one.added]
    return [one.z] if one.given is None else [one.z, one.given, one.added]


@torch.no_grad()
def shares_in(wiring: Wiring, run: RecordedRun) -> dict[int, Tensor]:
    """Return what each sender adds in a run, `(senders, examples, tokens, width)`, by number of a part's first one."""
    return {one.senders.start: _shares(one, run) for one in wiring.writings}


def _shares(one: StreamWriter, run: RecordedRun) -> Tensor:
    values = run.values
    if one.experts is not None:
        return _with_shared(one, run.experts[one.experts.layer], values[one.added])
    if one.z is None:
        return values[one.added].unsqueeze(0)
    made = _projected(one, values[one.z])
    return made if one.given is None else _behind_norm(one, made, values[one.given], values[one.added])


def _with_shared(one: StreamWriter, shares: Tensor, added: Tensor) -> Tensor:
    """Return what experts add, and what all else in their module does, where there is such."""
    shares = shares.unflatten(1, added.shape[:2])
    return shares if len(shares) == len(one.senders) else torch.cat([shares, (added - shares.sum(0))[None]])


def _projected(one: StreamWriter, z: Tensor) -> Tensor:
    """Return each head's share of an output projection, `(heads, examples, tokens, width)`."""
    assert one.weight is not None
    heads = z.flatten(0, 1).unflatten(-1, one.weight.shape[:2]).transpose(0, 1)
    return torch.bmm(heads, one.weight).unflatten(1, z.shape[:2])


def _behind_norm(one: StreamWriter, shares: Tensor, given: Tensor, added: Tensor) -> Tensor:
    """Return shares behind a norm: its scale is the one of the whole, so that they add up."""
    assert one.norm is not None
    frozen = FrozenNorm(one.norm, given.flatten(0, 1), added.flatten(0, 1))
    return torch.stack([frozen(share.flatten(0, 1)).view_as(share).to(share.dtype) for share in shares])


@dataclass(frozen=True, eq=False)
class Replacement:
    """What a receiver gets of a sender whose edge is not in the circuit.

    Args:
        run: another run, whose values these are; `None`: they are `shares`.
        shares: by number of a part's first sender.
    """

    run: RecordedRun | None = None
    shares: Shares | None = None


class CircuitPass:
    """One forward pass of some circuits, each a copy of all examples.

    Args:
        model: the user's.
        wiring: of it.
        replacement: of what is absent.
        absent: `(copies, receivers, senders)` how much of the difference a receiver gets: 1 where the edge is absent.
        graph: gradients by `absent` are going to be asked for; then there is one copy.
    """

    def __init__(
        self, model: nn.Module, wiring: Wiring, replacement: Replacement, absent: Tensor, *, graph: bool = False
    ) -> None:
        self._model, self._wiring, self._graph = model, wiring, graph
        self._other, self._copies = replacement, len(absent)
        absent, valid = absent * wiring.valid.to(absent), wiring.valid.to(absent)
        whole = replacement.run is not None and not graph
        self._turned = (absent.sum(-1) > valid.sum(-1) / 2) & whole  # what is nearer to the other run starts from it
        self._weights = torch.where(self._turned[..., None], absent - valid, absent)
        self._live = (absent != 0).any(-1).any(0) | graph
        self._gone = (absent == valid).all(-1).all(0) & self._live & wiring.sited & whole
        read = self._weights[:, self._live & ~self._gone]
        self._needed = (read != 0).any(0).any(0) | graph
        self._buffer: SharedBuffer | None = None
        self._ready: dict[int, Tensor] = {}
        self._z: dict[int, Tensor] = {}
        self._given: dict[int, Tensor] = {}
        self._experts = ExpertStreams([one for one in wiring.readings if one.experts is not None and self._apart(one)])
        self._ahead: dict[StreamReader, tuple[int, Tensor]] = {}

    def run(self, inputs: Inputs, columns: Sequence[int]) -> Tensor:
        """Return the logits of each copy's examples at one of their columns, `(copies * examples, vocab)`.

        Args:
            inputs: of the model, each copy's below the other's.
            columns: of each example.
        """
        within = self._experts.open
        output = tapped_pass(self._model, inputs, list(self._taps()), graph=self._graph, within=within)
        return Tape(self._model, inputs, output, {}, {}).logits(columns)

    def _taps(self) -> Iterator[Tap]:
        """Yield what is done on the way; at the same place senders come before receivers."""
        for one in self._wiring.writings:
            if self._is_needed(one):
                for site in _written(one):
                    yield Tap(find_slot(self._model, site), partial(self._write, one, site))
        for reading in self._wiring.readings:
            if not bool(self._live[list(reading.receivers)].any()):
                continue
            if self._mixing(reading) and reading.stream != reading.ports[0].site:
                yield Tap(reading.slot, partial(self._read, reading))
            if reading.experts is not None:
                yield Tap(find_slot(self._model, reading.experts.entry), partial(self._experts.note, reading.experts))
            for site in _sites(reading):
                yield Tap(find_slot(self._model, site), partial(self._replace, reading, site))

    def _is_needed(self, one: StreamWriter) -> bool:
        return bool(self._needed[one.senders.start : one.senders.stop].any())

    def _apart(self, one: StreamReader) -> bool:
        """Whether the experts of a block are called each by itself."""
        writes = [other for other in self._wiring.writings if other.experts is one.experts]
        return bool(self._live[list(one.receivers)].any()) or any(map(self._is_needed, writes))

    # --- senders ------------------------------------------------------------------------------------------------------

    def _write(self, one: StreamWriter, site: Site, tensor: Tensor, _call: int, _owned: bool) -> None:
        """Note what senders add here and would add otherwise, once all is seen that tells it."""
        first = one.senders.start
        if site == one.z:
            self._z[first] = tensor
        elif site == one.given:
            self._given[first] = tensor
        if site == _written(one)[-1]:
            self._put(one, tensor)

    def _put(self, one: StreamWriter, tensor: Tensor) -> None:
        first, run, shares = one.senders.start, self._other.run, self._other.shares
        if one.experts is not None:
            own = _with_shared(one, self._experts.shares(one.experts), tensor)
        elif one.z is None:
            own = tensor.unsqueeze(0)
        elif one.given is None and run is not None:  # linear: the difference is projected
            self._store(one, _projected(one, self._copied(run.values[one.z]) - self._z.pop(first)))
            return
        else:
            own = _projected(one, self._z.pop(first))
            if one.given is not None:
                own = _behind_norm(one, own, self._given.pop(first), tensor)
        if run is not None:
            other = torch.cat([_shares(one, run)] * self._copies, 1)
        else:
            assert shares is not None
            other = shares[first]
        self._store(one, other - own)

    def _copied(self, tensor: Tensor) -> Tensor:
        return tensor if self._copies == 1 else tensor.repeat(self._copies, *[1] * (tensor.ndim - 1))

    def _store(self, one: StreamWriter, difference: Tensor) -> None:
        """Put differences `(senders, copies * examples, tokens, width)` into the buffer."""
        values = difference.unflatten(1, (self._copies, -1)).transpose(0, 1)
        if self._buffer is None:
            count = self._wiring.valid.shape[1]
            dtype = torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else values.dtype
            rows = torch.empty(len(values), count, *values.shape[2:], dtype=dtype, device=values.device)
            self._buffer = SharedBuffer(rows, graph=self._graph)
            self._weights = self._weights.to(rows)
        self._buffer.put(one.senders.start, values.to(self._buffer.rows))

    # --- receivers ----------------------------------------------------------------------------------------------------

    def _read(self, reading: StreamReader, stream: Tensor, _call: int, _owned: bool) -> None:
        """Work out what the receivers of a part of a block make of their own streams."""
        numbers = self._mixing(reading)
        streams = self._streams(reading, numbers, stream)
        normed = reading.normed(streams.flatten(0, 2)).view_as(streams)
        ports = [reading.ports[n - reading.receivers.start] for n in numbers]
        if ports[0].rows is None:
            each = dict(zip(numbers, normed.transpose(0, 1).flatten(1, 2), strict=True))
            self._ready |= {n: each[n] for n in numbers if reading.ports[n - reading.receivers.start].site is not None}
            self._experts.take(reading, each)
            return
        places = range(len(numbers))
        for size in dict.fromkeys(_size(port) for port in ports):  # heads of one size are worked on together
            some = [n for n in places if _size(ports[n]) == size]
            made = self._through([ports[n] for n in some], normed if len(some) == len(ports) else normed[:, some])
            self._ready |= dict(zip((numbers[n] for n in some), made, strict=True))

    def _through(self, ports: Sequence[Port], normed: Tensor) -> Tensor:
        """Return `(ports, copies * examples, tokens, width)` of what the ports read, `(copies, ports, ...)`."""
        rows = torch.stack([port.rows for port in ports if port.rows is not None])
        given = normed.transpose(0, 1)
        made = torch.bmm(given.flatten(1, 3), rows.transpose(1, 2)).unflatten(1, given.shape[1:4]).flatten(1, 2)
        if all(port.bias is None for port in ports):  # of some models keys alone have none
            return made
        each = [rows.new_zeros(rows.shape[1]) if port.bias is None else port.bias for port in ports]
        return made + torch.stack(each)[:, None, None]

    def _streams(self, reading: StreamReader, numbers: list[int], stream: Tensor) -> Tensor:
        """Return the stream of each receiver, `(copies, receivers, examples, tokens, width)`."""
        here = stream.unflatten(0, (self._copies, -1)).unsqueeze(1)
        mixed = self._mix(reading, numbers)
        turned = self._turned[:, numbers]
        if bool(turned.any()):
            assert self._other.run is not None
            there = self._other.run.values[reading.stream][None, None]
            start = torch.where(turned[..., None, None, None].to(here.device), there, here)
        else:
            start = here
        return start.expand(-1, len(numbers), -1, -1, -1) if mixed is None else (start + mixed).to(stream.dtype)

    def _mix(self, reading: StreamReader, numbers: list[int]) -> Tensor | None:
        """Return what is added to the receivers' streams; `None` if no sender was heard.

        The buffer is large: what was written before a block is read once for all that reads in it and in the next few.
        """
        if self._buffer is None:
            return None
        stop = 1 + int(self._wiring.valid[numbers].any(0).nonzero()[-1])
        start, before = self._ahead.pop(reading, (0, None))
        if before is not None:
            return self._buffer.mix(self._weights[:, numbers, start:stop], start, stop, before)
        place = self._wiring.readings.index(reading)
        later = {one: self._mixing(one) for one in self._wiring.readings[place + 1 : place + _TOGETHER]}
        later = {one: some for one, some in later.items() if some}
        every = [*numbers, *(n for some in later.values() for n in some)]
        made = self._buffer.mix(self._weights[:, every, :stop], 0, stop)
        own, *parts = made.split([len(numbers), *map(len, later.values())], 1)
        self._ahead |= {one: (stop, part) for one, part in zip(later, parts, strict=True)}
        return own

    def _mixing(self, reading: StreamReader) -> list[int]:
        """Return the receivers that read a stream of their own."""
        return [n for n in reading.receivers if self._live[n] and not self._gone[n]]

    def _replace(self, reading: StreamReader, site: Site, tensor: Tensor, _call: int, owned: bool) -> Tensor:
        """Put what receivers make of their own streams in the place of what the model does."""
        if site == reading.stream == reading.ports[0].site and not self._gone[reading.receivers.start]:
            self._read(reading, tensor, 0, False)
        new = tensor if owned and not self._graph else tensor.clone()
        for number, port in zip(reading.receivers, reading.ports, strict=True):
            if port.site != site or not self._live[number]:
                continue
            columns = slice(None) if port.columns is None else port.columns
            if self._gone[number]:
                assert self._other.run is not None
                new[..., columns] = self._copied(self._other.run.values[site][..., columns])
            else:
                new[..., columns] = self._ready.pop(number).view_as(new[..., columns])
        return new


def _size(port: Port) -> int:
    return 0 if port.rows is None else len(port.rows)
