"""Passes are derived from the plan alone: no model is needed."""

from __future__ import annotations

from align_transformers import Edit, Plan, Read, Run, Site
from align_transformers.engine import schedule

SITE = Site("mlp_output", 0)


def reading(name: str, run: str, site: Site = SITE) -> Edit:
    return Edit(name, site, "swap", source=Read(run, site))


def test_every_pass_comes_after_those_that_it_reads():
    runs = [Run(name, name, (reading(f"into {name}", before),)) for before, name in zip("abcd", "bcde", strict=True)]
    passes = schedule(Plan((*reversed(runs), Run("a", "a")), ("e",)))
    assert [one.run.name for one in passes] == list("abcde")
    assert [one.wanted for one in passes] == [False] * 4 + [True]
    assert [len(one.reads) for one in passes] == [1] * 4 + [0]


def test_equal_reads_are_captured_once_and_different_ones_each():
    other = Site("mlp_output", 1)
    edits = (reading("one", "s"), reading("two", "s"), reading("three", "s", other))
    first, _ = schedule(Plan((Run("b", "b", edits), Run("s", "s")), ("b",)))
    assert first.reads == (Read("s", SITE), Read("s", other))


def test_runs_that_nothing_needs_are_left_out():
    idle = Run("idle", "x", (reading("unused", "s"),))
    passes = schedule(Plan((Run("b", "b"), Run("s", "s"), idle), ("b",)))
    assert [one.run.name for one in passes] == ["b"]


def test_a_run_may_be_wanted_and_read():
    passes = schedule(Plan((Run("b", "b", (reading("e", "s"),)), Run("s", "s")), ("b", "s")))
    assert [(one.run.name, one.wanted, len(one.reads)) for one in passes] == [("s", True, 1), ("b", True, 0)]
