"""Directions that carry a labelled concept, and what erases it: pure functions of activations and labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from .._errors import SpecError
from .basis import Basis

ErasureMethod = Literal["leace", "inlp"]


@dataclass(frozen=True, eq=False)
class Eraser:
    """What erases a concept: `x - (x - mean) @ into @ back`, an affine map of low rank.

    Args:
        mean: what is left alone.
        into: what is read off the vectors.
        back: what is taken from them.
    """

    mean: Float[Tensor, " width"]
    into: Float[Tensor, "width rank"]
    back: Float[Tensor, "rank width"]

    def basis(self) -> Basis:
        """Return the coordinates that are taken away."""
        return Basis(len(self.mean), self.into, self.back, self.mean)


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """A multinomial logistic regression: logits are `x @ weight + bias`."""

    weight: Float[Tensor, "width classes"]
    bias: Float[Tensor, " classes"]


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear probe of two classes: the larger label where `x @ vector > threshold`; the vector is of length 1."""

    vector: Float[Tensor, " width"]
    threshold: Float[Tensor, ""]


def kept_in(tensor: Tensor, like: Tensor) -> Tensor:
    """Return what was fitted in the precision of the activations, at least float32."""
    return tensor.to(torch.promote_types(like.dtype, torch.float32))


def class_numbers(labels: Tensor, n: int) -> Int64[Tensor, " n"]:
    """Return labels as class numbers from 0, in ascending order of the labels.

    Raises:
        SpecError: there is not one label for each of `n` examples, or fewer than two classes.

    >>> class_numbers(torch.tensor([5, 2, 5]), 3).tolist()
    [1, 0, 1]
    """
    if labels.shape != (n,):
        raise SpecError(f"{n} activations need as many labels; found labels of shape {tuple(labels.shape)}")
    classes, numbers = labels.cpu().unique(return_inverse=True)
    if len(classes) < 2:
        raise SpecError(f"labels of at least two classes are needed; found {classes.tolist()}")
    return numbers


def two_classes(labels: Tensor, n: int) -> Int64[Tensor, " n"]:
    """Return labels as 0 and 1.

    Raises:
        SpecError: there are not two classes.
    """
    numbers = class_numbers(labels, n)
    if int(numbers.max()) != 1:
        raise SpecError(f"a direction parts two classes; the labels have {int(numbers.max()) + 1}")
    return numbers


def difference_of_means(activations: Float[Tensor, "n width"], labels: Tensor) -> Float[Tensor, " width"]:
    """Return the mean activation of the class of the larger label less that of the other.

    Raises:
        SpecError: there are not two classes.

    >>> difference_of_means(torch.tensor([[1.0], [4.0]]), torch.tensor([0, 1])).tolist()
    [3.0]
    """
    larger = two_classes(labels, len(activations)).bool().to(activations.device)
    return activations[larger].mean(0) - activations[~larger].mean(0)


