"""Plain task accuracy: what the model itself says of prompts, as a table with a row a prompt."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import nn
from transformers import PreTrainedTokenizerBase

from .._checked import checked
from .._errors import SpecError
from ..engine import Planner
from ..metrics import Metrics
from ..plan import Logits, Run
from ..table import Table
from ._cell_run import CellRun
from ._data import Prompt
from ._prompts import ReadAt, encode
from ._scoring import MetricsByName, metrics_for, name_of, tokens_of, values_of
from ._sweep import Clean, Measurement, Scorer, Sweep


@checked
def score(
    model: nn.Module,
    prompts: Prompt,
    metric: Metrics | None = None,
    *,
    metrics: Mapping[str, Metrics] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    columns: Mapping[str, str] | None = None,
    at: ReadAt = -1,
    store: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | bool | None = None,
    planner: Planner | None = None,
) -> Table:
    """Measure the unedited model on prompts, to see whether it can do the task at all.

    Args:
        model: as for `grid`; in eval mode meanwhile, and not changed.
        prompts: one text or several, token tensors, or data with columns, as for `grid`.
        metric: for all prompts or one for each: `[accuracy(answer) for answer in answers]`.
        metrics: several by name instead.
        tokenizer: needed where prompts are texts.
        columns: what the column `base` (the prompts) is called in the data, as for `grid`.
        at: where the metric is read, for all prompts or for each, as for `grid`.
        store: as for `grid`.
        progress: as for `grid`.
        planner: as for `execute`.

    Returns:
        A `Table` with a row for each prompt: `prompt` (its number), `text`, and `metric`, or a column of each name.
        `table.mean([], value="metric")` is the mean with its interval.

    Raises:
        SpecError: there is no metric, or not one for each prompt, or it compares with an edited run.
        PositionError: a prompt has no such position.

    Example:
        >>> import torch, transformers
        >>> from align_transformers import accuracy
        >>> _ = torch.manual_seed(0)
        >>> sizes = dict(vocab_size=50, n_embd=16, n_head=2, n_layer=2, n_positions=8)
        >>> model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
        >>> ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
        >>> right = model(ids).logits[:, -1].argmax(-1).tolist()
        >>> score(model, {"input_ids": ids}, [accuracy(right[0]), accuracy(0)]).columns["metric"]
        (1.0, 0.0)
    """
    encoded = encode(prompts, tokenizer, model, columns)
    found = metrics_for(metric, metrics, len(encoded), "prompts")
    if found is None:
        raise SpecError("score needs a metric, such as accuracy(answer), for all prompts or one for each")
    comparing = [one.name for of_each in found.values() for one in of_each if one.compares]
    if comparing:
        raise SpecError(f"metric {comparing[0]!r} compares an edited run with the clean one, and there is no edit here")
    read, ends = encoded.columns(at), encoded.columns(-1)
    cells = tuple({"prompt": number, "text": text} for number, text in enumerate(encoded.texts))
    sweep = Sweep(
        "score",
        {"prompts": encoded.inputs},
        (),
        (CellRun(Run("prompts", "prompts", (), tuple(range(len(encoded)))), cells),),
        {},
        _PromptScoring(encoded.texts, found),
        Logits(tokens_of(found, model), () if read == ends else (("prompts", read),)),
    )
    return sweep.table(model, store=store, progress=progress, planner=planner)


@dataclass(frozen=True, eq=False)
class _PromptScoring:
    """Makes the scorer.

    Args:
        prompts: their texts.
        metrics: by name the metric of each prompt.
    """

    prompts: tuple[str, ...]
    metrics: MetricsByName

    def __call__(self, clean: Clean) -> _PromptScorer:
        return _PromptScorer(self, clean.tokens)


@final
@dataclass(frozen=True, eq=False)
class _PromptScorer(Scorer):
    """Metrics of each prompt.

    Args:
        asked: what is to be told.
        tokens: that the columns are.
    """

    asked: _PromptScoring
    tokens: tuple[int, ...] | None

    def rows(self, found: Measurement) -> Iterator[dict[str, Any]]:
        """Yield the numbers of each prompt."""
        prompts = [cell["prompt"] for cell in found.cells]
        values = {
            name or "metric": values_of([one[n] for n in prompts], found.logits, found.logits, self.tokens)
            for name, one in self.asked.metrics.items()
        }
        for number in range(len(prompts)):
            yield {name: of_each[number] for name, of_each in values.items()}

    def meta(self) -> dict[str, Any]:
        """Return what was measured of which model."""
        names = {name: name_of(metrics) for name, metrics in self.asked.metrics.items()}
        told = {"metric": names[""]} if "" in names else {"metrics": names}
        return {"study": "score", "prompts": list(self.asked.prompts), **told}
