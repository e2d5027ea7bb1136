"""The engine: bind a plan to a model, schedule its passes, carry them out."""

from .bind import Bound, bind
from .capture import capture
from .generate import generate, generate_plain
from .inputs import Inputs, batch_size, logits_stack, real_spans, token_axis, without_cache
from .kept import Kept
from .ledger import Effect, Passed
from .memory import Memory, remembered
from .reading import logits_of
from .run import Collected, Outcome, execute
from .schedule import Pass, schedule
from .steps import find_place

__all__ = [
    "Bound",
    "Collected",
    "Effect",
    "Inputs",
    "Kept",
    "Memory",
    "Outcome",
    "Pass",
    "Passed",
    "batch_size",
    "bind",
    "capture",
    "execute",
    "find_place",
    "generate",
    "generate_plain",
    "logits_of",
    "logits_stack",
    "real_spans",
    "remembered",
    "schedule",
    "token_axis",
    "without_cache",
]
