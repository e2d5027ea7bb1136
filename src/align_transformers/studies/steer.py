"""Steering: a direction is added to the residual stream while the model goes on with a prompt, dose by dose.

Turner et al. 2023, arXiv:2308.10248; Rimsky et al. 2023, arXiv:2312.06681.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .._bar import HowFar, telling
from .._checked import checked
from .._errors import SpecError
from ..engine import Planner
from ..interventions import Intervention
from ..metrics import Metric, Metrics
from ..sites import Site
from ..table import Table
from ..table.values import mean_of
from ._data import Prompt
from ._directions import MeanReader, fitted_directions, given_directions
from ._doses import DosedCell, Doses, next_token
from ._layers import sites_of
from ._made_with import made_with
from ._places import WhichPlaces, columns_of
from ._prompts import Prompts, Which, encode
from ._samples import Continuation, Sample, Steered
from ._scoring import MetricsByName, metrics_for, name_of

TextMetric = Annotated[
    Callable[[Sequence[str]], Sequence[float]], "A function from the continuations to one number each"
]
GivenDirection = Literal["mean", "pca", "probe"] | Tensor | Intervention | Mapping[int, Tensor | Intervention]


@checked
def steer(
    model: nn.Module,
    prompts: Prompt,
    metric: Metrics | TextMetric,
    *,
    layers: Which,
    direction: GivenDirection = "mean",
    positive: Prompt | None = None,
    negative: Prompt | None = None,
    read_at: WhichPlaces = -1,
    component: str = "block_output",
    doses: Sequence[float | int] = (-1.0, -0.5, 0.0, 0.5, 1.0),
    positions: WhichPlaces | None = "all",
    generated: bool = True,
    skip_first: bool = True,
    max_new_tokens: int = 20,
    temperature: float | int | None = None,
    control: bool = False,
    seed: int | None = None,
    batch_size: int = 64,
    tokenizer: PreTrainedTokenizerBase | None = None,
    columns: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | bool | None = None,
    planner: Planner | None = None,
) -> Table:
    """Add a direction at a layer, in several doses, and tell what it does to a metric and to the text that follows.

    With v the direction, |v| = 1, and n the mean norm of the prompts' activations h at the layer (but for their first
    tokens, whose states are far longer), a dose d makes h + d n v of h. Positive doses steer towards the positive
    prompts. Each layer is steered by itself.

    Args:
        model: a language model of transformers, in whatever mode; it is not changed.
        prompts: what is continued: one text or several, token tensors, or data with columns, as for `grid`.
        metric: one of the next token's logits at the end of the prompt (a `Metric`, or one for each prompt), or a
            function of the continuations. It should grow where positive doses lead.
        layers: numbers from 0, negative ones from the end, or `"all"`.
        direction: fitted to `positive` and `negative`: `mean`, the difference of their means; `pca`, the first
            principal direction of the pairs' differences, with the sign of their mean; `probe`, that of a logistic
            regression. Or a tensor `(width,)`, used as it is. Or an intervention: what it adds, or the direction of its
            subspace (as it is, or of the difference of means in it). Or one of these for each layer.
        positive: prompts that show what is steered towards.
        negative: prompts that show the contrary; for `pca` and the agreement of differences one to each positive one.
        read_at: which tokens of these are read, as `positions` names them; of several the mean.
        component: what is steered; of an encoder-decoder with the stack in front.
        doses: numbers, in units of n; 0 is added.
        positions: which tokens of the prompt are steered: numbers from 0 over the real ones, negative ones from the
            end, `"last"`, anchors, or `"all"`; for all prompts, or a list for each. `None` for none of them.
        generated: steer generated tokens, too. The first is told by the prompt's last state, so it counts on
            `positions`.
        skip_first: `"all"` leaves the first token of a prompt of several out, here and in `read_at`.
        max_new_tokens: of a continuation; 0: no text is generated.
        temperature: of sampling, with `seed`; `None`: the most probable token is taken. All doses of a prompt see the
            same draws.
        control: also steer along a random direction of the same length, another for each prompt, with `seed`.
        seed: of all that is random.
        batch_size: prompts, or continuations, in a pass. All doses of a prompt are generated side by side.
        tokenizer: needed where prompts are texts.
        columns: what the column `base` (the prompts) is called in data, where it is called otherwise. Further ones are
            the fields of anchors.
        progress: called with the continuations done and those in all; `True` for a bar (rich).
        planner: as for `execute`.

    Returns:
        A `Table`, one row a layer, dose and prompt: `text` (the continuation), `metric`, `effect` (less the metric at
        dose 0), `control_effect` (with `control`), `perplexity` (of the continuation under the unsteered model, the
        token that ends it included), `distinct_2` (share of different ones among its pairs of neighbouring tokens).
        `meta["curve"]` has for each layer and dose the means over prompts, with 95 % bootstrap intervals over these and
        `n`: `effect` (`low`, `high`), `wrong_way` (share of prompts that a dose moved against its sign), `perplexity`
        (exp of the mean log), `distinct_2`, `control_effect`. `meta["directions"]` has for each layer the direction,
        `norm` (n), `length` (of what was fitted, in units of n) and `agreement`: the mean cosine of the pairs'
        differences with each other, which tells how reliable the direction is (arXiv:2602.17881).

    Raises:
        SpecError: there is nothing to fit a direction to, nothing that the metric sees is steered, or another argument
            makes no sense.
        PositionError: a position or a layer does not exist.
        SiteError: the model has no such component.

    Example:
        >>> import transformers
        >>> from align_transformers import logit_difference
        >>> _ = torch.manual_seed(0)
        >>> sizes = dict(vocab_size=50, n_embd=16, n_head=2, n_layer=2, n_positions=32, eos_token_id=None)
        >>> model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
        >>> up, down, ids = torch.tensor([[1, 2], [3, 2]]), torch.tensor([[1, 9], [3, 9]]), torch.tensor([[5, 6, 7]])
        >>> table = steer(
        ...     model, {"input_ids": ids}, logit_difference(2, 9), layers=[1], positive={"input_ids": up},
        ...     negative={"input_ids": down}, doses=[-0.5, 0.5], max_new_tokens=4,
        ... )
        >>> table.columns["dose"], [point["n"] for point in table.meta["curve"]]
        ((-0.5, 0.0, 0.5), [1, 1, 1])
    """
    _check(max_new_tokens, batch_size, temperature, control, seed)
    amounts, encoded = _amounts(doses), encode(prompts, tokenizer, model, columns)
    sites = sites_of(model, Site(component, 0).component, layers)  # a Site refuses what has no layer
    rows = None if positions is None else columns_of(encoded, sites[0].stack, positions, but_first=skip_first)
    grows = generated and sites[0].stack != "encoder"
    metrics = metrics_for(metric, None, len(encoded), "prompts") if isinstance(metric, Metric | Sequence) else None
    writer = Steered(model, encoded, rows, grows, max_new_tokens, temperature, seed or 0, batch_size)
    _check_steered(writer, metrics is not None)
    sides = _contrary(positive, negative, tokenizer, model, columns)
    read = sides and [columns_of(side, sites[0].stack, read_at, but_first=skip_first) for side in sides]
    given = given_directions(direction, model, sites, sides and (len(sides[0]), len(sides[1])))
    reader = MeanReader(model, planner, batch_size)
    norms = reader.norms(encoded, sites)
    contrasts = reader.contrasts(sides, read, sites) if sides and read else {}
    steps = Doses(amounts, fitted_directions(given, norms, contrasts), len(encoded), seed if control else None)
    values = {} if metrics is None else next_token(model, encoded, rows or (), steps, metrics, planner, reader.passes)
    samples = _samples(writer, steps, controls=metrics is None, progress=progress) if max_new_tokens else {}
    values = values or _judged(metric, samples, tokenizer)
    table = list(_told(steps, values, samples, writer.perplexities(samples.values()), tokenizer))
    places = {"positions": _plain(positions), "read_at": sides and _plain(read_at), "skip_first": skip_first}
    meta = {
        **_said(encoded, sides, metric, metrics, direction),
        "curve": list(_curve(table, seed or 0)),
        "directions": [vector.facts() for vector in steps.vectors],
        "component": component,
        "doses": list(amounts),
        **places,
        "generated": grows,
        "control": control,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
        "passes": dict(reader.passes + writer.passes),
    }
    return Table.from_rows(table, meta={"study": "steer", **made_with(model), **meta})


# --- what is asked for ------------------------------------------------------------------------------------------------


def _check(
    max_new_tokens: int, batch_size: int, temperature: float | int | None, control: bool, seed: int | None
) -> None:
    """Refuse numbers that make no sense, and chance without a seed."""
    if max_new_tokens < 0 or batch_size < 1:
        raise SpecError(f"max_new_tokens is from 0 and batch_size from 1; found {max_new_tokens} and {batch_size}")
    if temperature is not None and not (temperature > 0 and math.isfinite(temperature)):
        raise SpecError(f"temperature is above 0, or None for the most probable token; found {temperature}")
    if seed is None and (control or temperature is not None):
        raise SpecError("a random direction (control) and sampling (temperature) are drawn with a seed: give seed=...")


def _check_steered(writer: Steered, scored: bool) -> None:
    """Refuse what steers nothing that would be seen."""
    if not scored and not writer.length:
        raise SpecError("a function of the continuations needs some: max_new_tokens is 0")
    if scored and writer.rows is None:
        raise SpecError(
            "the metric is of the logits at the end of the prompt, and positions=None steers none of its tokens: name "
            "some (positions=[-1]: the last), or give a function of the continuations"
        )
    if writer.rows is None and (not writer.generated or writer.length < 2):
        raise SpecError(
            "nothing is steered: positions=None names no token of the prompt, and of the generated ones all but the "
            f"last would be (generated={writer.generated}, max_new_tokens={writer.length})"
        )


def _amounts(doses: Sequence[float | int]) -> tuple[float, ...]:
    """Return the doses and 0, ascending, each once."""
    if not all(math.isfinite(dose) for dose in doses) or not any(doses):
        raise SpecError(f"doses are numbers, not all of them 0; found {list(doses)}")
    return tuple(sorted({0.0, *map(float, doses)}))


def _contrary(
    positive: Prompt | None,
    negative: Prompt | None,
    tokenizer: PreTrainedTokenizerBase | None,
    model: nn.Module,
    columns: Mapping[str, str] | None,
) -> tuple[Prompts, Prompts] | None:
    """Return contrastive prompts; `None` without such."""
    if positive is None and negative is None:
        return None
    if positive is None or negative is None:
        raise SpecError("positive and negative prompts go together: give both, or none with a direction of your own")
    return encode(positive, tokenizer, model, columns), encode(negative, tokenizer, model, columns)


def _plain(positions: WhichPlaces | None) -> Any:
    """Return positions as JSON has them; those that are no numbers or words in words of their own."""
    if positions is None or isinstance(positions, int | str):
        return positions
    listed = list(positions) if isinstance(positions, Sequence) else [positions]
    return listed if all(isinstance(one, int | str) for one in listed) else repr(positions)


def _said(
    prompts: Prompts,
    sides: tuple[Prompts, Prompts] | None,
    metric: Any,
    metrics: MetricsByName | None,
    direction: Any,
) -> dict[str, Any]:
    """Return what a table says of the prompts, the metric, and where the direction is from."""
    name = getattr(metric, "__name__", type(metric).__name__) if metrics is None else name_of(metrics[""])
    return {
        "prompts": list(prompts.texts),
        "tokens": [list(row) for row in prompts.tokens("").texts],
        "metric": name,
        "direction": direction if isinstance(direction, str) else "given",
        "positive": sides and list(sides[0].texts),
        "negative": sides and list(sides[1].texts),
    }


# --- the texts --------------------------------------------------------------------------------------------------------


def _samples(
    writer: Steered, doses: Doses, *, controls: bool, progress: HowFar | bool | None
) -> dict[DosedCell, Sample]:
    """Return the continuation of every cell; without a dose it is that of the first layer in all of them.

    Args:
        writer: generates.
        doses: the vectors.
        controls: continuations along random directions are wanted, too, if there are such.
        progress: as for `steer`.
    """
    kinds = (False, True) if controls and doses.controlled else (False,)
    steered = [(dose, control) for control in kinds for dose in doses.amounts if dose]
    found: dict[DosedCell, Sample] = {}
    total = doses.prompts * (1 + len(steered) * len(doses.vectors))
    with telling("steer", progress) as tell:
        for number, one in enumerate(doses.vectors):
            asked = [(0.0, False), *steered] if number == 0 else steered
            vectors = torch.stack(
                [
                    torch.stack([doses.added(one, dose, n, control) for dose, control in asked])
                    for n in range(doses.prompts)
                ]
            )
            for batch in writer.samples(one.site, vectors):
                for sample in batch:
                    dose, control = asked[sample.vector]
                    found[DosedCell(one.site.layer, dose, sample.prompt, control)] = sample
                tell(len(found), total)
    first = doses.vectors[0].site.layer
    for one in doses.vectors:
        for control in kinds:
            found |= {
                DosedCell(one.site.layer, 0.0, n, control): found[DosedCell(first, 0.0, n, False)]
                for n in range(doses.prompts)
            }
    return found


def _judged(
    metric: Any, samples: Mapping[DosedCell, Sample], tokenizer: PreTrainedTokenizerBase | None
) -> dict[DosedCell, float]:
    """Return what a function of the texts says of each."""
    given = list(metric([sample.text(tokenizer) for sample in samples.values()]))
    try:
        numbers = [float(value) for value in given]
    except (TypeError, ValueError) as error:
        raise SpecError(f"the metric gives one number for each of the texts; found {given!r:.80}") from error
    if len(numbers) != len(samples):
        raise SpecError(f"the metric was given {len(samples)} texts, and gave {len(numbers)} numbers")
    return dict(zip(samples, numbers, strict=True))


# --- the table --------------------------------------------------------------------------------------------------------


def _told(
    doses: Doses,
    values: Mapping[DosedCell, float],
    samples: Mapping[DosedCell, Sample],
    perplexities: Mapping[Continuation, float],
    tokenizer: PreTrainedTokenizerBase | None,
) -> Iterator[dict[str, Any]]:
    """Yield the rows."""
    for one in doses.vectors:
        for dose in doses.amounts:
            for prompt in range(doses.prompts):
                cell, plain = (DosedCell(one.site.layer, amount, prompt, False) for amount in (dose, 0.0))
                row: dict[str, Any] = {"layer": cell.layer, "dose": dose, "prompt": prompt}
                sample = samples.get(cell)
                row["text"] = "" if sample is None else sample.text(tokenizer)
                row["metric"], row["effect"] = values[cell], values[cell] - values[plain]
                if doses.controlled:
                    beside, at_zero = cell._replace(control=True), plain._replace(control=True)
                    row["control_effect"] = values[beside] - values[at_zero]
                row["perplexity"] = None if sample is None else perplexities.get((prompt, sample.tokens))
                row["distinct_2"] = None if sample is None else sample.distinct(2)
                yield row


def _curve(rows: Sequence[Mapping[str, Any]], seed: int) -> Iterator[dict[str, Any]]:
    """Yield for each layer and dose the means over prompts, with their intervals."""
    groups: dict[tuple[Any, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["layer"], row["dose"]), []).append(row)
    for (layer, dose), group in groups.items():
        each = {
            "effect": [row["effect"] for row in group],
            "wrong_way": [float(row["effect"] * dose < 0) for row in group],
            "perplexity": [math.log(row["perplexity"]) for row in group if row["perplexity"] is not None],
            "distinct_2": [row["distinct_2"] for row in group if row["distinct_2"] is not None],
        }
        if "control_effect" in group[0]:
            each["control_effect"] = [row["control_effect"] for row in group]
        point: dict[str, Any] = {"layer": layer, "dose": dose}
        for name, numbers in each.items():
            three: Sequence[float | None] = mean_of(numbers, 0.95, 2000, seed)
            if name == "perplexity":
                three = [None if number is None else math.exp(number) for number in three]
            ends = ("low", "high") if name == "effect" else (f"{name}_low", f"{name}_high")
            point |= dict(zip((name, *ends), three, strict=True))
        yield {**point, "n": len(group)}
