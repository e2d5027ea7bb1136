"""From a setting of a causal model to what a network gets, and from a label to what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..._errors import SpecError
from ...vocabulary import token_id

Encode = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True, eq=False)
class Encoding:
    """How settings and labels are written.

    Args:
        template: a text with `{name}` for the value of a variable, or a function of a setting that gives a text.
        encode: instead of it a function of a setting: numbers of tokens, a float vector `(width,)` or vectors
            `(length, width)`, or a dict of the model's arguments without their batch axis.
        label: a text with `{label}`, or a function of a label that gives a text or the number of a token or class;
            default: of texts `" {label}"` for words and `"{label}"` for numbers, else the number itself.
        classes: what the output may be, in the order of the network's classes; for labels that are no numbers.
    """

    template: str | Encode | None = None
    encode: Encode | None = None
    label: str | Callable[[Any], Any] | None = None
    classes: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        if (self.template is None) == (self.encode is None):
            raise SpecError(
                "say how an input is written: template='{a}+{b}=' for a text, or encode= a function of a setting that "
                "gives tokens or a vector; one of them"
            )

    def input(self, setting: Mapping[str, Any]) -> Any:
        """Return what the network gets of a setting.

        Raises:
            SpecError: the template names something else than inputs.
        """
        if self.encode is not None:
            return self.encode(setting)
        if callable(self.template):
            return self.template(setting)
        try:
            return str(self.template).format(**setting)
        except (KeyError, IndexError) as error:
            raise SpecError(f"template={self.template!r} names {error}; the inputs are {', '.join(setting)}") from None

    def labels(self, labels: Sequence[Any], tokenizer: PreTrainedTokenizerBase | None) -> Int64[Tensor, " n"]:
        """Return the token or class of each label.

        Raises:
            SpecError: a label is not one token, or no class.
        """
        known: dict[Any, int] = {}
        for label in labels:
            if label not in known:
                known[label] = self._number(label, tokenizer)
        return torch.tensor([known[label] for label in labels], dtype=torch.int64)

    def _number(self, label: Any, tokenizer: PreTrainedTokenizerBase | None) -> int:
        written = self.label(label) if callable(self.label) else self._written(label, tokenizer)
        if isinstance(written, str):
            return token_id(written, tokenizer)
        if isinstance(written, Integral | bool):
            return int(written)
        if self.classes is not None and label in self.classes:
            return list(self.classes).index(label)
        raise SpecError(f"the label {label!r} is no number of a token or class: say label= a function that gives one")

    def _written(self, label: Any, tokenizer: PreTrainedTokenizerBase | None) -> Any:
        if isinstance(self.label, str):
            return self.label.format(label=label)
        if self.template is not None and tokenizer is not None:
            return f" {label}" if isinstance(label, str) else f"{label}"
        if hasattr(label, "item"):
            label = label.item()
        return label
