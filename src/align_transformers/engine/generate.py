"""Generation under a plan: transformers' own `generate`, with a clock that tells edits where in the text they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from .._errors import PlanError
from ..models.sequence import Inputs, batch_size, token_axis
from ..models.texts import Texts, around_calls
from .bind import Bound
from .edits import Record, Window
from .run import Outcome, execute
from .step import Planner, one_by_one


def generate(bound: Bound, options: Mapping[str, Any], planner: Planner = one_by_one) -> Outcome:
    """Carry out a bound plan whose wanted run is a generation; the runs that it reads are single forward passes.

    Args:
        bound: from `bind`; the wanted run's input is the prompt.
        options: keyword arguments of the model's own `generate`.
        planner: as for `execute`; the generation itself is always run in full.

    Returns:
        As `execute`; the wanted run's output is what `generate` returned.

    Raises:
        PlanError: the model cannot generate, the prompt has no tokens, or several outputs are wanted.
        NeverFiredError: an edit was never reached, for example a step past the end of the text.
    """
    wanted = bound.plan.outputs
    if len(wanted) != 1:
        raise PlanError(f"one run can be generated from, but the plan wants the outputs of {list(wanted)}")
    _checked(bound.model, bound.inputs[bound.plan.run(wanted[0]).input])

    def forward(record: Record, inputs: Inputs, restart: Callable[[], None]) -> Any:
        with clocked(record, bound.model, inputs, restart):
            return generate_plain(bound.model, inputs, options)

    return execute(replace(bound, generates=True), planner, forward=forward)


def generate_plain(model: nn.Module, prompt: Inputs, options: Mapping[str, Any]) -> Any:
    """Return what the model's own `generate` gives, with nothing edited.

    Args:
        model: a model with `generate`.
        prompt: its inputs as a dictionary.
        options: further keyword arguments of `generate`.
    """
    return model.generate(**_checked(model, prompt), **options)  # type: ignore[operator]


def _checked(model: nn.Module, prompt: Inputs) -> Mapping[str, Any]:
    if not callable(getattr(model, "generate", None)):
        raise PlanError(f"{type(model).__name__} has no generate()")
    if not isinstance(prompt, Mapping):
        raise PlanError(f"generation needs a dictionary of inputs with input_ids; found {type(prompt).__name__}")
    return prompt


@contextmanager
def clocked(record: Record, model: nn.Module, prompt: Inputs, restart: Callable[[], None]) -> Iterator[None]:
    """Tell the edits of a generation, while the context is open, where in the text each forward pass is.

    Args:
        record: of the generation.
        model: that generates.
        prompt: its inputs.
        restart: called before every forward pass.

    Raises:
        PlanError: no forward pass was seen, so that no step was either.
    """
    texts, batch = Texts(token_axis(prompt)), batch_size(prompt)

    def begin(given: Mapping[str, Any]) -> None:
        of = texts.begin(given)
        # Rows of other examples, or no tokens: not known until an edit is reached there.
        repeats = 0 if of is None or of.rows % batch else of.rows // batch
        record.window = Window(prompt=0, repeats=0) if of is None else Window(
            of.start, of.length, of.fresh, of.prompt, repeats, of.added, of.kept, of.own
        )  # fmt: skip
        restart()

    with around_calls(model, begin, texts.end):
        yield
    if record.window.prompt is None:
        raise PlanError(
            f"{type(model).__name__}.generate() called neither its own forward nor that of a module with a generate of "
            "its own, so its steps are not known and no generated token could be edited"
        )
