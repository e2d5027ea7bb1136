"""Which text a call of a model inside `generate` goes on with, and which of its columns the call is about.

Most calls are steps of the text that is generated. Others are not: guidance runs the model over a text of its own, a
logits processor may run it over anything. A text is told by its cache; where there is none, by the tokens that it began
with. A text that began with the prompt is edited as the generated one is. In others that is done at their generated
tokens and, where an edit names no positions and reads no source, in their prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .calls import arguments_given, cache_given, cache_length, caches_returned, tokens_given
from .scope import hook_after, hook_before

_STATES = ("state", "mems", "past_buckets_states")
"""What models without a cache carry from step to step."""


@dataclass(frozen=True)
class Columns:
    """What one call is about, in columns of its text.

    Args:
        start: its first column.
        length: how many it has.
        fresh: the first column that no earlier call has worked on.
        prompt: how many were there before the first generated token.
        rows: of the call.
        added: columns of the prompt beyond the tokens that were handed in.
        kept: of how many columns, the last, the logits are computed; 0: of all.
        own: the text began with the tokens that were handed in.
    """

    start: int
    length: int
    fresh: int
    prompt: int
    rows: int
    added: int
    kept: int
    own: bool


@dataclass(eq=False)
class _Text:
    """A text that the model has been called over.

    Args:
        began: `(rows, columns, ...)` the tokens of the first call.
        prompt: as `Columns` has it.
        added: likewise.
        own: likewise.
        outside: columns of its cache that are in front of the text, such as a learned prefix.
        done: columns that calls have worked on.
        caches: that belong to it.
    """

    began: Tensor
    prompt: int
    added: int = 0
    own: bool = True
    outside: int = 0
    done: int = 0
    caches: list[Any] = field(default_factory=list)


class Texts:
    """The texts of one call of `generate`.

    Args:
        prompt: `(batch, columns)` the tokens that were handed in, or their embeddings; `None` if a decoder begins anew.
    """

    def __init__(self, prompt: Tensor | None) -> None:
        self._prompt = prompt
        self._texts: list[_Text] = []
        self._now: _Text | None = None

    def begin(self, given: Mapping[str, Any]) -> Columns | None:
        """Return what a call of the model is about; `None` if it is given no tokens.

        Args:
            given: the arguments of the call by name.
        """
        tokens, cache = tokens_given(given), cache_given(given)
        if tokens is None:
            return None
        rows, length = int(tokens.shape[0]), int(tokens.shape[1])
        counted = cache_length(cache, unknown=None)
        held = counted or 0
        text = self._known(given, cache, tokens, held)
        if text is None:
            text = self._begun(tokens, held, "decoder_input_ids" in given)
            self._texts.append(text)
        self._now = text
        if cache is not None:
            self._keep(text, cache)
        # Without a cache from column 0 again; unless it is short, as in models that carry a recurrent state.
        again = 0 if length > text.done else text.done
        start = again if counted is None else counted - text.outside
        # What two calls over the same text see, as those of an assistant and its verification do, is fresh once.
        same = [one for one in self._texts if one.own] if text.own else [text]
        fresh, text.done = max(one.done for one in same), max(text.done, start + length)
        kept = given.get("logits_to_keep", 0)
        kept = kept if isinstance(kept, int) and kept < length else 0
        return Columns(start, length, fresh, text.prompt, rows, text.added, kept, text.own)

    def end(self, output: Any) -> None:
        """Note the caches that the call gave back: calls that are handed one of them go on with its text."""
        for cache in caches_returned(output):
            if self._now is not None:
                self._keep(self._now, cache)

    def _keep(self, text: _Text, cache: Any) -> None:
        if not any(cache is one for one in text.caches):
            text.caches.append(cache)

    def _known(self, given: Mapping[str, Any], cache: Any, tokens: Tensor, held: int) -> _Text | None:
        """Return the text that a call goes on with; `None` if it begins one."""
        for text in self._texts:
            if any(cache is one for one in text.caches):
                return text
        first = self._texts[0] if self._texts else None
        if cache is None or (held == 0 and hasattr(cache, "get_seq_length")):
            on = (text for text in self._texts if text.done + 1 == tokens.shape[1] and _begins(tokens, text.began))
            return next(on, first if any(given.get(name) is not None for name in _STATES) else None)
        # One that nobody has seen: a copy, or what a model makes anew at every step.
        on = (text for text in self._texts if text.done == held - text.outside)
        return next(on, None if held else first)

    def _begun(self, tokens: Tensor, held: int, decoder: bool) -> _Text:
        """Return a text that begins with a call.

        Args:
            tokens: of the call.
            held: columns of the cache that it is handed.
            decoder: they are those of a decoder.
        """
        end = held + int(tokens.shape[1])
        if self._texts:
            first = self._texts[0]
            if held or not _begins(tokens, first.began[:, : first.prompt]):
                return _Text(tokens, end, own=False)
            return _Text(tokens, first.prompt, first.added)
        if self._prompt is None or decoder:
            return _Text(tokens, end)
        size = int(self._prompt.shape[1])
        if held and end > size:
            return _Text(tokens, size, outside=min(held, end - size))
        if end <= size or _begins(tokens, self._prompt):  # in chunks; or with tokens that are only proposed
            return _Text(tokens, size)
        return _Text(tokens, end, added=end - size)


def _begins(tokens: Tensor, began: Tensor) -> bool:
    """Whether some tokens `(rows, columns, ...)` begin with others, of which each row may stand for several."""
    rows, size = tokens.shape[0], began.shape[1]
    if tokens.dtype != began.dtype or tokens.shape[1] < size or tokens.shape[2:] != began.shape[2:]:
        return False
    if not began.shape[0] or rows % began.shape[0]:
        return False
    return torch.equal(tokens[:, :size], began.to(tokens.device).repeat_interleave(rows // began.shape[0], 0))


@contextmanager
def around_calls(
    model: nn.Module, before: Callable[[dict[str, Any]], None], after: Callable[[Any], None]
) -> Iterator[None]:
    """Call `before` with the arguments, and `after` with the output, of each forward pass that `generate` runs.

    `generate` of a wrapper runs the model inside it, and not always by the wrapper's own forward: so each module that
    can generate is watched. A call in a call is a part of that.

    Args:
        model: that generates.
        before: called before each pass.
        after: called after it.
    """
    running: list[nn.Module] = []

    def enter(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if not running or running[0] is module:  # the same one: its last call ended by an error
            running[:] = [module]
            before(arguments_given(module.forward, args, kwargs))

    def leave(module: nn.Module, _args: Any, output: Any) -> None:
        if running and running[0] is module:
            running.clear()
            after(output)

    inside = [module for module in model.modules() if callable(getattr(type(module), "generate", None))]
    with ExitStack() as stack:
        for module in dict.fromkeys([model, *inside]):
            stack.callback(hook_before(module, enter, first=True))
            stack.callback(hook_after(module, leave))
        yield
