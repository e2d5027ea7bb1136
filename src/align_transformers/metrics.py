"""Metrics: what a row of logits is worth, as one number an example.

A metric sees the logits at the position that is read (as a rule the last real token) and gives one float32 number
for each example of the batch. The studies report its *effect*: its value after an edit minus its value on the clean
base. With `logit_difference(source_answer, base_answer)` the effect says how far the behaviour moved towards the
source's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ._checked import checked, checked_class
from ._errors import SpecError
from .vocabulary import token_id


@checked_class
@dataclass(frozen=True)
class Metric:
    """A named, frozen function from logits to one number an example.

    Args:
        name: what tables and figures call it.
        function: logits `(batch, vocab)` -> `(batch,)`. It gets float32 logits, whatever the model computes in.
        tokens: ids of the tokens whose logits it needs; then `function` gets the logits of these alone, `(batch,
            tokens)` in this order, and sweeps compute no others. `None`: it needs the whole vocabulary.
        compares: `function` gets the logits of the clean (unedited) run of the same examples as its second argument.

    Raises:
        SpecError: a token id is negative.

    Example:
        >>> largest = Metric("largest logit", lambda logits: logits.amax(dim=-1))
        >>> largest(torch.tensor([[1.0, 5.0, 2.0]]))
        tensor([5.])
        >>> second = Metric("logit of token 1", lambda logits: logits[:, 0], tokens=(1,))
        >>> second(torch.tensor([[1.0, 5.0, 2.0]]))
        tensor([5.])
    """

    name: str
    function: Callable[..., Tensor]
    tokens: tuple[int, ...] | None = None
    compares: bool = False

    def __post_init__(self) -> None:
        if self.tokens is not None:
            object.__setattr__(self, "tokens", tuple(self.tokens))
        for token in self.tokens or ():
            token_id(token, None)

    def __call__(
        self, logits: Float[Tensor, "batch vocab"], clean: Float[Tensor, " ..."] | None = None
    ) -> Float[Tensor, " batch"]:
        """Return the metric of each row of `logits`, float32 of shape `(batch,)`.

        Args:
            logits: of the whole vocabulary.
            clean: likewise, of the clean run; needed by metrics that compare.

        Raises:
            SpecError: `logits` is not `(batch, vocab)`, a token id lies outside the vocabulary, `clean` is missing, or
                `function` did not give one number an example.
        """
        return self.of(self._columns(logits), None if clean is None else self._columns(clean))

    def _columns(self, logits: Tensor) -> Tensor:
        if self.tokens is None or logits.ndim != 2:
            return logits
        _check_vocabulary(logits, *self.tokens)
        return logits[:, list(self.tokens)]

    def of(
        self, logits: Float[Tensor, "batch tokens"], clean: Float[Tensor, " ..."] | None = None
    ) -> Float[Tensor, " batch"]:
        """Return the metric of logits of `tokens` alone; of the whole vocabulary where `tokens` is `None`.

        Args:
            logits: a column for each of `tokens`, in their order.
            clean: likewise, of the clean run.

        Raises:
            SpecError: as for the call.
        """
        if logits.ndim != 2:
            raise SpecError(
                f"metric {self.name!r} wants logits of shape (batch, vocab), got {tuple(logits.shape)}; "
                "choose the position first, for instance logits[:, -1]"
            )
        if self.compares and clean is None:
            raise SpecError(f"metric {self.name!r} compares with the clean run: give its logits, too")
        if self.compares and clean is not None and clean.shape != logits.shape:
            raise SpecError(
                f"metric {self.name!r} compares logits of the same examples; found the shapes {tuple(logits.shape)} "
                f"and {tuple(clean.shape)} of the clean run"
            )
        given = [logits, clean] if self.compares and clean is not None else [logits]
        values = self.function(*(one.float() for one in given))
        if values.shape != logits.shape[:1]:
            raise SpecError(
                f"metric {self.name!r} must give one number an example, shape {tuple(logits.shape[:1])}; "
                f"its function gave {tuple(values.shape)}"
            )
        return values.float()


Metrics = Annotated[
    Metric | Sequence[Metric],
    "Of a function from logits (batch, vocab) to numbers (batch,) make one: Metric('a name', function)",
]
"""One metric for all, or one for each."""


@checked
def logit_difference(
    target: int | str, other: int | str, *, tokenizer: PreTrainedTokenizerBase | None = None
) -> Metric:
    """The logit of `target` minus the logit of `other`.

    For interchange, let `target` be the source's answer and `other` the base's: the metric then grows as the model
    comes to answer like the source.

    Args:
        target: the token whose logit counts positively: an id, or a text that is exactly one token.
        other: the token whose logit counts negatively, likewise.
        tokenizer: needed where a token is given as text.

    Returns:
        A `Metric`; equal arguments give equal metrics.

    Raises:
        SpecError: a text is not one token, needs a tokenizer, or both tokens are the same.

    Example:
        >>> metric = logit_difference(2, 0)
        >>> metric(torch.tensor([[1.0, 0.0, 4.0], [3.0, 0.0, 2.5]]))
        tensor([ 3.0000, -0.5000])
    """
    first, second = token_id(target, tokenizer), token_id(other, tokenizer)
    if first == second:
        raise SpecError(f"logit_difference of one token with itself ({target!r}) is always 0; give two tokens")
    return Metric(f"logit({_shown(target)}) - logit({_shown(other)})", _Difference(), (first, second))


@checked
def probability(token: int | str, *, tokenizer: PreTrainedTokenizerBase | None = None) -> Metric:
    """The probability of `token` under the softmax of the logits, between 0 and 1.

    Args:
        token: an id, or a text that is exactly one token.
        tokenizer: needed where the token is given as text.

    Returns:
        A `Metric`; equal arguments give equal metrics.

    Raises:
        SpecError: the text is not one token, or needs a tokenizer.

    Example:
        >>> probability(0)(torch.zeros(1, 4))
        tensor([0.2500])
    """
    return Metric(f"probability({_shown(token)})", _Probability(token_id(token, tokenizer)))


@checked
def accuracy(token: int | str, *, tokenizer: PreTrainedTokenizerBase | None = None) -> Metric:
    """1 where `token` is the most probable one, else 0: its mean over prompts is the accuracy, over swaps the IIA.

    Args:
        token: an id, or a text that is exactly one token: the answer.
        tokenizer: needed where the token is given as text.

    Returns:
        A `Metric`; equal arguments give equal metrics.

    Raises:
        SpecError: the text is not one token, or needs a tokenizer.

    Geiger et al. 2021, arXiv:2106.02997.

    Example:
        >>> accuracy(0)(torch.tensor([[1.0, 3.0, 2.0], [4.0, 1.0, 0.0]]))
        tensor([0., 1.])
    """
    return Metric(f"accuracy({_shown(token)})", _Accuracy(token_id(token, tokenizer)))


@checked
def rank(token: int | str, *, tokenizer: PreTrainedTokenizerBase | None = None) -> Metric:
    """How many tokens have a larger logit than `token`: 0 where it is the most probable one.

    Args:
        token: an id, or a text that is exactly one token.
        tokenizer: needed where the token is given as text.

    Returns:
        A `Metric`; equal arguments give equal metrics.

    Raises:
        SpecError: the text is not one token, or needs a tokenizer.

    Example:
        >>> rank(0)(torch.tensor([[1.0, 3.0, 2.0], [1.0, 1.0, 0.0]]))
        tensor([2., 0.])
    """
    return Metric(f"rank({_shown(token)})", _Rank(token_id(token, tokenizer)))


def kl_to_clean() -> Metric:
    """The Kullback-Leibler divergence, in nats, of the edited run's next-token distribution from the clean run's.

    0 where the edit changes nothing. It is KL(clean || edited) = sum of p_clean (log p_clean - log p_edited).

    Returns:
        A `Metric` that compares with the clean run; sweeps give it the clean logits.

    Example:
        >>> kl_to_clean()(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
        tensor([0.])
    """
    return Metric("KL(clean || edited)", _Divergence(), compares=True)


@dataclass(frozen=True)
class _Difference:
    def __call__(self, logits: Tensor) -> Tensor:
        return logits[:, 0] - logits[:, 1]


@dataclass(frozen=True)
class _Accuracy:
    token: int

    def __call__(self, logits: Tensor) -> Tensor:
        _check_vocabulary(logits, self.token)
        return logits.argmax(dim=-1) == self.token


@dataclass(frozen=True)
class _Rank:
    token: int

    def __call__(self, logits: Tensor) -> Tensor:
        _check_vocabulary(logits, self.token)
        return (logits > logits[:, self.token, None]).sum(dim=-1)


@dataclass(frozen=True)
class _Divergence:
    def __call__(self, logits: Tensor, clean: Tensor) -> Tensor:
        edited, unedited = logits.log_softmax(dim=-1), clean.log_softmax(dim=-1)
        return (unedited.exp() * (unedited - edited)).sum(dim=-1)


@dataclass(frozen=True)
class _Probability:
    token: int

    def __call__(self, logits: Tensor) -> Tensor:
        _check_vocabulary(logits, self.token)
        return torch.softmax(logits, dim=-1)[:, self.token]


def _check_vocabulary(logits: Tensor, *tokens: int) -> None:
    for token in tokens:
        if token >= logits.shape[-1]:
            raise SpecError(f"token id {token} is outside the vocabulary of {logits.shape[-1]} tokens")


def _shown(token: int | str) -> str:
    return repr(token) if isinstance(token, str) else str(token)
