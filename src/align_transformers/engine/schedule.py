"""From a plan to passes: which runs happen, in which order, and what each has to hand on. No model is needed."""

from __future__ import annotations

from dataclasses import dataclass

from ..plan import Plan, Read, Run


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Law 5 of the design is a matter of this type: where a pass may start and stop, and what it may reuse, are facts
    that `schedule` derives from the plan. Today every pass runs from the first block to the last.

    Args:
        run: the run it carries out.
        reads: the values of this run that later passes need, each once.
        wanted: whether the run's output is asked for.
    """

    run: Run
    reads: tuple[Read, ...]
    wanted: bool


def schedule(plan: Plan) -> tuple[Pass, ...]:
    """Return the passes a plan needs, each after those that it reads; runs that nothing needs are left out.

    >>> from align_transformers import Edit, Plan, Read, Run, Site
    >>> site = Site("block_output", 1)
    >>> swap = Edit("swap", site, "vanilla", source=Read("source", site))
    >>> runs = (Run("base", "b", (swap,)), Run("source", "s"), Run("idle", "i"))
    >>> [(p.run.name, p.wanted) for p in schedule(Plan(runs, outputs=("base",)))]
    [('source', False), ('base', True)]
    """
    order = plan.order()
    reads = [edit.source for run in order for edit in run.edits if isinstance(edit.source, Read)]
    by_run = {run.name: tuple(dict.fromkeys(read for read in reads if read.run == run.name)) for run in order}
    return tuple(Pass(run, by_run[run.name], run.name in plan.outputs) for run in order)
