"""`align`: which part of a network carries which variable of a causal model, with controls and intervals."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..._bar import telling
from ..._checked import checked
from ..._errors import SpecError
from ...causal import CausalModel, CounterfactualDataset
from ...causal.encoded_inputs import Encoder, Labeller
from ...causal.rendering import Template
from ...learning.losses import Measure
from ...learning.settings import Settings
from ...models import evaluating, find_slot
from ...sites import Site, in_block
from .._layers import sites_of
from .._places import WhichPlaces
from .._prompts import Which, indices
from .hypothesis import Hypothesis, variable_sets
from .methods import Dictionaries, Make, Methods, joint
from .own_places import VariablePlaces, hypotheses_at_own_places
from .result import AlignmentResult
from .search import CONTROLS, Control, Search, SearchOrder
from .task import Container, Task
from .task_making import Writing, make_task

_UNUSED = (
    "accumulate",
    "validate_every",
    "patience",
    "larger_is_better",
    "autocast",
    "gradient_checkpointing",
    "checkpoint_every",
)


@checked
def align(
    model: nn.Module,
    causal_model: CausalModel,
    data: CounterfactualDataset | Mapping[str, CounterfactualDataset],
    *,
    template: Template | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    encode: Encoder | None = None,
    label: Labeller | None = None,
    variables: Sequence[str | Sequence[str]] | None = None,
    sites: str | Site | Sequence[str | Site] = "block_output",
    layers: Which = "all",
    heads: Which | None = None,
    positions: WhichPlaces | None = None,
    hypotheses: VariablePlaces | None = None,
    methods: str | Sequence[str] | Mapping[str, Make | None] = ("swap", "das"),
    ranks: int | Sequence[int] = 1,
    dictionaries: Dictionaries | None = None,
    seeds: int = 1,
    loss: Measure | Literal["all", "answers"] = "all",
    batch_size: int = 32,
    search: SearchOrder = "all",
    controls: Sequence[Control] = CONTROLS,
    draws: int = 19,
    only_solved: bool = True,
    random_model: nn.Module | Sequence[nn.Module] | None = None,
    networks: int = 1,
    memory: int = 2**29,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    store: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | bool | None = None,
    **settings: Any,
) -> AlignmentResult:
    """Search for the parts of a network that carry variables of a causal model.

    A hypothesis says that a variable V is carried in one container (site, head, tokens), in a subspace of it. Its
    interchange intervention accuracy (IIA) is how often `argmax F(b | do(h := h + (h_s - h) P))` is `A(b | V := V(s))`,
    with F the network, A the causal model, b a base, s a source, h the activation and P the subspace's projector.

    Entities are shared out among three parts: subspaces are fitted on the first, one hypothesis for each set of
    variables is chosen on the second, and what is reported is measured on the third, whose entities were never seen.
    All fits are rows of the same passes.

    Args:
        model: gives logits; not changed.
        causal_model: what it is supposed to compute.
        data: pairs, shared out 60 : 20 : 20 by entity; or three data sets by name: `train`, `validation`, `test`.
        template: how an input is written: `"{a}+{b}="`, or a function from an input (by name) to its text.
        tokenizer: makes tokens of it.
        encode: instead of a template a function from an input to a vector `(d,)` or several `(n, d)`, to numbers of
            tokens `(n,)`, or to a dict of tensors by the model's names.
        label: how a value of the output is written, which has to be one token: `" {label}"`; or a function from a
            value to such a text, or to the number of a token or class. Default: words with a space before them, all
            else without; and without a tokenizer whole numbers as they are, others by their place among the values.
        variables: names, each alone, and tuples of names: together in one container, each in its own block of a
            rotation. Default: each alone, and all together where the data interchanges several at once.
        sites: names of components, or sites.
        layers: of components, numbers or `"all"`.
        heads: numbers or `"all"`: each head by itself. `None`: the whole vector.
        positions: places whose tokens are swapped together, as `{"c": last_token("{c}"), "last": -1}`. Default: the
            last token.
        hypotheses: instead of the grid: by variable where it is, of several variables each at a place of its own, all
            interchanged at once: `{"x": Site("block_output", 2), "y": {"layer": 5, "place": "last"}}`; or several of
            these. A row of a result says where, too: `{"x": found.best("x"), "y": found.best("y")}`.
        methods: names from `METHODS`, or by a name of yours a function from width and rank to an intervention.
        ranks: of subspaces, for each variable, for the methods that have one; of `sae` how many latents, at most.
        dictionaries: of the method `sae`, by site; or one for all.
        seeds: fits of each hypothesis, by seed.
        loss: cross-entropy over the whole vocabulary (`"all"`) or over the answers that the causal model can give
            (`"answers"`, cheaper); or `(logits, labels)` -> one number a row. IIA is over the whole vocabulary always.
        batch_size: pairs a step.
        search: `"all"`: every hypothesis is fitted; `"halving"`: of those of one set of variables at one place the
            better half goes on, from rung to rung; `"signatures"`: only containers whose effects are most like those
            of a set of variables are fitted, and a sample of the others.
        controls: any of `CONTROLS`.
        draws: of random subspaces.
        only_solved: leave out pairs of which the network itself answers base or a source wrongly; the share is told.
        random_model: the network of the control `reinitialised`, or several; default: copies with new weights.
        networks: how many such copies; what is told is the highest of them.
        memory: bytes that states and what is kept for gradients may take.
        resamples: of the bootstrap over entities.
        confidence: of its intervals.
        seed: of all that is drawn.
        store: a folder; the same call goes on where a killed one was.
        progress: called with the steps done and in all; `True` for a bar.
        **settings: of the fits, fields of `learning.Settings`: `epochs`, `lr` (default 0.01), `max_steps`, ...

    Returns:
        The table of all hypotheses with their controls, and the interventions that were found.

    Raises:
        SpecError: an argument makes no sense, or nothing is left to measure.
        UnknownNameError: there is no such method, variable or component.
        PositionError: an input has no such place.

    Geiger et al. 2021, arXiv:2106.02997; Geiger et al. 2023, arXiv:2303.02536.

    Example:
        >>> import torch
        >>> from align_transformers import CounterfactualDataset, align, causal_model
        >>> @causal_model
        ... def add(a: range(5), b: range(5), c: range(5)):
        ...     x = a + b
        ...     return x + c
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.Linear(4, 13))
        >>> sums = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
        >>> k = torch.arange(13.0)
        >>> with torch.no_grad():  # a network that adds a and b first
        ...     _ = net[0].weight.copy_(sums), net[1].bias.copy_(-(k**2))
        ...     _ = net[1].weight.copy_(2 * k[:, None] * torch.tensor([1.0, 1.0, 0.0, 0.0]))
        >>> data = CounterfactualDataset.sample(add, 1000, variables="x", seed=0)
        >>> def encode(one):
        ...     return [float(one["a"]), float(one["b"]), float(one["c"])]
        >>> found = align(net, add, data, encode=encode, sites="0.output", methods="das", lr=0.05,
        ...               max_steps=150, draws=9)
        >>> found.best()["iia"], found.best()["random"] < 0.3
        (1.0, True)
    """
    chosen = Methods.of(methods, ranks, dictionaries)
    numbers = {"seeds": seeds, "batch_size": batch_size, "draws": draws, "memory": memory, "networks": networks}
    _check(settings, controls, numbers, store)
    lesson = Settings.of({"lr": 1e-2, "seed": seed, **settings})
    parts = dict(data) if isinstance(data, Mapping) else data.split(seed=seed)
    _check_parts(parts, causal_model)
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        task = make_task(model, causal_model, parts, Writing(template, tokenizer, encode, label), positions)
        if hypotheses is None:
            containers = _containers(model, sites, layers, heads, task)
            sets = variable_sets(variables, task.parts["train"].sets, parts["train"].variables)
            asked = _hypotheses(sets, containers, chosen, seeds, seed)
        elif (variables, sites, layers, heads) == (None, "block_output", "all", None):
            asked = hypotheses_at_own_places(hypotheses, model, task, chosen, range(seed, seed + seeds))
        else:
            raise SpecError("hypotheses say where each variable is: leave out variables, sites, layers and heads")
        chosen.check(model, asked)
        work = Search(
            task, {name: of.facts for name, of in parts.items()}, asked, chosen, lesson, loss, batch_size, search,
            tuple(controls), draws, only_solved, random_model, networks, memory, resamples, confidence, seed, store,
        )  # fmt: skip
        with telling("align", progress) as tell:
            return work.result(tell)


def _check(settings: Mapping[str, Any], controls: Sequence[str], numbers: Mapping[str, int], store: Any) -> None:
    """Refuse what makes no sense before anything is run."""
    unused = [name for name in settings if name in _UNUSED]
    if unused:
        raise SpecError(f"{unused[0]} is no setting of a search: its fits have no validation, and a step is one pass")
    for name in controls:
        if name not in CONTROLS:
            raise SpecError(f"controls are some of {', '.join(CONTROLS)}; found {name!r}")
    if min(numbers.values()) < 1:
        raise SpecError(f"{', '.join(numbers)} are numbers from 1; found {list(numbers.values())}")
    if store is not None and Path(store).exists() and not Path(store).is_dir():
        raise SpecError(f"store={os.fspath(store)!r} is a file; a search is stored as a folder")


def _check_parts(parts: Mapping[str, CounterfactualDataset], causal_model: CausalModel) -> None:
    """Refuse data without one of the parts, of another causal model, or whose parts share entities."""
    wanted = ("train", "validation", "test")
    if sorted(parts) != sorted(wanted):
        raise SpecError(f"data has the parts {', '.join(wanted)}; found {', '.join(parts)}")
    for name, part in parts.items():
        if not len(part):
            raise SpecError(f"data: the part {name!r} has no pair")
        if part.causal_model is not causal_model:
            raise SpecError(f"data: the part {name!r} was made with another causal model than the one that is given")
    seen = {name: _entities(parts[name], parts["train"].entity) for name in wanted}
    for one, other in combinations(wanted, 2):
        if both := seen[one] & seen[other]:
            raise SpecError(
                f"data: {len(both)} entities are in {one!r} and in {other!r}, such as {min(both, key=repr)}: what is "
                "fitted or chosen on one would be measured on it again; share one data set out with split()"
            )


def _entities(part: CounterfactualDataset, names: Sequence[str]) -> set[tuple[Any, ...]]:
    """Return the entities of all inputs of a part, as the values of some input variables."""
    sides = [(part.base, None), *((side, part.where[name]) for name, side in part.sources.items())]
    found: set[tuple[Any, ...]] = set()
    for side, where in sides:
        columns = [side[name] if where is None else side[name][where] for name in names]
        found.update(zip(*(column.tolist() for column in columns), strict=True))
    return found


def _containers(model: nn.Module, sites: Any, layers: Which, heads: Which | None, task: Task) -> list[Container]:
    """Return the containers of a search."""
    listed = [sites] if isinstance(sites, str | Site) else list(sites)
    found = []
    for one in listed:
        at = Site(one) if isinstance(one, str) and not in_block(one) else one
        for site in [at] if isinstance(at, Site) else sites_of(model, at, layers):
            if heads is None:
                numbers: list[int | None] = [None]
            else:
                here = find_slot(model, site).heads
                if here is None:
                    raise SpecError(f"heads: {site} has none")
                numbers = list(indices(heads, len(here), "head", f"{site} has {len(here)}"))
            found += [Container(site, head, place) for head in numbers for place in task.places]
    return found


def _hypotheses(
    sets: Sequence[tuple[str, ...]], containers: Sequence[Container], methods: Methods, seeds: int, seed: int
) -> tuple[Hypothesis, ...]:
    found = []
    for variables in sets:
        for method in methods.asked:
            if len(variables) > 1 and not joint(method):
                continue
            for rank in methods.ranks_of(method):
                for number in range(seeds if method != "swap" else 1):
                    found += [Hypothesis(variables, container, method, rank, seed + number) for container in containers]
    if not found:
        raise SpecError(
            "no hypothesis is left: several variables at one container need the method 'das'; for each at a "
            "container of its own see hypotheses="
        )
    return tuple(found)
