"""Small models, an example of every intervention, and what is compared after a round trip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align_transformers import IntervenableModel
from align_transformers.interventions import (
    AdditionIntervention,
    AutoencoderIntervention,
    BoundlessRotatedSpaceIntervention,
    CollectIntervention,
    DifferenceOfMeansIntervention,
    DireftIntervention,
    ErasureIntervention,
    Intervention,
    JumpReLUAutoencoderIntervention,
    LinearProbeIntervention,
    LoreftIntervention,
    LowRankRotatedSpaceIntervention,
    MeanIntervention,
    NoiseIntervention,
    PCARotatedSpaceIntervention,
    RotatedSpaceIntervention,
    SigmoidMaskIntervention,
    SigmoidMaskRotatedSpaceIntervention,
    SkipIntervention,
    StackedLowRankRotatedSpaceIntervention,
    SubspaceIntervention,
    SubtractionIntervention,
    TrainableIntervention,
    VanillaIntervention,
    ZeroIntervention,
)
from align_transformers.operations import Mean, Noise, Swap
from align_transformers.storage import Artifact, Contents, load, save
from align_transformers.subspaces import Dictionary, Mask, Rotation

WIDTH = 6
PARTS = [[0, 2], [2, 4]]


def mlp(width: int = WIDTH, seed: int = 0) -> nn.Module:
    """A model without a name or a configuration."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))


def intervene(interventions: Sequence[Any], model: nn.Module, **config: Any) -> IntervenableModel:
    """Interventions at the second layer's output, the first's, and so on round and round."""
    places = [f"{2 - 2 * (number % 2)}.output" for number in range(len(interventions))]
    representations = [
        {"component": place, "intervention": one} for place, one in zip(places, interventions, strict=True)
    ]
    return IntervenableModel({"representations": representations, **config}, model=model)


def contents(intervenable: IntervenableModel, **more: Any) -> Contents:
    return Contents(intervenable.config, list(intervenable.interventions.values()), intervenable.model, **more)


def round_trip(intervenable: IntervenableModel, folder: Path, **options: Any) -> tuple[IntervenableModel, Artifact]:
    save(contents(intervenable), folder)
    artifact = load(folder, model=intervenable.model, **options)
    return IntervenableModel(artifact.config, model=intervenable.model), artifact


def assert_same(one: Intervention, other: Intervention) -> None:
    """Same class, arguments, tensors to the bit, modes and flags."""
    assert type(one) is type(other)
    assert one is not other
    assert _plain(one.arguments()) == _plain(other.arguments())
    state, restored = one.state_dict(), other.state_dict()
    assert list(state) == list(restored)
    for name in state:
        assert state[name].dtype == restored[name].dtype, name
        assert torch.equal(state[name], restored[name]), name
    flags = [{name: p.requires_grad for name, p in module.named_parameters()} for module in (one, other)]
    assert flags[0] == flags[1]
    assert one.training == other.training


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def shaken(intervention: Intervention) -> Intervention:
    """Move every parameter away from where it begins."""
    with torch.no_grad():
        for parameter in intervention.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return intervention


def activations(rows: int = 40) -> tuple[Tensor, Tensor]:
    labels = torch.arange(rows) % 2
    return torch.randn(rows, WIDTH) + labels.unsqueeze(1) * torch.linspace(0, 2, WIDTH), labels


