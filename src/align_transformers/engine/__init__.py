"""The engine: bind a plan to a model, schedule its passes, carry them out."""

from .bind import Bound, bind
from .generate import generate, generate_plain
from .inputs import Inputs, batch_size, real_spans, token_axis
from .ledger import Effect
from .run import Collected, Outcome, execute
from .schedule import Pass, schedule

__all__ = [
    "Bound",
    "Collected",
    "Effect",
    "Inputs",
    "Outcome",
    "Pass",
    "batch_size",
    "bind",
    "execute",
    "generate",
    "generate_plain",
    "real_spans",
    "schedule",
    "token_axis",
]
