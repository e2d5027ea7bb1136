"""A first look at a model with one prompt or two: what it says, and which layers, heads and tokens make it say so.

Nothing is computed here: each section is one of the studies, called by the line that stands below its picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from .._bar import telling
from .._checked import checked
from .._errors import AlignError, SiteError, SpecError
from ..engine import Planner
from ..models import resolve
from ..report.scans import heads_that_matter, route_of
from ..table import Table
from ._scan_result import Scan
from .attention_patterns import attention_patterns
from .attribution import attribution
from .direct_attribution import direct_logit_attribution
from .grid import grid
from .lens import logit_lens

_LONG = 32
"""So many tokens at most are looked at one by one: the last ones."""


@checked
def scan(
    model: nn.Module,
    prompt: str,
    against: str | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase,
    answers: Sequence[int | str] | None = None,
    top: int = 8,
    verify: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] | bool | None = None,
    planner: Planner | None = None,
) -> Scan:
    """Look at what a language model does with a prompt, and at what makes the difference to another one.

    Of one prompt: the most probable next tokens, the logit lens, what each head and MLP adds to the answer's logit
    (all parts sum to it), and where the heads look that add most. Of two: also a swap of the residual stream at every
    layer and token, the heads and MLPs that carry the difference (estimated, and the strongest measured), and the
    tokens through which it travels. A section that the model has not what it takes for says so.

    Args:
        model: a language model; not changed.
        prompt: a text.
        against: another text, whose answer is another one; best as long in tokens. Where it is not, the last tokens of
            both are compared, as many as both have.
        tokenizer: of the model.
        answers: the answer to each prompt, each one token (id or text); default: what the model says.
        top: so many of the most probable next tokens are told.
        verify: so many swaps of heads, and so many of MLPs, are measured: half of them the strongest, others drawn.
        seed: of that drawing.
        progress: called with the sections done and those in all; `True` for a bar (rich).
        planner: as for `execute`.

    Returns:
        The tables of the sections, with `plot()`, `page(path)`, `save(path)`; a notebook shows all of it.

    Raises:
        SiteError: the model has no stack of blocks, or has two.
        SpecError: both prompts have the same answer, or an argument makes no sense.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
        >>> letters = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate("abcdefgh")}, merges=[]))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters)
        >>> sizes = dict(vocab_size=8, n_embd=16, n_head=2, n_layer=2, n_positions=8, bos_token_id=0, eos_token_id=0)
        >>> model = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
        >>> found = scan(model, "abc", "adc", tokenizer=tokenizer, answers=("e", "f"))
        >>> list(found.tables)
        ['says', 'lens', 'parts', 'swaps', 'route', 'carriers', 'attention']
        >>> print(found.code["swaps"])
        grid(model, "abc", "adc", tokenizer=tokenizer, answers=("e", "f"), top=5)
    """
    texts = [prompt] if against is None else [prompt, against]
    if top < 1:
        raise SpecError(f"top={top} is how many of the most probable tokens are told, from 1")
    if verify < 0:
        raise SpecError(f"verify={verify} is how many swaps are measured, from 0")
    if answers is not None and len(answers) != len(texts):
        raise SpecError(f"answers={answers!r} are {len(answers)}, of {len(texts)} prompts: give one for each")
    stacks = resolve(model).stacks
    if "" not in stacks:
        raise SiteError(
            f"a scan reads models with one stack of blocks; {type(model).__name__} has {sorted(stacks) or 'none'}: "
            "the studies take the stack in the component's name, logit_lens(..., components=['decoder.block_output'])"
        )
    work = _Work(model, tokenizer, planner, {}, {}, {})
    total = 4 if against is None else 7
    with telling("scan", progress) as tell:
        for number, (name, call) in enumerate(_sections(work, texts, answers, top, verify, seed), 1):
            work.do(name, call)
            tell(number, total)
    return Scan(work.tables, work.code, work.missing)


@dataclass(frozen=True)
class _StudyCall:
    """A study with its arguments: it can be called, and written down.

    Args:
        study: a public function.
        prompts: its arguments by place.
        options: its arguments by name, those that are not as by default.
    """

    study: Callable[..., Table]
    prompts: tuple[Any, ...]
    options: Mapping[str, Any]

    def __str__(self) -> str:
        options = "".join(f", {name}={_written(value)}" for name, value in self.options.items())
        return f"{self.study.__name__}(model, {', '.join(map(_written, self.prompts))}, tokenizer=tokenizer{options})"

    def table(self, work: _Work) -> Table:
        """Call it."""
        return self.study(work.model, *self.prompts, tokenizer=work.tokenizer, planner=work.planner, **self.options)


def _written(value: Any) -> str:
    """Return a value as Python, texts in double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        begin, end = "[]" if isinstance(value, list) else ("(", ",)" if len(value) == 1 else ")")
        return f"{begin}{', '.join(map(_written, value))}{end}"
    return repr(value)


