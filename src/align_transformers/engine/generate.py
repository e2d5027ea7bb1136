"""Generation under a plan: transformers' own `generate`, with a clock that tells edits where in the text they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from .._errors import PlanError
from ..models.sequence import Inputs, batch_size, token_axis
from .bind import Bound
from .edits import Record, Window
from .hooks import before_forward
from .run import Outcome, execute
from .step import Planner, one_by_one

_TOKENS = ("decoder_input_ids", "input_ids", "inputs_embeds")


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
        with before_forward(bound.model, _clock(record, bound.model, inputs, restart)):
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


def _clock(
    record: Record, model: nn.Module, inputs: Inputs, restart: Callable[[], None]
) -> Callable[[dict[str, Any]], None]:
    """Return what to do before each forward pass: work out which columns it is about."""
    prompt = token_axis(inputs)
    batch = batch_size(inputs)
    done = 0  # columns that a pass has worked on

    def tick(kwargs: dict[str, Any]) -> None:
        nonlocal done
        tokens = next((kwargs[name] for name in _TOKENS if isinstance(kwargs.get(name), Tensor)), None)
        if tokens is None:
            raise PlanError(f"{type(model).__name__}.generate() calls the model without {_TOKENS}")
        rows, length = int(tokens.shape[0]), int(tokens.shape[1])
        columns = record.window.prompt
        if columns is None:
            columns = length if prompt is None or "decoder_input_ids" in kwargs else int(prompt.shape[1])
        cache = kwargs.get("past_key_values")
        # Without a cache from column 0 again; unless it is short, as in models that carry a recurrent state.
        again = 0 if length > done else done
        start = again if cache is None else int(cache.get_seq_length())
        record.window = Window(start, length, done, columns, rows // batch)
        done = max(done, start + length)
        restart()

    return tick
