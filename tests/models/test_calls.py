"""What a call of a model is given, whatever the version of transformers calls it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from align_transformers.models.calls import arguments_given, cache_given, cache_length, caches_returned
from align_transformers.models.texts import Texts

NAMES = ("past_key_values", "cache_params", "cache")


class Counting:
    """A cache of so many columns."""

    def __init__(self, columns: int) -> None:
        self.columns = columns

    def get_seq_length(self) -> int:
        return self.columns


class Recurrent:
    """A cache of a model without attention, as transformers has it: it refuses to count."""

    def get_seq_length(self) -> int:
        raise ValueError("`get_seq_length` can only be called on Attention layers")


def test_a_keyword_that_a_decorator_renames_is_given_under_its_own_name() -> None:
    def forward(input_ids: Any, cache: Any = None) -> None: ...

    given = arguments_given(forward, (1,), {"past_key_values": 2, "other": None})
    assert given == {"input_ids": 1, "past_key_values": 2}

    def open_ended(input_ids: Any, **kwargs: Any) -> None: ...

    assert arguments_given(open_ended, (), {"input_ids": 1, "kwargs": 3, "y": 4}) == {
        "input_ids": 1,
        "kwargs": 3,
        "y": 4,
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_is_found_under_each_of_its_names(name: str) -> None:
    cache = Counting(3)
    assert cache_given({"input_ids": None, name: cache}) is cache
    assert caches_returned({"logits": None, name: cache}) == [cache]
    assert caches_returned(SimpleNamespace()) == []
    texts, prompt = Texts(torch.ones(2, 3, dtype=torch.long)), torch.ones(2, 3, dtype=torch.long)
    texts.begin({"input_ids": prompt, name: Counting(0)})
    texts.end({name: cache})
    step = texts.begin({"input_ids": prompt[:, :1], name: cache})
    assert step is not None
    assert (step.start, step.fresh, step.length, step.prompt) == (3, 3, 1, 3)


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_that_does_not_count_goes_on_where_the_text_ended(name: str) -> None:
    cache, prompt = Recurrent(), torch.ones(1, 4, dtype=torch.long)
    assert (cache_length(cache), cache_length(cache, unknown=7), cache_length(Counting(5))) == (0, 7, 5)
    texts = Texts(prompt)
    starts = []
    for columns in (prompt, prompt[:, :1], prompt[:, :1]):
        call = texts.begin({"input_ids": columns, name: cache})
        assert call is not None
        starts.append(call.start)
        texts.end({name: cache})
    assert starts == [0, 4, 5]
