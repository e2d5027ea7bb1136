"""Networks in which nothing but one place feeds the output: a swap of all of that place gives the source's output.

The equalities of the tutorials for an MLP and a GRU, bit for bit where nothing is rotated.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from align_transformers import IntervenableModel, Intervention, VanillaIntervention
from align_transformers.interventions import LowRankRotatedSpaceIntervention, RotatedSpaceIntervention
from align_transformers.zoo import (
    GRUConfig,
    MLPConfig,
    create_gru_classifier,
    create_mlp_classifier,
    gru_path,
    mlp_path,
)

from .fact import Fact

WIDTH, BATCH, STEPS = 32, 10, 10
HALVES = [[0, WIDTH // 2], [WIDTH // 2, WIDTH]]
ROUNDING = 1e-5  # of float32, after a rotation and back


@cache
def _network(kind: str) -> tuple[Any, str, Tensor, Tensor]:
    """Return a random network, the place that alone feeds its output, a base and a source."""
    torch.manual_seed(0)
    if kind == "MLP":
        _, _, model = create_mlp_classifier(MLPConfig(h_dim=WIDTH, n_layer=1, num_classes=5))
        path, length = mlp_path("block_output"), 1
    else:
        _, _, model = create_gru_classifier(GRUConfig(h_dim=WIDTH, num_classes=5))
        path, length = gru_path(model, "cell_output"), STEPS
    return model, path, torch.randn(BATCH, length, WIDTH), torch.randn(BATCH, length, WIDTH)


def _swapped(kind: str, specs: list[dict[str, Any]], places: Any = None, subspaces: Any = None) -> Tensor:
    """Return the logits of the base after swaps at the place that feeds the output; by default those of the last step.

    Args:
        kind: `MLP` or `GRU`.
        specs: the interventions, without their component.
        places: where to read and where to write.
        subspaces: the parts, for each intervention and example.
    """
    model, path, base, source = _network(kind)
    unit = {"unit": "t", "max_number_of_units": 3} if kind == "GRU" else {}
    made = IntervenableModel([{"component": path, **unit, **spec} for spec in specs], model)
    last = base.shape[1] - 1
    places = {"sources->base": last if places is None else places}
    with torch.no_grad():
        _, output = made({"inputs_embeds": base}, {"inputs_embeds": source}, places, subspaces=subspaces)
    return output.logits


def _source(kind: str) -> Tensor:
    model, _, _, source = _network(kind)
    with torch.no_grad():
        return model(source).logits


def _same(one: Tensor, other: Tensor) -> float:
    """Return the share of examples whose outputs are the same, bit for bit."""
    return (one == other).all(-1).double().mean().item()


def _apart(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


def _halves(kind: str, parts: tuple[int, ...], intervention: Intervention) -> Tensor:
    """Return the logits after one swap a part; linked swaps are one intervention with one set of weights."""
    linked = {"intervention": intervention, "intervention_link_key": 0}
    return _swapped(kind, [linked] * len(parts), subspaces=[[[part]] * BATCH for part in parts])


def _facts(kind: str) -> list[Fact]:
    torch.manual_seed(1)
    full, swap = {"intervention": VanillaIntervention()}, VanillaIntervention(subspace_partition=HALVES)
    turned = {"intervention": RotatedSpaceIntervention(embed_dim=WIDTH)}
    das = LowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=WIDTH, subspace_partition=HALVES)
    half, halves = (0,), (0, 1)
    share, distance = f"{kind}, outputs equal to the source's:", f"{kind}, distance from the source's:"
    return [
        Fact(f"{share} full swap", lambda: _same(_swapped(kind, [full]), _source(kind)), 1.0, 1.0),
        Fact(f"{share} two linked halves", lambda: _same(_halves(kind, halves, swap), _source(kind)), 1.0, 1.0),
        Fact(f"{share} one half", lambda: _same(_halves(kind, half, swap), _source(kind)), 0.0, 0.0),
        Fact(f"{distance} full rotation", lambda: _apart(_swapped(kind, [turned]), _source(kind)), 0.0, ROUNDING),
        Fact(
            f"{distance} two rotated halves", lambda: _apart(_halves(kind, halves, das), _source(kind)), 0.0, ROUNDING
        ),
        Fact(f"{distance} one rotated half", lambda: _apart(_halves(kind, half, das), _source(kind)), 0.01, 10.0),
    ]


def _overridden() -> float:
    """Return how often swaps of steps 0, 2 and 4 into 0, 5 and 7 give what the last of them alone gives."""
    swap = {"intervention": VanillaIntervention()}
    return _same(_swapped("GRU", [swap], ([0, 2, 4], [0, 5, 7])), _swapped("GRU", [swap], ([4], [7])))


def _continued() -> float:
    """Return how often a swap of step 4 into 7 gives what the cell makes of that state by hand."""
    model, _, base, source = _network("GRU")
    with torch.no_grad():
        state = model.gru(source[:, :5]).hidden
        by_hand = model.score(model.gru(base[:, 8:], state).last_hidden_state[:, -1])
    return _same(_swapped("GRU", [{"intervention": VanillaIntervention()}], ([4], [7])), by_hand)


FACTS = [
    *_facts("MLP"),
    *_facts("GRU"),
    Fact("GRU, the later step overrides the earlier ones", _overridden, 1.0, 1.0),
    Fact("GRU, outputs equal to a run continued by hand", _continued, 1.0, 1.0),
]
