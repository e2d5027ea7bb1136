"""Generation under a plan: transformers' own `generate`, with a clock that tells edits where in the text they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .._errors import PlanError
from .apply import Work
from .bind import Bound
from .hooks import before_forward
from .inputs import Inputs, batch_size, token_axis
from .run import Outcome, execute
from .window import Window

_TOKENS = ("decoder_input_ids", "input_ids", "inputs_embeds")


def generate(bound: Bound, options: Mapping[str, Any]) -> Outcome:
    """Carry out a bound plan whose last run is a generation; the runs that it reads are single forward passes.

    Args:
        bound: from `bind`; the last run's input is the prompt.
        options: keyword arguments of the model's own `generate`.

    Returns:
        As `execute`; the last run's output is what `generate` returned.

    Raises:
        PlanError: the model cannot generate, the prompt has no tokens, or several outputs are wanted.
        NeverFiredError: an edit was never reached, for example a step past the end of the text.
    """
    _checked(bound.model, bound.inputs[bound.passes[-1].runs[0].input])
    wanted = [run.name for one in bound.passes if one.wanted for run in one.runs]
    if len(wanted) != 1:
        raise PlanError(f"one run can be generated from, but the plan wants the outputs of {wanted}")

    def last(work: Work, inputs: Inputs, restart: Callable[[], None]) -> Any:
        with before_forward(bound.model, _clock(work, inputs, restart)):
            return generate_plain(bound.model, inputs, options)

    return execute(bound, last)


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


def _clock(work: Work, inputs: Inputs, restart: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    """Return what to do before each forward pass: work out which columns it is about."""
    prompt = token_axis(inputs)
    batch = batch_size(inputs)
    done = 0  # columns that a pass has worked on

    def tick(kwargs: dict[str, Any]) -> None:
        nonlocal done
        tokens = next((kwargs[name] for name in _TOKENS if isinstance(kwargs.get(name), Tensor)), None)
        if tokens is None:
            raise PlanError(f"{type(work.bound.model).__name__}.generate() calls the model without {_TOKENS}")
        rows, length = int(tokens.shape[0]), int(tokens.shape[1])
        columns = work.window.prompt
        if columns is None:
            columns = length if prompt is None or "decoder_input_ids" in kwargs else int(prompt.shape[1])
        cache = kwargs.get("past_key_values")
        # Without a cache from column 0 again; unless it is short, as in models that carry a recurrent state.
        again = 0 if length > done else done
        start = again if cache is None else int(cache.get_seq_length())
        work.window = Window(start, length, done, columns, rows // batch)
        done = max(done, start + length)
        restart()

    return tick
