"""Passes are derived from the plan alone: no model is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align_transformers import Edit, Plan, Read, Run, Site
from align_transformers.fast.depth import END, START, depth_of
from align_transformers.fast.schedule import Facts, Stage
from align_transformers.fast.schedule import schedule as schedule_of
from align_transformers.plan import Logits

# The checks of types within plans, drawn below, use `random`; nothing that is drawn depends on it.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

SITE = Site("mlp_output", 0)


def schedule(plan: Plan, **facts) -> tuple[Stage, ...]:
    return schedule_of(plan, plan.order(), Facts(**facts))


def reading(name: str, run: str, site: Site = SITE) -> Edit:
    return Edit(name, site, "swap", source=Read(run, site))


def test_every_pass_comes_after_those_that_it_reads():
    runs = [Run(name, name, (reading(f"into {name}", before),)) for before, name in zip("abcd", "bcde", strict=True)]
    passes = schedule(Plan((*reversed(runs), Run("a", "a")), ("e",)))
    assert [run.name for one in passes for run in one.runs] == list("abcde")
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
    assert [run.name for one in passes for run in one.runs] == ["b"]


def test_a_run_may_be_wanted_and_read():
    passes = schedule(Plan((Run("b", "b", (reading("e", "s"),)), Run("s", "s")), ("b", "s")))
    assert [(one.runs[0].name, one.wanted, len(one.reads)) for one in passes] == [("s", True, 1), ("b", True, 0)]


# --- where passes start and stop --------------------------------------------------------------------------------------


def at(depth: str, layer: int | None = None) -> Site:
    return Site(depth, layer)


def edit(name: str, site: Site) -> Edit:
    return Edit(name, site, "zero")


def starts(passes) -> dict[str, str | None]:
    """Return for each run that starts late the run it starts from."""
    return {run.name: one.donor for one in passes for run in one.runs if one.starts}


def test_depths_come_in_the_order_of_a_forward_pass():
    sites = [
        at("embedding_output"),
        at("block_input", 0),
        at("mlp_output", 0),
        at("block_output", 0),
        at("block_input", 1),
        at("attention_pattern", 1),
        at("block_output", 1),
        at("final_norm_output"),
    ]
    depths = [depth_of(site) for site in sites]
    assert depths == sorted(set(depths))
    assert depth_of(at("final_norm_output")) == depth_of(at("logits")) == END
    assert depth_of(at("encoder.block_output", 7)) < depth_of(at("decoder.block_input", 0))
    assert depth_of(at("encoder.embedding_output")) == START


def test_what_lies_between_two_stacks_or_is_called_many_times_has_no_depth():
    # All of the encoder is below these, none of the decoder.
    assert depth_of(at("encoder.final_norm_output")) is None
    assert depth_of(at("decoder.embedding_output")) is None
    assert depth_of(Site("mlp_output", 1, call=2)) is None
    assert depth_of(at("transformer.h.1.output")) is None
    assert depth_of(at("vision.block_output", 1)) is None


def test_runs_start_from_an_unedited_run_of_the_same_input_and_go_together():
    runs = (
        Run("clean", "x"),
        Run("high", "x", (edit("a", at("block_output", 2)),)),
        Run("low", "x", (edit("b", at("mlp_output", 1)),), (0, 0)),
        Run("other", "y", (edit("c", at("block_output", 1)),)),
    )
    first, *rest = schedule(Plan(runs, ("clean", "high", "low", "other"), Logits()))
    assert [run.name for run in first.runs] == ["clean"] or [run.name for run in first.runs] == ["other"]
    passes = {tuple(run.name for run in one.runs): one for one in (first, *rest)}
    assert set(passes) == {("clean",), ("other",), ("low", "high")}  # by depth
    depths = depth_of(at("mlp_output", 1)), depth_of(at("block_output", 2))
    assert (passes["low", "high"].donor, passes["low", "high"].starts) == ("clean", depths)
    assert passes["clean",].keep == depths
    assert passes["other",].starts == ()


def test_whole_outputs_are_wanted_so_runs_stay_apart():
    runs = (Run("clean", "x"), Run("a", "x", (edit("a", at("block_output", 2)),)), Run("b", "x", (edit("b", SITE),)))
    passes = schedule(Plan(runs, ("clean", "a", "b")))
    assert [len(one.runs) for one in passes] == [1, 1, 1]
    assert starts(passes) == {"a": "clean", "b": "clean"}


def test_without_a_clean_run_the_deepest_edit_is_the_donor():
    runs = (
        Run("low", "x", (edit("a", at("block_output", 0)),)),
        Run("high", "x", (edit("b", at("block_output", 2)),)),
        Run("middle", "x", (edit("c", at("block_output", 1)),)),
    )
    passes = schedule(Plan(runs, ("low", "high", "middle"), Logits()))
    assert starts(passes) == {"low": "high", "middle": "high"}
    assert passes[0].runs[0].name == "high"
    assert passes[0].keep == (depth_of(at("block_output", 0)), depth_of(at("block_output", 1)))


def test_a_run_of_chosen_examples_is_no_donor():
    runs = (Run("few", "x", (), (0,)), Run("a", "x", (edit("a", at("block_output", 1)),)))
    assert starts(schedule(Plan(runs, ("few", "a"), Logits()))) == {}


def test_no_run_starts_from_one_that_needs_it():
    site = at("block_output", 2)
    runs = (Run("low", "x", (edit("a", at("block_output", 0)),)), Run("high", "x", (reading("b", "low", site),)))
    assert starts(schedule(Plan(runs, ("low", "high"), Logits()))) == {}
    clean = schedule(Plan((*runs, Run("clean", "x")), ("low", "high", "clean"), Logits()))
    assert starts(clean) == {"low": "clean", "high": "clean"}
    assert [run.name for run in clean[-1].runs] == ["high"]


@pytest.mark.parametrize(("read", "begin"), [(0, 0), (1, 1), (2, 1)])
def test_a_run_that_is_read_below_its_first_edit_starts_there(read, begin):
    runs = (
        Run("clean", "x"),
        Run("read", "x", (edit("a", at("block_output", 1)),)),
        Run("reader", "y", (reading("b", "read", at("block_output", read)),)),
    )
    passes = schedule(Plan(runs, ("clean", "read", "reader"), Logits()))
    (partial,) = [one for one in passes if one.starts]
    assert (partial.donor, partial.starts) == ("clean", (depth_of(at("block_output", begin)),))
    assert [one.keep for one in passes if one.runs[0].name == "clean"] == [partial.starts]


def test_a_run_of_which_an_unknown_depth_is_read_starts_at_the_beginning():
    runs = (
        Run("clean", "x"),
        Run("read", "x", (edit("a", at("block_output", 1)),)),
        Run("reader", "y", (reading("b", "read", at("some.module.output")),)),
    )
    assert starts(schedule(Plan(runs, ("clean", "read", "reader"), Logits()))) == {}


def test_sources_stop_after_the_last_that_is_needed_of_them():
    shallow, deep = at("attention_output", 1), at("block_output", 4)
    runs = (
        Run("s", "s", (edit("own", at("block_output", 2)),)),
        Run("b", "b", (reading("one", "s", shallow),)),
        Run("c", "c", (reading("two", "s", deep),)),
    )
    stops = {one.runs[0].name: one.stop for one in schedule(Plan(runs, ("b", "c")))}
    assert stops == {"s": depth_of(deep), "b": None, "c": None}
    stops = {one.runs[0].name: one.stop for one in schedule(Plan(runs[:2], ("b",)))}
    assert stops["s"] == depth_of(at("block_output", 2))  # an edit that is not reached would be an error
    unknown = (Run("s", "s"), Run("b", "b", (reading("one", "s", at("some.module.output")),)))
    assert all(one.stop is None for one in schedule(Plan(unknown, ("b",))))
    last = (Run("s", "s"), Run("b", "b", (reading("one", "s", at("logits")),)))
    assert all(one.stop is None for one in schedule(Plan(last, ("b",))))


def test_states_that_are_handed_in_need_no_donor():
    run = Run("a", "x", (edit("a", at("block_output", 1)),))
    (one,) = schedule(Plan((run,), ("a",)), known=("x",))
    assert (one.donor, one.starts) == (None, (depth_of(at("block_output", 1)),))


_SITES = [
    at("embedding_output"),
    *(at(name, n) for n in range(3) for name in ("block_input", "mlp_output", "block_output")),
]
_SITES += [at("final_norm_output"), at("some.module.output")]


@given(data=st.data())
def test_passes_of_any_plan_are_in_order_and_start_where_nothing_is_lost(data):
    runs: list[Run] = []
    for number in range(data.draw(st.integers(1, 6))):
        edits = []
        for n in range(data.draw(st.integers(0, 2))):
            site, name = data.draw(st.sampled_from(_SITES)), f"{number}.{n}"
            source = data.draw(st.sampled_from([None, *(run.name for run in runs)]))
            edits.append(
                edit(name, site)
                if source is None
                else Edit(name, site, "swap", source=Read(source, data.draw(st.sampled_from(_SITES))))
            )
        examples = data.draw(st.sampled_from([None, None, (0, 0)]))
        runs.append(Run(str(number), data.draw(st.sampled_from("xy")), tuple(edits), examples))
    wanted = tuple(data.draw(st.sets(st.sampled_from([run.name for run in runs]), min_size=1)))
    plan = Plan(tuple(runs), wanted, data.draw(st.sampled_from([None, Logits()])))
    passes = schedule(plan)
    place = {run.name: n for n, one in enumerate(passes) for run in (*one.runs, *one.twins)}
    assert set(place) == {run.name for run in plan.order()}
    assert not any(run.edits or run.examples or run.input != one.runs[0].input for one in passes for run in one.twins)
    by_name = {run.name: run for run in runs}
    for n, one in enumerate(passes):
        for run in one.runs:
            assert all(place[e.source.run] < n for e in run.edits if isinstance(e.source, Read))
        if not one.starts:
            continue
        donor = by_name[one.donor]
        giving = passes[place[donor.name]]
        assert place[donor.name] < n
        assert donor.examples is None
        for run, depth, inherited in zip(one.runs, one.starts, one.inherited, strict=True):
            assert run.input == donor.input
            mine = {edit.name: edit for edit in run.edits}
            theirs = {edit.name: edit for edit in donor.edits}
            assert all(replace(mine[a], name="") == replace(theirs[b], name="") for a, b in inherited)
            done = [mine[name] for name, _ in inherited]
            left = [e for e in run.edits if e not in done]
            reached = [depth_of(e.site) for e in left] + [
                depth_of(read.site) for read in plan.reads() if read.run == run.name and read in one.reads
            ]
            assert depth == min(reached)  # nothing of it lies below; none is unknown
            assert all(depth_of(e.site).state < depth.state for e in done)  # made before the state is taken
            others = [e for e in donor.edits if e.name not in dict(inherited).values()]
            assert all(depth_of(e.site).state >= depth.state for e in others)  # nothing else was done so far
            assert depth in giving.keep
            assert giving.stop is None or giving.stop >= depth
            # A donor that itself began somewhere has no states of its own at or below that place.
            assert not giving.starts or giving.starts[0].state < depth.state
