"""Simulated times: closed forms of the literature, and the longest path of what waits for what. All exact."""

import itertools
import math
from fractions import Fraction

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.errors import PlanError
from autopar.schedule import (
    Kind,
    Schedule,
    Task,
    gpipe,
    inference,
    interleaved,
    make_schedule,
    one_f_one_b,
    zb_h1,
)
from autopar.simulate import simulate_schedule
from tests.schedule.drawn import legal, waits


def timed(schedule, forward=1, backward=2, weight=0, hop=0):
    """Equal stages; times as exact fractions."""
    seconds = {Kind.FORWARD: forward, Kind.BACKWARD: backward, Kind.WEIGHT: weight}
    return simulate_schedule(schedule, lambda task: Fraction(seconds[task.kind]), lambda source, target: Fraction(hop))


def idle_s(timeline):
    """Per worker."""
    return {timeline.step_s - busy for busy in timeline.busy_s}


grid = pytest.mark.parametrize(
    ("stages", "microbatches"), [(1, 1), (1, 5), (2, 1), (3, 8), (4, 4), (7, 3), (8, 32), (16, 64)]
)


@grid
def test_gpipe(stages, microbatches):
    expected = Fraction(stages - 1, microbatches + stages - 1)
    assert timed(gpipe(stages, microbatches)).bubble == expected
    assert timed(one_f_one_b(stages, microbatches)).bubble == expected
    assert timed(inference(stages, microbatches)).bubble == expected


@pytest.mark.parametrize("workers", range(1, 9))
@pytest.mark.parametrize("chunks", range(1, 5))
def test_interleaving_divides_the_bubble(workers, chunks):
    """Also where micro-batches do not divide among workers."""
    for microbatches in {workers, workers + 1, 2 * workers, 3 * workers - 1, 4 * workers, 4 * workers + 3}:
        whole = timed(one_f_one_b(workers, microbatches), forward=chunks, backward=2 * chunks)
        timeline = timed(interleaved(chunks * workers, microbatches, workers))
        assert idle_s(whole) == {(workers - 1) * 3 * chunks}
        assert idle_s(timeline) == {(workers - 1) * 3}


@given(st.integers(1, 8), st.integers(0, 16), st.integers(1, 9), st.integers(1, 9), st.data())
def test_zb_h1_closes_the_bubble(stages, more, forward, backward, data):
    weight = data.draw(st.integers(1, min(forward, backward)))
    microbatches = stages + more
    split = timed(zb_h1(stages, microbatches), forward, backward, weight)
    whole = timed(one_f_one_b(stages, microbatches), forward, backward + weight)
    assert idle_s(whole) == {(stages - 1) * (forward + backward + weight)}
    assert idle_s(split) == {(stages - 1) * (forward + backward - weight)}