def logistic_regression(
    activations: Float[Tensor, "n width"], classes: Int64[Tensor, " n"], *, l2: float = 1e-3
) -> LinearClassifier:
    """Return the multinomial logistic regression with the least penalised loss.

    The loss is the mean cross-entropy plus `l2 / 2` times the squared weights, of activations divided by their overall
    standard deviation, so that `l2` means the same whatever their size. It is convex: there is one solution.

    Args:
        activations: one row an example.
        classes: numbers from 0.
        l2: above 0; without it separable classes have no solution.

    Raises:
        SpecError: `l2` is not above 0.
    """
    if not l2 > 0:
        raise SpecError(f"l2 is above 0, else separable classes have no solution; found {l2}")
    rows, classes = activations.detach().double(), classes.to(activations.device)
    mean = rows.mean(0)
    scale = (rows - mean).square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    rows = (rows - mean) / scale
    count = int(classes.max()) + 1
    with torch.enable_grad():
        weight = torch.zeros(rows.shape[1], count, dtype=torch.float64, device=rows.device, requires_grad=True)
        bias = torch.zeros(count, dtype=torch.float64, device=rows.device, requires_grad=True)
        optimiser = torch.optim.LBFGS(
            [weight, bias],
            max_iter=500,
            tolerance_grad=1e-9,
            tolerance_change=1e-14,
            history_size=30,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            optimiser.zero_grad()
            value = F.cross_entropy(rows @ weight + bias, classes) + l2 / 2 * weight.square().sum()
            value.backward()
            return value

        optimiser.step(loss)
    weight, bias = weight.detach() / scale, bias.detach()
    return LinearClassifier(weight, bias - mean @ weight)


def linear_probe(activations: Float[Tensor, "n width"], labels: Tensor, *, l2: float = 1e-3) -> Probe:
    """Return the probe of a logistic regression, in float64; nothing that tells the classes apart is a zero vector.

    Raises:
        SpecError: there are not two classes.

    >>> linear_probe(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1])).vector.tolist()
    [1.0, 0.0]
    """
    found = logistic_regression(activations, two_classes(labels, len(activations)), l2=l2)
    weight, bias = found.weight[:, 1] - found.weight[:, 0], found.bias[1] - found.bias[0]
    return Probe(weight / weight.norm().clamp_min(torch.finfo(weight.dtype).tiny), -bias / weight.norm())


def fit_eraser(
    activations: Float[Tensor, "n width"],
    labels: Tensor,
    *,
    method: ErasureMethod = "leace",
    rounds: int = 20,
    l2: float = 1e-3,
) -> Eraser:
    """Return what erases labels, in the precision of the activations, at least float32.

    Args:
        activations: one row an example.
        labels: `(n,)` of two or more classes; for LEACE also `(n, c)`, any features.
        method: `leace` or `inlp`.
        rounds: of INLP, at most.
        l2: of INLP's classifiers.

    Raises:
        SpecError: labels do not fit, or nothing linear is there to be erased.

    >>> fit_eraser(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1, 1])).into.shape
    torch.Size([1, 1])
    """
    if method == "leace" and labels.ndim == 2 and len(labels) == len(activations):
        found = leace(activations, labels.double())
    else:
        numbers = class_numbers(labels, len(activations))
        one_hot = F.one_hot(numbers).double()
        found = inlp(activations, numbers, rounds=rounds, l2=l2) if method == "inlp" else leace(activations, one_hot)
    if found.into.shape[1] == 0:
        raise SpecError("the activations tell nothing linear about the labels: there is nothing to erase")
    return Eraser(*(kept_in(value, activations) for value in (found.mean, found.into, found.back)))


def leace(activations: Float[Tensor, "n width"], concept: Float[Tensor, "n c"]) -> Eraser:
    """Return the least-squares eraser of a concept (LEACE; Belrose et al. 2023, arXiv:2306.03819), in closed form.

    With `W` the inverse square root of the covariance of x and `P` the projector on the columns of `W Cov(x, z)`, x
    becomes `x - W⁺ P W (x - mean)`. Its covariance with z is then zero, so no linear classifier does better on it than
    a constant one, and of all affine maps of which this is true it changes x least.

    Args:
        activations: one row an example; computed in float64.
        concept: the labels as numbers: one column for each of several classes, or any features.

    Returns:
        The eraser in float64.
    """
    x, z = activations.detach().double(), concept.to(activations.device).double()
    mean = x.mean(0)
    x, z = x - mean, z - z.mean(0)
    variances, axes = torch.linalg.eigh(x.T @ x / len(x))
    epsilon = torch.finfo(x.dtype).eps
    real = variances > variances[-1] * len(variances) * epsilon
    spread = torch.where(real, variances, 1.0).sqrt()
    whiten = (axes * torch.where(real, 1 / spread, 0.0)) @ axes.T
    unwhiten = (axes * torch.where(real, spread, 0.0)) @ axes.T
    columns, strengths, _ = torch.linalg.svd(whiten @ (x.T @ z / len(x)), full_matrices=False)
    # A correlation below this is rounding: that of centred labels sums to zero, so the last of c classes has none.
    columns = columns[:, strengths > 1e-10]
    return Eraser(mean, whiten @ columns, columns.T @ unwhiten)


def inlp(
    activations: Float[Tensor, "n width"], classes: Int64[Tensor, " n"], *, rounds: int = 20, l2: float = 1e-3
) -> Eraser:
    """Return the eraser of iterated nullspace projection (INLP; Ravfogel et al. 2020, arXiv:2004.07667).

    Each round fits a linear classifier to what is left, and projects its directions away; it ends when the classifier
    is right no more often than always naming the most frequent class would be, within two standard errors.

    Args:
        activations: one row an example; computed in float64.
        classes: numbers from 0.
        rounds: at most so many.
        l2: of the classifiers.

    Returns:
        The eraser in float64: an orthogonal projection, with mean zero.
    """
    x, classes = activations.detach().double(), classes.to(activations.device)
    frequent = float(classes.bincount().max()) / len(classes)
    chance = frequent + 2 * (frequent * (1 - frequent) / len(classes)) ** 0.5
    basis = x.new_zeros(x.shape[1], 0)
    for _ in range(rounds):
        left = x - x @ basis @ basis.T
        found = logistic_regression(left, classes, l2=l2)
        correct = ((left @ found.weight + found.bias).argmax(1) == classes).double().mean()
        if float(correct) <= chance or basis.shape[1] == x.shape[1]:
            break
        contrasts = found.weight - found.weight.mean(1, keepdim=True)
        contrasts = contrasts - basis @ (basis.T @ contrasts)
        new, strengths, _ = torch.linalg.svd(contrasts, full_matrices=False)
        basis = torch.linalg.qr(torch.cat([basis, new[:, strengths > 1e-8 * strengths[0]]], 1))[0]
    return Eraser(torch.zeros_like(x[0]), basis, basis.T)
