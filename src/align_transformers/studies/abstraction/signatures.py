"""Which containers are worth a fit: those where a swap of the whole vector does what a set of variables would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations

import numpy as np
import torch
from torch import Tensor

from ..._errors import SpecError
from .hypothesis import Candidate, Hypothesis
from .methods import Methods
from .runner import Runner, measured
from .task import Container, Indices, Task

_MOST = 10
_PAIRS = 64


@dataclass(frozen=True, eq=False)
class Signatures:
    """What swaps do, beside what sets of variables would do.

    Args:
        sets: the sets of variables; the empty one is what does nothing.
        cost: by container the mean squared distance of its effect from that of each set, `(sets,)`.
    """

    sets: tuple[frozenset[str], ...]
    cost: Mapping[Container, Tensor]

    def nominates(self, hypothesis: Hypothesis) -> bool:
        """Whether the set nearest to a container's effect, or one as near, has the variables of a hypothesis."""
        if hypothesis.parts:
            return all(self.nominates(one) for one in hypothesis.parts)
        cost = self.cost[hypothesis.container]
        near = [found for found, one in zip(self.sets, cost.tolist(), strict=True) if one <= cost.min().item() + 1e-6]
        return any(found >= set(hypothesis.variables) for found in near)


def signatures(
    task: Task, runner: Runner, methods: Methods, containers: Sequence[Container], variables: Sequence[str], part: str
) -> Signatures:
    """Measure the effects of swaps at some containers.

    The effect is the change of the probabilities of the answers; what it would be is that between the mean
    probabilities of inputs with either answer. One vector may carry several variables, so it is
    compared with the effects of all sets of them, of inputs and the output, and with none.

    Args:
        task: the inputs.
        runner: of the task.
        methods: of the search.
        containers: where.
        variables: of the hypotheses.
        part: whose pairs.

    Raises:
        SpecError: there are too many variables for all their sets.

    PLOT, arXiv:2605.06979, without its optimal transport.
    """
    names = list(dict.fromkeys([*variables, *task.causal_model.inputs, task.output]))
    if len(names) > _MOST:
        raise SpecError(
            f"search='signatures' compares with all sets of variables asked for, inputs and output, at most {_MOST} of "
            f"them; found {len(names)}"
        )
    pairs = task.parts[part]
    pairs = pairs.take(pairs.of(variables)[:_PAIRS])
    source = pairs.source_numbers(variables)
    sets = [frozenset(one) for one in chain.from_iterable(combinations(names, n) for n in range(len(names) + 1))]
    labels = [task.labels_under(pairs.base.tolist(), source.tolist(), one) for one in sets]
    answers, columns = torch.cat(labels).unique(return_inverse=True)

    def probabilities(logits: Tensor) -> Tensor:
        return logits[:, answers].double().softmax(-1)

    plain = task.plain(probabilities)
    wanted = _typical(plain, task.writer(task.values(task.output)), answers)[columns].view(len(sets), len(pairs), -1)
    swapped = replace(pairs, sources=dict.fromkeys(variables, source))
    candidates = [methods.candidate(task, Hypothesis((variables[0],), container, "swap")) for container in containers]

    def every(candidate: Candidate) -> Indices:
        return np.arange(len(pairs))

    effects = measured(runner, candidates, swapped, every, probabilities)
    changes = wanted - wanted[0], [effect - plain[pairs.base] for effect in effects]
    cost = {
        container: ((changes[0] - change) ** 2).sum(-1).mean(-1).cpu()
        for container, change in zip(containers, changes[1], strict=True)
    }
    return Signatures(tuple(sets), cost)


def _typical(plain: Tensor, labels: Tensor, answers: Tensor) -> Tensor:
    """Return for each answer the mean probabilities of the inputs that have it, `(answers, answers)`.

    A network that is not sure of its answers is not sure of them under an interchange either.
    """
    found = torch.eye(len(answers), dtype=plain.dtype, device=plain.device)
    for number, answer in enumerate(answers.tolist()):
        own = plain[labels == answer]
        if len(own):
            found[number] = own.mean(0)
    return found