@given(st.integers(1, 8), st.integers(1, 24), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_zb_h1_is_never_slower_than_1f1b(stages, microbatches, forward, backward, weight):
    split = timed(zb_h1(stages, microbatches), forward, backward, weight)
    whole = timed(one_f_one_b(stages, microbatches), forward, backward + weight)
    assert split.step_s <= whole.step_s


def test_transfers_lengthen_the_ramp_of_gpipe():
    """There and back, once; they run beside the compute of later micro-batches."""
    assert timed(gpipe(4, 8), hop=Fraction(1, 2)).step_s == (8 + 3) * 3 + 2 * 3 * Fraction(1, 2)


def test_the_longer_ramp_of_interleaving_hides_transfers():
    """1F1B waits for a transfer there and back at every turn, interleaving only where the pipeline fills and drains."""
    hop = Fraction(1, 4)
    few, many = (timed(interleaved(8, m, 4), hop=hop).step_s - timed(interleaved(8, m, 4)).step_s for m in (16, 64))
    assert few == many
    few, many = (timed(one_f_one_b(4, m), hop=hop).step_s - timed(one_f_one_b(4, m)).step_s for m in (16, 64))
    assert few < many


def test_transfers_are_asked_once_for_each_pair_of_neighbours():
    asked = []
    simulate_schedule(one_f_one_b(3, 5), lambda task: 1.0, lambda source, target: asked.append((source, target)) or 0.0)
    assert sorted(asked) == [(0, 1), (1, 0), (1, 2), (2, 1)]
    asked.clear()
    simulate_schedule(inference(3, 5), lambda task: 1.0, lambda source, target: asked.append((source, target)) or 0.0)
    assert sorted(asked) == [(0, 1), (1, 2)]


def test_unequal_stages_wait_for_the_slowest():
    timeline = simulate_schedule(inference(3, 10), lambda task: (1, 4, 2)[task.stage], lambda source, target: 0)
    assert timeline.step_s == 1 + 10 * 4 + 2
    assert timeline.busy_s == (10, 40, 20)


def test_a_step_that_takes_no_time_has_no_bubble():
    assert timed(one_f_one_b(2, 2), forward=0, backward=0).bubble == 0


def test_events_are_told_in_order():
    timeline = timed(zb_h1(4, 6), weight=1)
    assert [e.start_s for e in timeline.events] == sorted(e.start_s for e in timeline.events)
    assert timeline.step_s == max(e.end_s for e in timeline.events)
    for worker, tasks in enumerate(zb_h1(4, 6).workers):
        events = [e for e in timeline.events if e.worker == worker]
        assert tuple(e.task for e in events) == tasks
        assert all(one.end_s <= two.start_s for one, two in itertools.pairwise(events))


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_times_that_are_none(wrong):
    with pytest.raises(ValueError, match=r"F0\.0 takes .* s; a time must be finite and not negative"):
        simulate_schedule(gpipe(2, 2), lambda task: wrong, lambda source, target: 0.0)
    with pytest.raises(ValueError, match=r"a transfer from stage 0 to stage 1 takes .* s"):
        simulate_schedule(inference(2, 2), lambda task: 1.0, lambda source, target: wrong)


def test_deadlocks_are_named():
    with pytest.raises(PlanError, match="deadlocks"):
        tasks = (Task(Kind.BACKWARD, 0, 0), Task(Kind.FORWARD, 0, 0))
        simulate_schedule(Schedule("mine", 1, 1, (tasks,)), lambda task: 1.0, lambda source, target: 0.0)


HANDED_ON = [(Kind.FORWARD, Kind.FORWARD, 1), (Kind.BACKWARD, Kind.BACKWARD, -1)]
known = st.one_of(
    st.builds(make_schedule, st.sampled_from(["gpipe", "1f1b", "zb-h1"]), st.integers(1, 5), st.integers(1, 8)),
    st.builds(lambda w, c, m: interleaved(w * c, m, w), st.integers(1, 4), st.integers(1, 3), st.integers(1, 8)),
)


@given(st.one_of(legal(), known), st.data())
def test_a_step_is_as_long_as_its_longest_path(schedule, data):
    """An edge of the graph of waits weighs the task that it leaves and the way from stage to stage."""
    draw = st.integers(0, 20)
    graph = waits(schedule)
    task_s = {task: data.draw(draw) for task in graph}
    hop_s = {(s, s + d): data.draw(draw) for s in range(schedule.stages) for d in (-1, 1)}
    timeline = simulate_schedule(schedule, task_s.__getitem__, lambda source, target: hop_s[source, target])
    for before, after in graph.edges:
        graph.edges[before, after]["s"] = task_s[before]
        if before.microbatch == after.microbatch and (before.kind, after.kind, after.stage - before.stage) in HANDED_ON:
            graph.edges[before, after]["s"] += hop_s[before.stage, after.stage]
    graph.add_edges_from((task, "end", {"s": seconds}) for task, seconds in task_s.items())
    assert timeline.step_s == nx.dag_longest_path_length(graph, "s")
    assert timeline.busy_s == tuple(sum(task_s[t] for t in tasks) for tasks in schedule.workers)
    assert timeline.step_s >= max(timeline.busy_s)
    assert 0 <= timeline.bubble < 1


@grid
def test_work_done_ahead_fills_the_wait(stages, microbatches):
    """A backward task of which half needs no gradient: without a wait as before, else as if that half were done early.

    Under GPipe with one micro-batch, all but the last stage wait for as long as that half takes, or longer.
    """
    plan = gpipe(stages, microbatches)
    seconds = {Kind.FORWARD: Fraction(1), Kind.BACKWARD: Fraction(4)}
    late = simulate_schedule(plan, lambda task: seconds[task.kind], lambda a, b: Fraction(0))
    early = simulate_schedule(
        plan,
        lambda task: seconds[task.kind],
        lambda a, b: Fraction(0),
        ahead_s=lambda task: 2 if task.kind == Kind.BACKWARD else 0,
    )
    assert early.busy_s == late.busy_s
    assert early.step_s <= late.step_s
    if microbatches == 1:
        assert late.step_s == 5 * stages
        waits = sum(1 for stage in range(stages) if 2 * (stages - 1 - stage) + 2 * (stage < stages - 1) >= 2)
        assert early.step_s == late.step_s - 2 * waits
