"""Every operation and every subspace that the library exports: how it is made, and its formula, written out by hand.

A new one joins the contract of all pairs by a line in `OPERATIONS` or `SUBSPACES`. The formulas are in float64, and use
the tensors that a subspace exports and none of the library's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tests.contracts.cases import WIDTH, activations, boundary, draw, noise
from torch import Tensor, nn

from align_transformers import operations as ops
from align_transformers import subspaces as spaces
from align_transformers.interventions import SubspaceIntervention
from align_transformers.subspaces.concepts import difference_of_means

LATENTS = 7
MEMBERS = ((2,), (0,))
"""The member of a stack that each example chooses."""


# --- operations ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """An operation.

    Args:
        make: for a width and a number of coordinates.
        formula: the new coordinates of `(operation, base's, source's, vector)`.
        source: whether it needs a source.
        saved: whether it can be.
        identity: a source equal to the base changes nothing, bit for bit.
    """

    make: Callable[[int, int], ops.Operation]
    formula: Callable[[Any, Tensor, Tensor, Tensor], Tensor]
    source: bool = False
    saved: bool = True
    identity: bool = False


def drawn(one: Any, f: Tensor, g: Tensor, x: Tensor) -> Tensor:
    units = f[0].numel() // f.shape[-1]
    return f + (noise(units, f.shape[-1]) * 0.5).view(f.shape[1:])


def layer(width: int, size: int) -> nn.Linear:
    made = nn.Linear(width, size)
    made.weight.data, made.bias.data = draw(size, width, seed=21), draw(size, seed=22)
    return made


def learned(one: Any, x: Tensor) -> Tensor:
    return torch.einsum("kd,...d->...k", one.layer.weight.double(), x) + one.layer.bias.double()


OPERATIONS = {
    "swap": Made(lambda d, k: ops.Swap(), lambda one, f, g, x: g, source=True, identity=True),
    "add": Made(lambda d, k: ops.Add(), lambda one, f, g, x: f + g, source=True),
    "subtract": Made(lambda d, k: ops.Subtract(), lambda one, f, g, x: f - g, source=True),
    "zero": Made(lambda d, k: ops.Zero(), lambda one, f, g, x: 0 * f),
    "mean": Made(
        lambda d, k: ops.Mean(draw(k, seed=20)), lambda one, f, g, x: 0 * f + draw(f.shape[-1], seed=20).double()
    ),
    "noise": Made(lambda d, k: ops.Noise(2.0, 0.25, seed=7), drawn),
    "clamp": Made(lambda d, k: ops.Clamp(1.5), lambda one, f, g, x: 0 * f + 1.5),
    "shift": Made(lambda d, k: ops.Shift(-0.5), lambda one, f, g, x: f - 0.5),
    "scale": Made(lambda d, k: ops.Scale(-2.0), lambda one, f, g, x: -2 * f),
    "learned": Made(lambda d, k: ops.Learned(layer(d, k)), lambda one, f, g, x: learned(one, x)),
    "learned, added": Made(lambda d, k: ops.Learned(layer(d, k), adds=True), lambda one, f, g, x: f + learned(one, x)),
    "collect": Made(lambda d, k: ops.Collect(), lambda one, f, g, x: f),
    "function of one": Made(lambda d, k: ops.Function(lambda f: f * f), lambda one, f, g, x: f * f, saved=False),
    "function of two": Made(
        lambda d, k: ops.Function(lambda f, g: g - 3 * f), lambda one, f, g, x: g - 3 * f, saved=False
    ),
}


# --- subspaces -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """A subspace.

    Args:
        make: for a width.
        read: the coordinates of vectors, in float64.
        lift: what a change of coordinates of a vector changes in it: of `(subspace, change, vector, coordinates)`.
        gate: how much of each coordinate's change is made.
        choice: what the examples have to choose.
    """

    make: Callable[[int], spaces.Subspace]
    read: Callable[[Any, Tensor], Tensor]
    lift: Callable[[Any, Tensor, Tensor, Tensor], Tensor]
    gate: Callable[[Any], Tensor] | None = None
    choice: tuple[tuple[int, ...], ...] | None = None


def linear(columns: Callable[[Any], Tensor]) -> dict[str, Any]:
    """Orthonormal columns of a subspace."""
    return {
        "read": lambda one, x: torch.einsum("dk,...d->...k", columns(one).double(), x),
        "lift": lambda one, change, x, f: torch.einsum("dk,...k->...d", columns(one).double(), change),
    }


def stacked(rows: str, one: Any, value: Tensor) -> Tensor:
    return torch.stack(
        [torch.einsum(rows, one.weight[m].double(), value[n]) for n, (m,) in enumerate(MEMBERS[: len(value)])]
    )


def read_pca(one: Any, x: Tensor) -> Tensor:
    return ((x - one.mean.double()) / one.scale.double()) @ one.directions.double()


def lift_pca(one: Any, change: Tensor, x: Tensor, f: Tensor) -> Tensor:
    return (change @ one.directions.double().T) * one.scale.double()


def direction(one: Any) -> Tensor:
    v = one.vector.double()
    return (v / v.square().sum().sqrt()).unsqueeze(1)


def dictionary(width: int, activation: str, inputs: int | None = None, **options: Any) -> spaces.Dictionary:
    state = {
        "W_enc": draw(inputs or width, LATENTS, seed=7),
        "W_dec": draw(LATENTS, width, seed=9),
        "b_dec": draw(width, seed=10),
    }
    if activation == "gated":
        state |= {name: draw(LATENTS, seed=s) for name, s in (("b_gate", 8), ("b_mag", 12), ("r_mag", 13))}
    else:
        state["b_enc"] = draw(LATENTS, seed=8).abs()
    if activation == "jumprelu":
        state["threshold"] = draw(LATENTS, seed=12).abs()
    if options.pop("skip", False):
        state["W_skip"] = draw(width, inputs or width, seed=14)
    return spaces.Dictionary.from_state_dict(state, transcoder=inputs is not None, **options)


def normalised(one: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalised vectors, and what is multiplied and added to undo it."""
    if one.normalise == "layer_norm":
        centre = x.sum(-1, keepdim=True) / x.shape[-1]
        spread = ((x - centre).square().sum(-1, keepdim=True) / (x.shape[-1] - 1)).sqrt()
        return (x - centre) / (spread + 1e-5), spread, centre
    if one.normalise == "constant_norm_rescale":
        factor = x.shape[-1] ** 0.5 / x.square().sum(-1, keepdim=True).sqrt()
        return x * factor, 1 / factor, torch.zeros(1).double()
    return x, torch.ones(1).double(), torch.zeros(1).double()


