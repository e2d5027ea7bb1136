"""What is held for the time of a fit and given back on any exit: modes, flags, blocks and random states."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .._errors import SpecError
from ..models import evaluating, find_slot, resolve, uncompiled
from ..models.detours import forwards
from ..models.modes import holding
from ..models.scope import Scope, scope
from ..sites import Site


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Hold a model in eval mode with no parameter requiring a gradient, in all threads; the last fit to end frees it.

    >>> model = nn.Linear(2, 2)
    >>> with frozen(model):
    ...     print(model.training, model.weight.requires_grad)
    False False
    >>> model.training, model.weight.requires_grad
    (True, True)
    """
    with evaluating(model), holding(model.parameters(), "requires_grad", False):
        yield


@contextmanager
def learning(interventions: nn.Module) -> Iterator[None]:
    """Hold interventions in training mode, and leave no gradients behind.

    >>> made = nn.Linear(2, 2).eval()
    >>> with learning(made):
    ...     made(torch.ones(2)).sum().backward()
    ...     print(made.training)
    True
    >>> made.training, made.weight.grad
    (False, None)
    """
    training = [(module, module.training) for module in interventions.modules()]
    try:
        interventions.train()
        yield
    finally:
        for module, was in training:
            module.training = was
        for parameter in interventions.parameters():
            parameter.grad = None


@contextmanager
def recomputed(model: nn.Module, sites: Iterable[Site]) -> Iterator[None]:
    """Let blocks forget their activations in the forward pass and compute them again in the backward pass.

    Only blocks that contain no edited module: hooks are gone when the backward pass comes.

    Args:
        model: the user's.
        sites: what is edited.

    Raises:
        SpecError: every block is edited, or there is none.
    """
    modules = dict(uncompiled(model).named_modules())
    paths = [block.path for stack in resolve(model).stacks.values() for block in stack]
    blocks = [modules[path] for path in paths if path in modules]
    edits = {find_slot(model, site).module for site in sites}
    free = [block for block in dict.fromkeys(blocks) if edits.isdisjoint(block.modules())]
    if not free:
        raise SpecError(
            f"gradient_checkpointing: none of the model's {len(blocks)} known blocks is free of interventions, so "
            "there is nothing to compute again; leave it off"
        )
    with (
        scope(Scope(lasting=True)),
        forwards({block: partial(_recomputed, block) for block in free}),
    ):
        yield


def _recomputed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a block's forward pass that is made again in the backward pass: both times frozen and in eval mode."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with frozen(block):
            return forward(*args, **kwargs)

    return partial(checkpoint, run, use_reentrant=False)


RandomStates = tuple[dict[str, Tensor], list[Any]]
"""The states of random generators: tensors by name, and JSON-able data."""


def random_states() -> RandomStates:
    """Return the states of the generators that PyTorch, NumPy and Python draw from."""
    numpy: Mapping[str, Any] = np.random.get_state(legacy=False)
    tensors = {"cpu": torch.get_rng_state()}
    tensors |= {f"cuda:{n}": state for n, state in enumerate(torch.cuda.get_rng_state_all())}
    tensors["numpy"] = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    version, numbers, gauss = random.getstate()
    rest = [numpy["bit_generator"], numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"]]
    return tensors, [rest, [version, list(numbers), gauss]]


def set_random_states(tensors: Mapping[str, Tensor], rest: list[Any]) -> None:
    """Set what `random_states` returned."""
    torch.set_rng_state(tensors["cpu"].cpu())
    for number in range(torch.cuda.device_count()):
        if f"cuda:{number}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda:{number}"].cpu(), number)
    (kind, position, has_gauss, gauss), (version, numbers, next_gauss) = rest
    key = tensors["numpy"].cpu().numpy().astype(np.uint32)
    np.random.set_state((kind, key, position, has_gauss, gauss))
    random.setstate((version, tuple(numbers), next_gauss))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of PyTorch, NumPy and Python, and set them back to where they were.

    >>> with seeded(0):
    ...     first = torch.rand(1)
    >>> with seeded(0):
    ...     print(torch.equal(first, torch.rand(1)))
    True
    """
    before = random_states()
    try:
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        set_random_states(*before)
