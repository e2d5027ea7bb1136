"""The error tree, and the phrase that names near misses."""

from __future__ import annotations

import pytest

from align_transformers import _errors
from align_transformers._errors import AlignError, near_misses

ERRORS = [value for value in vars(_errors).values() if isinstance(value, type) and issubclass(value, Exception)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_everything_stands_under_one_root_and_says_when(error):
    assert issubclass(error, AlignError)
    assert error.__doc__


@pytest.mark.parametrize("error", [_errors.SpecError, _errors.SiteError, _errors.PositionError, _errors.PlanError])
def test_wrong_arguments_are_value_errors(error):
    assert issubclass(error, ValueError)


def test_the_nearest_come_first_and_at_most_three():
    phrase = near_misses("mlp_outptu", ["block_output", "mlp_output", "key_output", "value_output", "query_output"])
    assert phrase.startswith("did you mean 'mlp_output'")
    assert phrase.count("'") == 6


def test_without_near_misses_all_are_listed_up_to_twenty():
    assert near_misses("xyz", ["pos", "h"]) == "known: h, pos"
    assert near_misses("xyz", [f"n{number:02}" for number in range(25)]).endswith("n19 and 5 more")
    assert near_misses("xyz", []) == "there are none"
    assert near_misses(5, ["pos"]) == "known: pos"