def examples() -> dict[str, list[Intervention]]:
    """Of every class one with what is usual and one with everything changed that its constructor takes."""
    torch.manual_seed(3)
    width = {"embed_dim": WIDTH}
    ones = {"source_representation": torch.linspace(-1, 1, WIDTH)}
    states, labels = activations()
    static = [
        [kind(), kind(**width, **ones, subspace_partition=[[0, 2], {3, 5}], interchange_dim=4)]
        for kind in (VanillaIntervention, AdditionIntervention, SubtractionIntervention, SkipIntervention)
    ]
    rotated = {"temperature_schedule": (3.0, 0.2), "temperature": 0.7, "sparsity": 0.3, "hard": True}
    dictionary = {**width, "latent_dim": 9}
    listed: list[list[Intervention]] = [
        *static,
        [ZeroIntervention(), ZeroIntervention(**width, subspace_partition=PARTS, interchange_dim=2)],
        [CollectIntervention(), CollectIntervention(**width, subspace_partition=PARTS)],
        [MeanIntervention(activations=states), MeanIntervention(**width, **ones, subspace_partition=PARTS)],
        [NoiseIntervention(), NoiseIntervention(noise_level=0.5, std=0.25, seed=2**40, **width)],
        [
            RotatedSpaceIntervention(**width),
            RotatedSpaceIntervention(**width, **ones, subspace_partition=PARTS, interchange_dim=3),
            RotatedSpaceIntervention(embed_dim=2 * WIDTH, keep_last_dim=False),
        ],
        [
            LowRankRotatedSpaceIntervention(**width, low_rank_dimension=2),
            LowRankRotatedSpaceIntervention(**width, **ones, low_rank_dimension=4, subspace_partition=PARTS),
        ],
        [StackedLowRankRotatedSpaceIntervention(**width, low_rank_dimension=2, members=3)],
        [BoundlessRotatedSpaceIntervention(**width), BoundlessRotatedSpaceIntervention(
            **width, **rotated, boundary_rate=3.0, subspace_partition=PARTS)],
        [SigmoidMaskRotatedSpaceIntervention(**width), SigmoidMaskRotatedSpaceIntervention(
            **width, **rotated, subspace_partition=PARTS)],
        [SigmoidMaskIntervention(**width), SigmoidMaskIntervention(**width, **rotated, subspace_partition=PARTS)],
        [PCARotatedSpaceIntervention.fit(states, 4), PCARotatedSpaceIntervention.fit(
            states, 5, standardise=False, subspace_partition=PARTS, **ones)],
        [AutoencoderIntervention(**dictionary), AutoencoderIntervention(
            **dictionary, operation="clamp", value=0.5, latents=[7, 2], include_error=False,
            subtract_decoder_bias=False)],
        [JumpReLUAutoencoderIntervention(**dictionary), JumpReLUAutoencoderIntervention(
            **width, low_rank_dimension=7, operation="add", value=2.0, subspace_partition=PARTS)],
        [LoreftIntervention(**width, low_rank_dimension=2), LoreftIntervention(
            **width, low_rank_dimension=4, subspace_partition=PARTS)],
        [DireftIntervention(**width, low_rank_dimension=2), DireftIntervention(
            **width, low_rank_dimension=4, subspace_partition=PARTS)],
        [DifferenceOfMeansIntervention.fit(states, labels), DifferenceOfMeansIntervention.fit(
            states, labels, operation="ablate", strength=-2.0, keep_mean=True)],
        [LinearProbeIntervention.fit(states, labels), LinearProbeIntervention.fit(
            states, labels, operation="add", strength=0.5)],
        [ErasureIntervention.fit(states, labels), ErasureIntervention.fit(states, labels, method="inlp")],
        [
            SubspaceIntervention(Swap()),
            SubspaceIntervention(Noise(), Mask(Rotation(WIDTH, 4), temperature=0.3), subspace_partition=PARTS),
            SubspaceIntervention(Mean(torch.arange(9.0)), Dictionary(WIDTH, 9, activation="gated"), coordinates=[5]),
        ],
    ]  # fmt: skip
    return {type(group[0]).__name__: [shaken(one) for one in group] for group in listed}


class Scale(TrainableIntervention):
    """A user's own class, with an argument of its own."""

    def __init__(self, *, embed_dim: int, power: float = 1.0, **kwargs: Any) -> None:
        super().__init__(embed_dim=embed_dim, **kwargs)
        self.power = power
        self.factor = nn.Parameter(torch.ones(embed_dim))
        self.register_buffer("calls", torch.tensor(3))

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Any = None) -> Tensor:
        return self.within(base, base * self.factor**self.power, subspaces)
