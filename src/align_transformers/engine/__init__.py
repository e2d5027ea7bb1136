"""The engine: what a plan means. Bind it to a model, and run what a planner says, one forward pass after the other."""

from ..models.sequence import Inputs, batch_size, logits_stack, real_spans, token_axis
from .bind import Bound, bind
from .generate import generate, generate_plain
from .ledger import Effect, Passed
from .logits import logits_of
from .run import Collected, Outcome, execute
from .step import OutOfMemory, Planner, Step, one_by_one

__all__ = [
    "Bound",
    "Collected",
    "Effect",
    "Inputs",
    "OutOfMemory",
    "Outcome",
    "Passed",
    "Planner",
    "Step",
    "batch_size",
    "bind",
    "execute",
    "generate",
    "generate_plain",
    "logits_of",
    "logits_stack",
    "one_by_one",
    "real_spans",
    "token_axis",
]
