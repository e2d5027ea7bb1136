"""Every intervention that the library exports: how it is made, and its formula, written out by hand.

A new intervention joins the contracts by a line in `CASES`. The formulas use the tensors that an intervention exports
(its rotation, its mask), and none of the library's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from align_transformers import interventions as library
from align_transformers.interventions import Intervention

BATCH, UNITS, WIDTH, LATENTS = 2, 3, 5, 7

Formula = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
"""`formula(intervention, base, source, mask)`; the mask marks the chosen coordinates, `(batch, units, k)`."""


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def base_and_source(
    units: int = UNITS, dtype: torch.dtype = torch.float32, width: int = WIDTH
) -> tuple[Tensor, Tensor]:
    return draw(BATCH, units, width, seed=1, dtype=dtype), draw(BATCH, units, width, seed=2, dtype=dtype)


@dataclass(frozen=True)
class Case:
    """One intervention.

    Args:
        kind: its class.
        formula: what it computes.
        options: constructor arguments, apart from `embed_dim`.
        build: how to make one, where it is not just constructed.
        coordinates: how many there are to choose from, for vectors of a width.
        parts: whether its coordinates can be partitioned; else subspaces mean something else.
        exact: whether the formula's arithmetic is the library's, so that results are equal bit for bit.
        needs_source: it fails without one.
        identity_on_equal: a source equal to the base changes nothing, bit for bit.
        writes: it changes something.
        must_choose: what each example of a batch has to choose.
    """

    kind: type[Intervention]
    formula: Formula
    options: dict[str, Any] = field(default_factory=dict)
    build: Callable[..., Intervention] | None = None
    coordinates: Callable[[int], int] = lambda width: width
    parts: bool = True
    exact: bool = False
    needs_source: bool = False
    identity_on_equal: bool = False
    writes: bool = True
    must_choose: tuple[tuple[int, ...], ...] | None = None

    def make(self, width: int = WIDTH, **more: Any) -> Intervention:
        """Make one, always the same."""
        with torch.random.fork_rng():
            torch.manual_seed(11)
            made = self.build(width, **more) if self.build else self.kind(embed_dim=width, **self.options, **more)
            for parameter in made.parameters():  # away from special values, such as masks of 0
                parameter.data.add_(0.1 * torch.randn_like(parameter))
        return made

    def wanted(self, one: Intervention, base: Tensor, source: Tensor, chosen: list[set[int]] | None = None) -> Tensor:
        """Return what the formula says, with the chosen coordinates of each example; `None` for all."""
        k = self.coordinates(base.shape[-1])
        mask = torch.ones(*base.shape[:-1], k, dtype=torch.bool)
        for example, coordinates in enumerate(chosen or []):
            mask[example] = torch.tensor([c in coordinates for c in range(k)])
        return self.formula(one, base, source, mask)

    def check(self, got: Tensor, wanted: Tensor) -> None:
        """Compare: bit for bit where the arithmetic is the same, else as closely as the dtype allows."""
        assert got.shape == wanted.shape
        assert got.dtype == wanted.dtype
        if self.exact:
            assert torch.equal(got, wanted)
        else:  # sums in another order, in float32 inside: one step of the dtype, or float32's rounding
            bound = {torch.bfloat16: 2e-2, torch.float32: 2e-5, torch.float64: 2e-5}[got.dtype]
            torch.testing.assert_close(got, wanted, rtol=bound, atol=bound)


# --- formulas --------------------------------------------------------------------------------------------------------


def neurons(new: Callable[[Tensor, Tensor], Tensor]) -> Formula:
    """In the chosen neurons the new value, in all others the base."""
    return lambda one, b, s, mask: torch.where(mask, new(b, s), b)


def noise(units: int, width: int) -> Tensor:
    """Return unit after unit the standard normal numbers of seed 7."""
    generator = torch.Generator().manual_seed(7)
    return torch.stack([torch.randn(width, generator=generator) for _ in range(units)])


def rotated(share: Callable[[Any], Tensor] | None = None) -> Formula:
    """Rotate both, mix the chosen coordinates, rotate back what changed."""

    def formula(one: Any, b: Tensor, s: Tensor, mask: Tensor) -> Tensor:
        r, x, y = one.rotation.double(), b.double(), s.double()
        share_of = torch.ones(r.shape[1]) if share is None else share(one)
        f, g = x @ r, y @ r
        mixed = torch.where(mask, (1 - share_of.double()) * f + share_of.double() * g, f)
        return (mixed @ r.T + (x - f @ r.T)).to(b.dtype)

    return formula


def boundary(one: Any) -> Tensor:
    d, t = len(one.rotation), one.temperature
    position = one.boundary.clamp(1e-3, 1) * d
    return torch.stack([1 / (1 + torch.exp(-(position - i) / t)) for i in range(d)])


def sigmoid(one: Any) -> Tensor:
    return 1 / (1 + torch.exp(-one.mask / one.temperature))


def masked_neurons(one: Any, b: Tensor, s: Tensor, mask: Tensor) -> Tensor:
    g = sigmoid(one)
    return torch.where(mask, (1 - g) * b.float() + g * s.float(), b.float()).to(b.dtype)


def principal(one: Any, b: Tensor, s: Tensor, mask: Tensor) -> Tensor:
    """Standardise, swap components, and put the residue of the base back."""
    mean, scale, v = (t.double() for t in (one.mean, one.scale, one.directions))
    x, y = (b.double() - mean) / scale, (s.double() - mean) / scale
    f = torch.where(mask, y @ v, x @ v)
    return ((f @ v.T + (x - x @ v @ v.T)) * scale + mean).to(b.dtype)


def latents(one: Any, b: Tensor, s: Tensor, mask: Tensor) -> Tensor:
    """Encode both, swap latents, decode, add the base's error."""
    sae = {name: value.double() for name, value in one.dictionary.state_dict().items()}

    def encode(x: Tensor) -> Tensor:
        z = (x.double() - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"]
        return z * (z > sae.get("threshold", torch.zeros(1)).clamp_min(0))

    f = encode(b)
    error = b.double() - (f @ sae["W_dec"] + sae["b_dec"])
    return (torch.where(mask, encode(s), f) @ sae["W_dec"] + sae["b_dec"] + error).to(b.dtype)


def reft(subtract: bool) -> Formula:
    def formula(one: Any, b: Tensor, s: Tensor, mask: Tensor) -> Tensor:
        r, h = one.rotation.double().T, b.double()
        w, c = one.learned_source.weight.double(), one.learned_source.bias.double()
        change = torch.einsum("kd,bud->buk", w, h) + c - subtract * torch.einsum("kd,bud->buk", r, h)
        return (h + torch.einsum("kd,buk->bud", r, change * mask)).to(b.dtype)

    return formula


def stacked(one: Any, b: Tensor, s: Tensor, mask: Tensor) -> Tensor:
    """Example n is edited by the member that `must_choose` gives it."""
    out = []
    for n, (member,) in enumerate(CASES["stacked low rank"].must_choose[: len(b)]):
        r = one.rotation[member].double()
        out.append(b[n].double() + (s[n].double() - b[n].double()) @ r @ r.T)
    return torch.stack(out).to(b.dtype)


def steered(one: Any, b: Tensor, s: Tensor, mask: Tensor) -> Tensor:
    return (b.double() + mask * one.strength * one.vector.double()).to(b.dtype)


def along(one: Any, b: Tensor, s: Tensor, mask: Tensor) -> Tensor:
    v = one.vector.double() / one.vector.double().square().sum().sqrt()
    gap = ((s.double() - b.double()) * v).sum(-1, keepdim=True)
    return (b.double() + mask * gap * v).to(b.dtype)


def erased(one: Any, b: Tensor, s: Tensor, mask: Tensor) -> Tensor:
    out = b.double()
    for j in range(one.into.shape[1]):
        part = (b.double() - one.mean.double()) @ one.into[:, j].double()
        out = out - torch.where(mask[..., j], part, 0).unsqueeze(-1) * one.back[j].double()
    return out.to(b.dtype)


# --- how they are made -----------------------------------------------------------------------------------------------


def activations(width: int) -> tuple[Tensor, Tensor]:
    """Return activations whose means and scales differ, and labels of four classes."""
    n = 20 * width
    labels = torch.arange(n) % 4
    return draw(n, width, seed=5) * torch.linspace(0.5, 2, width) + draw(4, width, seed=6)[labels] + 1, labels


def fitted(kind: Any, **options: Any) -> Callable[..., Intervention]:
    def build(width: int, **more: Any) -> Intervention:
        x, labels = activations(width)
        return kind.fit(x, labels >= 2 if kind is not library.ErasureIntervention else labels, **options, **more)

    return build


def pca(width: int, **more: Any) -> Intervention:
    return library.PCARotatedSpaceIntervention.fit(activations(width)[0], 3, **more)


def dictionary(kind: Any) -> Callable[..., Intervention]:
    def build(width: int, **more: Any) -> Intervention:
        state = {
            "W_enc": draw(width, LATENTS, seed=7),
            "b_enc": draw(LATENTS, seed=8).abs(),
            "W_dec": draw(LATENTS, width, seed=9),
            "b_dec": draw(width, seed=10),
        }
        if kind is library.JumpReLUAutoencoderIntervention:
            state["threshold"] = draw(LATENTS, seed=12).abs()
        return kind.from_state_dict(state, **more)

    return build


LOW_RANK = {"low_rank_dimension": 3}
SWAPS = {"needs_source": True, "identity_on_equal": True}
STATIC = {"exact": True}
CASES = {
    "vanilla": Case(library.VanillaIntervention, neurons(lambda b, s: s), **STATIC, **SWAPS),
    "addition": Case(library.AdditionIntervention, neurons(lambda b, s: b + s), **STATIC, needs_source=True),
    "subtraction": Case(library.SubtractionIntervention, neurons(lambda b, s: b - s), **STATIC, needs_source=True),
    "zero": Case(library.ZeroIntervention, neurons(lambda b, s: b * 0), **STATIC),
    "mean": Case(library.MeanIntervention, neurons(lambda b, s: s), **STATIC, **SWAPS),
    "noise": Case(
        library.NoiseIntervention,
        neurons(lambda b, s: b + (noise(b[0, ..., 0].numel(), b.shape[-1]) * 0.5).to(b).view(b.shape[1:])),
        {"noise_level": 2.0, "std": 0.25, "seed": 7},
        **STATIC,
    ),
    "skip": Case(library.SkipIntervention, neurons(lambda b, s: s), **STATIC, **SWAPS),
    "collect": Case(library.CollectIntervention, neurons(lambda b, s: b), **STATIC, writes=False),
    "function": Case(
        library.FunctionIntervention,
        neurons(lambda b, s: 2 * b - s),
        {"function": lambda b, s: 2 * b - s},
        **STATIC,
        identity_on_equal=True,
    ),
    "rotated": Case(library.RotatedSpaceIntervention, rotated(), **SWAPS),
    "low rank": Case(
        library.LowRankRotatedSpaceIntervention, rotated(), LOW_RANK, coordinates=lambda width: 3, **SWAPS
    ),
    "stacked low rank": Case(
        library.StackedLowRankRotatedSpaceIntervention,
        stacked,
        {"low_rank_dimension": 2, "members": 3},
        parts=False,
        must_choose=((2,), (0,)),
        **SWAPS,
    ),
    "boundless": Case(library.BoundlessRotatedSpaceIntervention, rotated(boundary), {"temperature": 0.7}, **SWAPS),
    "masked rotated": Case(
        library.SigmoidMaskRotatedSpaceIntervention, rotated(sigmoid), {"temperature": 0.2}, **SWAPS
    ),
    "masked": Case(library.SigmoidMaskIntervention, masked_neurons, {"temperature": 0.2}, **SWAPS),
    "pca": Case(library.PCARotatedSpaceIntervention, principal, build=pca, coordinates=lambda width: 3, **SWAPS),
    "autoencoder": Case(
        library.AutoencoderIntervention,
        latents,
        build=dictionary(library.AutoencoderIntervention),
        coordinates=lambda width: LATENTS,
        **SWAPS,
    ),
    "jumprelu": Case(
        library.JumpReLUAutoencoderIntervention,
        latents,
        build=dictionary(library.JumpReLUAutoencoderIntervention),
        coordinates=lambda width: LATENTS,
        **SWAPS,
    ),
    "loreft": Case(library.LoreftIntervention, reft(True), LOW_RANK, coordinates=lambda width: 3),
    "direft": Case(library.DireftIntervention, reft(False), LOW_RANK, coordinates=lambda width: 3),
    "difference of means": Case(
        library.DifferenceOfMeansIntervention,
        steered,
        build=fitted(library.DifferenceOfMeansIntervention, strength=0.5),
        coordinates=lambda width: 1,
        parts=False,
    ),
    "probe": Case(
        library.LinearProbeIntervention,
        along,
        build=fitted(library.LinearProbeIntervention),
        coordinates=lambda width: 1,
        parts=False,
        **SWAPS,
    ),
    "erasure": Case(
        library.ErasureIntervention, erased, build=fitted(library.ErasureIntervention), coordinates=lambda width: 3
    ),
}