def encoded(one: Any, x: Tensor) -> Tensor:
    """The latents, one by one."""
    sae = {name: value.double() for name, value in one.state_dict().items()}
    x = normalised(one, x)[0]
    x = x if one.inputs else x - sae["b_dec"]
    z = torch.stack([(x * sae["W_enc"][:, j]).sum(-1) for j in range(LATENTS)], -1)
    if one.activation == "gated":
        return (z + sae["b_gate"] > 0) * (z * torch.exp(sae["r_mag"]) + sae["b_mag"]).clamp_min(0)
    z = z + sae["b_enc"]
    if one.activation == "jumprelu":
        return z * (z > sae["threshold"].clamp_min(0))
    if one.activation == "topk":
        return z * (z >= z.sort(-1, descending=True).values[..., one.k - 1 : one.k]) * (z > 0)
    return z * (z > 0)


def decoded(one: Any, change: Tensor, x: Tensor, f: Tensor) -> Tensor:
    """What the decoder makes of the change, with the error kept or without."""
    _, scale, centre = normalised(one, x)
    if one.include_error:
        return change @ one.W_dec.double() * scale
    return ((f + change) @ one.W_dec.double() + one.b_dec.double()) * scale + centre - x


LATENT = {"read": encoded, "lift": decoded}


def over(space: Space, gate: Callable[[Any], Tensor], kind: Any, **options: Any) -> Space:
    """Return a space under a mask."""
    return Space(
        lambda width: kind(space.make(width), **options),
        lambda one, x: space.read(one.over, x),
        lambda one, *rest: space.lift(one.over, *rest),
        gate,
        space.choice,
    )


def soft(one: Any) -> Tensor:
    return 1 / (1 + torch.exp(-one.mask.double() / one.temperature))


class Bounded:
    """What the formula of the boundary asks for."""

    def __init__(self, one: Any) -> None:
        self.rotation, self.temperature, self.boundary = torch.zeros(one.size), one.temperature, one.boundary.double()