@dataclass(frozen=True)
class _Concatenated:
    """Several calls, whose tables become one."""

    calls: tuple[_StudyCall, ...]

    def __str__(self) -> str:
        return f"Table.concat([{', '.join(map(str, self.calls))}])"

    def table(self, work: _Work) -> Table:
        """Call them."""
        return Table.concat([call.table(work) for call in self.calls])


@dataclass(frozen=True)
class _Route:
    """The strongest token of each layer, of swaps that are known already."""

    swaps: _StudyCall

    def __str__(self) -> str:
        return f"{self.swaps}.pivot().idxmax(axis=1)"

    def table(self, work: _Work) -> Table:
        """Choose them.

        Raises:
            SpecError: there are no swaps.
        """
        if "swaps" not in work.tables:
            raise SpecError(work.missing["swaps"])
        swaps = work.tables["swaps"]
        return Table.from_rows(route_of(swaps), meta=swaps.meta)


_SectionCall = _StudyCall | _Concatenated | _Route


@dataclass(frozen=True)
class _Work:
    """What is looked at, and what has been found: tables, lines and reasons by section."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    planner: Planner | None
    tables: dict[str, Table]
    code: dict[str, str]
    missing: dict[str, str]

    def do(self, name: str, call: _SectionCall) -> None:
        """Fill a section; the first one has to be had, of others it is told why they are not."""
        self.code[name] = str(call)
        try:
            self.tables[name] = call.table(self)
        except AlignError as error:
            if name == "says":
                raise
            self.missing[name] = str(error)


def _sections(
    work: _Work, texts: Sequence[str], answers: Sequence[int | str] | None, top: int, verify: int, seed: int
) -> Iterator[tuple[str, _SectionCall]]:
    """Yield the sections one by one: which heads are looked at is known when others have been done."""
    own: dict[str, Any] = {} if answers is None else {"answers": answers[0]}
    each: dict[str, Any] = {} if answers is None else {"answers": list(answers)}
    end: dict[str, Any] = {"layers": [-1], "positions": [-1], "top": top}
    yield "says", _StudyCall(logit_lens, (list(texts),), {**each, **end})
    says = work.tables["says"]
    _check_answers(says, answers)
    lengths = [len(tokens) for tokens in says.meta["tokens"]]
    late: dict[str, Any] = {} if lengths[0] <= _LONG else {"positions": list(range(-_LONG, 0))}
    yield "lens", _StudyCall(logit_lens, (texts[0],), {**own, **late})
    yield "parts", _StudyCall(direct_logit_attribution, (texts[0],), own)
    if len(texts) > 1:
        both: dict[str, Any] = {} if answers is None else {"answers": tuple(answers)}
        if len(set(lengths)) > 1 or max(lengths) > _LONG:
            both["last"] = min(*lengths, _LONG)
        yield from _comparison(texts, both, verify, seed)
    heads = heads_that_matter(work.tables)
    named = {key: sorted({head[n] for head in heads}) for n, key in enumerate(("layers", "heads")) if heads}
    yield "attention", _StudyCall(attention_patterns, (texts[0],), {**named, **late})


def _comparison(
    texts: Sequence[str], both: Mapping[str, Any], verify: int, seed: int
) -> Iterator[tuple[str, _SectionCall]]:
    """Yield the sections about what tells two prompts apart."""
    swaps = _StudyCall(grid, tuple(texts), {**both, "top": 5})
    yield "swaps", swaps
    yield "route", _Route(swaps)
    each = {**both, "positions": None, "verify": verify, **({"seed": seed} if seed else {})}
    heads = _StudyCall(attribution, tuple(texts), {"components": ["head_output"], "heads": "all", **each})
    yield (
        "carriers",
        _Concatenated((heads, _StudyCall(attribution, tuple(texts), {"components": ["mlp_output"], **each}))),
    )


def _check_answers(says: Table, answers: Sequence[int | str] | None) -> None:
    """Refuse two prompts with one answer, before the long work."""
    found = list(says.meta["answers"])
    if len(found) == 2 and found[0] == found[1]:
        whose = "the model says" if answers is None else "answers has"
        raise SpecError(
            f"{whose} {found[0]!r} after both prompts, so that nothing tells them apart: give other answers, one token "
            "for each prompt"
        )
