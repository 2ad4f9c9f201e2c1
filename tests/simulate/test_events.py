"""Messages that share links: the equations that a run must satisfy, and closed forms. All exact."""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.errors import PlanError
from autopar.schedule import Kind, Schedule, Task, gpipe, inference, interleaved, make_schedule, needs, one_f_one_b
from autopar.simulate import simulate_schedule
from autopar.simulate.events import Route, simulate_events
from tests.schedule.drawn import legal

known = st.one_of(
    st.builds(make_schedule, st.sampled_from(["gpipe", "1f1b", "zb-h1"]), st.integers(1, 5), st.integers(1, 8)),
    st.builds(lambda w, c, m: interleaved(w * c, m, w), st.integers(1, 4), st.integers(1, 3), st.integers(1, 8)),
)
seconds = st.integers(0, 20)


def drawn(data, schedule):
    """Times of tasks and hops, and ports: any sharing of any links."""
    task_s = {task: data.draw(seconds) for tasks in schedule.workers for task in tasks}
    hops = {(s, s + d): data.draw(seconds) for s in range(schedule.stages) for d in (-1, 1)}
    ports = {hop: tuple(sorted(data.draw(st.sets(st.integers(0, 3), max_size=2)))) for hop in hops}
    return task_s, hops, ports


def run(schedule, task_s, hops, ports=None):
    return simulate_events(
        schedule, task_s.__getitem__, lambda a, b: Route(hops[a, b], ports[a, b] if ports is not None else ())
    )


@given(st.one_of(legal(), known), st.data())
def test_without_ports_it_is_the_longest_path(schedule, data):
    task_s, hops, _ = drawn(data, schedule)
    expected = simulate_schedule(schedule, task_s.__getitem__, lambda a, b: hops[a, b])
    found = run(schedule, task_s, hops)
    assert (found.step_s, found.busy_s) == (expected.step_s, expected.busy_s)
    assert sorted(found.events) == sorted(expected.events)


@given(st.one_of(legal(), known), st.data())
def test_every_start_is_the_latest_of_what_it_waits_for(schedule, data):
    """The run satisfies the equations that define it, read off its result: first come, first served, at every port."""
    task_s, hops, ports = drawn(data, schedule)
    found = run(schedule, task_s, hops, ports)
    free, arrived = {}, {}
    assert [m.ready_s for m in found.messages] == sorted(m.ready_s for m in found.messages)
    for m in found.messages:
        hop = m.task.stage, m.target
        assert m.start_s == max([m.ready_s, *(free.get(port, 0) for port in ports[hop])])
        assert m.end_s == m.start_s + hops[hop]
        free |= dict.fromkeys(ports[hop], m.end_s)
        arrived[m.task] = m.end_s
    ends = {e.task: e.end_s for e in found.events}
    assert all(m.ready_s == ends[m.task] for m in found.messages)
    for worker, tasks in enumerate(schedule.workers):
        events = [e for e in found.events if e.worker == worker]
        assert tuple(e.task for e in events) == tasks
        before = 0
        for e in events:
            makers = [Task(k, s, e.task.microbatch) for k, s in needs(e.task.kind, e.task.stage, schedule.stages)]
            there = [ends[t] if t.stage == e.task.stage else arrived[t] for t in makers]
            assert e.start_s == max([before, *there]) and e.end_s == e.start_s + task_s[e.task]
            before = e.end_s


@given(st.one_of(legal(), known), st.data())
def test_a_port_carries_one_message_at_a_time(schedule, data):
    task_s, hops, ports = drawn(data, schedule)
    found = run(schedule, task_s, hops, ports)
    assert len(found.messages) == sum(a.stage != b for a, b in crossings(schedule))
    for port in range(4):
        here = sorted((m.start_s, m.end_s) for m in found.messages if port in ports[m.task.stage, m.target])
        assert all(one[1] <= two[0] for one, two in itertools.pairwise(here))


def crossings(schedule):
    for tasks in schedule.workers:
        for task in tasks:
            for kind, stage in needs(task.kind, task.stage, schedule.stages):
                yield Task(kind, stage, task.microbatch), task.stage


@pytest.mark.parametrize("hop", [Fraction(1, 2), Fraction(1), Fraction(7, 2)])
def test_the_slowest_of_task_and_link_sets_the_pace(hop):
    """Of two stages: the first task, all messages one after the other or all tasks, and the last task."""
    link = Route(hop, ("link",))
    found = simulate_events(inference(2, 10), lambda task: Fraction(1), lambda a, b: link)
    assert found.step_s == (1 + 10 * hop + 1 if hop > 1 else 1 + hop + 10)


@pytest.mark.parametrize("ports", [("there", "back"), ("link", "link")])
def test_gpipe_over_a_saturated_link(ports):
    """All activations go before all gradients, so that both directions do as well over one port as over two."""
    there, back = (Route(5, (port,)) for port in ports)
    found = simulate_events(gpipe(2, 8), lambda task: 1, lambda a, b: there if a < b else back)
    assert found.step_s == 2 * (1 + 8 * 5 + 1)


def test_one_f_one_b_over_a_link_with_one_port_takes_all_its_messages():
    """Both directions take turns, so no step is shorter than what goes over the link."""
    one = simulate_events(one_f_one_b(2, 16), lambda task: 1, lambda a, b: Route(5, ("link",)))
    assert one.step_s >= 2 * 16 * 5
    two = simulate_events(one_f_one_b(2, 16), lambda task: 1, lambda a, b: Route(5, ((a, b),)))
    assert two.step_s < one.step_s


def test_messages_of_one_worker_wait_for_each_other():
    """Interleaved stages send to the same neighbour over the same link."""
    schedule = interleaved(4, 8, 2)
    worker = schedule.worker_of

    def route(a, b):
        return Route(4, (("out", worker[a]), ("in", worker[b])))

    queued = simulate_events(schedule, lambda task: 1, route)
    free = simulate_events(schedule, lambda task: 1, lambda a, b: Route(4))
    assert queued.step_s > free.step_s and any(m.start_s > m.ready_s for m in queued.messages)


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_times_that_are_none(wrong):
    with pytest.raises(ValueError, match=r"F0\.0 takes .* s; a time must be finite and not negative"):
        simulate_events(gpipe(2, 2), lambda task: wrong, lambda a, b: Route(0.0))
    with pytest.raises(ValueError, match=r"a transfer from stage 0 to stage 1 takes .* s"):
        simulate_events(inference(2, 2), lambda task: 1.0, lambda a, b: Route(wrong))


def test_deadlocks_are_named():
    tasks = (Task(Kind.BACKWARD, 0, 0), Task(Kind.FORWARD, 0, 0))
    with pytest.raises(PlanError, match="deadlocks"):
        simulate_events(Schedule("mine", 1, 1, (tasks,)), lambda task: 1.0, lambda a, b: Route(0.0))