WHOLE = Space(lambda width: spaces.Whole(width), lambda one, x: x, lambda one, change, x, f: change)
ROTATION = Space(lambda width: spaces.Rotation(width, 3), **linear(lambda one: one.weight))
PCA = Space(
    lambda width: spaces.PrincipalComponents(spaces.principal_components(activations(width)[0], 3)), read_pca, lift_pca
)
DIRECTION = Space(
    lambda width: spaces.Direction(difference_of_means(activations(width)[0], activations(width)[1] >= 2)),
    **linear(direction),
)
STACK = Space(
    lambda width: spaces.Rotation(width, 2, stack=3),
    lambda one, x: stacked("dk,...d->...k", one, x),
    lambda one, change, x, f: stacked("dk,...k->...d", one, change),
    choice=MEMBERS,
)
JUMPS = Space(lambda width: dictionary(width, "jumprelu"), **LATENT)


def concept(width: int) -> spaces.Concept:
    x, labels = activations(width)
    return spaces.Concept(spaces.fit_eraser(x, labels))


SUBSPACES = {
    "whole": WHOLE,
    "rotation": ROTATION,
    "full rotation": Space(lambda width: spaces.Rotation(width, width), **linear(lambda one: one.weight)),
    "stack": STACK,
    "pca": PCA,
    "direction": DIRECTION,
    "concept": Space(
        concept,
        lambda one, x: (x - one.mean.double()) @ one.into.double(),
        lambda one, change, x, f: change @ one.back.double(),
    ),
    "dictionary": Space(lambda width: dictionary(width, "relu"), **LATENT),
    "dictionary, jumprelu": JUMPS,
    "dictionary, topk": Space(lambda width: dictionary(width, "topk", k=2), **LATENT),
    "dictionary, gated": Space(lambda width: dictionary(width, "gated"), **LATENT),
    "dictionary, layer norm": Space(lambda width: dictionary(width, "relu", normalise="layer_norm"), **LATENT),
    "dictionary, constant norm": Space(
        lambda width: dictionary(width, "topk", k=3, normalise="constant_norm_rescale"), **LATENT
    ),
    "dictionary, no error": Space(
        lambda width: dictionary(width, "gated", normalise="layer_norm", include_error=False), **LATENT
    ),
    "mask": over(WHOLE, soft, spaces.Mask, temperature=0.2),
    "mask over rotation": over(ROTATION, soft, spaces.Mask, temperature=0.2),
    "mask over direction": over(DIRECTION, soft, spaces.Mask),
    "mask over stack": over(STACK, soft, spaces.Mask),
    "mask over latents": over(JUMPS, soft, spaces.Mask),
    "hard mask over pca": over(PCA, lambda one: (one.mask > 0).double(), spaces.Mask, hard=True),
    "boundary": over(ROTATION, lambda one: boundary(Bounded(one)), spaces.Boundary, temperature=0.7),
    "boundary over pca": over(PCA, lambda one: boundary(Bounded(one)), spaces.Boundary),
    "hard boundary over pca": over(
        PCA, lambda one: (torch.arange(3) < 3 * one.boundary.clamp(1e-3, 1)).double(), spaces.Boundary, hard=True
    ),
}


@dataclass(frozen=True)
class Pair:
    """An operation in a subspace."""

    operation: Made
    space: Space

    def make(self, width: int = WIDTH, **more: Any) -> SubspaceIntervention:
        """Make one, always the same."""
        with torch.random.fork_rng():
            torch.manual_seed(11)
            subspace = self.space.make(width)
            for parameter in subspace.parameters():  # away from special values, such as masks of 0
                parameter.data.add_(0.1 * torch.randn_like(parameter))
            assert subspace.size is not None
            return SubspaceIntervention(self.operation.make(width, subspace.size), subspace, **more)

    def wanted(self, one: SubspaceIntervention, base: Tensor, source: Tensor, chosen: Any = None) -> Tensor:
        """Return what the formula says, with the chosen coordinates of each example; `None` for all."""
        subspace: Any = one.subspace
        x, f, g = base.double(), self.space.read(subspace, base.double()), self.space.read(subspace, source.double())
        if not one.writes:
            return f if chosen is None else torch.stack([f[n][..., sorted(these)] for n, these in enumerate(chosen)])
        change = self.operation.formula(one.operation, f, g, x) - f
        if self.space.gate is not None:
            change = change * self.space.gate(subspace)
        for example, these in enumerate(chosen or []):
            kept = torch.tensor([c in these for c in range(f.shape[-1])])
            change = torch.cat([change[:example], (change[example] * kept).unsqueeze(0), change[example + 1 :]])
        return x + self.space.lift(subspace, change, x, f)


PAIRS = {
    f"{doing} in {where}": Pair(operation, space)
    for doing, operation in OPERATIONS.items()
    for where, space in SUBSPACES.items()
}
