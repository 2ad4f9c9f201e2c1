"""What the checker refuses, and what it says."""

import dataclasses

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.errors import PlanError
from autopar.schedule import Kind, Schedule, Task, check_schedule, executed, gpipe, one_f_one_b, zb_h1
from tests.schedule.drawn import legal, waits

F, B, W = Kind.FORWARD, Kind.BACKWARD, Kind.WEIGHT


def with_list(schedule: Schedule, worker: int, tasks) -> Schedule:
    lists = list(schedule.workers)
    lists[worker] = tuple(tasks)
    return dataclasses.replace(schedule, workers=tuple(lists))


def swapped(schedule: Schedule, worker: int, first: int, second: int) -> Schedule:
    tasks = list(schedule.workers[worker])
    tasks[first], tasks[second] = tasks[second], tasks[first]
    return with_list(schedule, worker, tasks)


def refused(schedule: Schedule, lesson: str) -> None:
    with pytest.raises(PlanError, match=lesson):
        check_schedule(schedule)


def test_a_task_missing():
    schedule = one_f_one_b(3, 4)
    less = [task for task in schedule.workers[1] if task != Task(B, 1, 2)]
    refused(
        with_list(schedule, 1, less),
        r"^schedule '1f1b' of 3 stages and 4 micro-batches lacks B1\.2\. Every stage runs each of its",
    )
    refused(with_list(schedule, 1, ()), r"lacks B1\.0, B1\.1, B1\.2, B1\.3, F1\.0 and 3 more")


def test_a_task_twice():
    schedule = one_f_one_b(3, 4)
    refused(
        with_list(schedule, 2, (*schedule.workers[2], Task(B, 2, 3))), r"runs tasks more than once: B2\.3\. Keep one"
    )


def test_a_task_that_is_not_there():
    schedule = one_f_one_b(3, 4)
    refused(with_list(schedule, 0, (*schedule.workers[0], Task(F, 0, 4))), r"not there: F0\.4\. Both count from 0")
    refused(with_list(schedule, 0, (*schedule.workers[0], Task(F, -1, 0))), r"not there: F-1\.0\.")


def test_a_task_on_the_wrong_worker():
    schedule = gpipe(3, 4)
    moved = Task(F, 1, 2)
    without = with_list(schedule, 1, [task for task in schedule.workers[1] if task != moved])
    refused(
        with_list(without, 0, (*schedule.workers[0], moved)),
        r"runs stage 1 on worker 1 but F1\.2 on worker 0\. A stage's parameters lie on one worker: put all",
    )


def test_kinds_that_make_no_pipeline():
    refused(Schedule("mine", 1, 1, ()), "has tasks of the kinds none; it needs forward tasks")
    refused(Schedule("mine", 1, 1, ((Task(F, 0, 0), Task(W, 0, 0)),)), "has tasks of the kinds F, W; it needs forward")


def test_backward_before_its_forward():
    refused(
        swapped(gpipe(2, 2), 0, 0, 2),
        r"deadlocks: worker 0 has come to B0\.0 and waits for F0\.0\. .* move F0\.0 up",
    )


def test_weight_before_its_backward():
    refused(swapped(zb_h1(1, 1), 0, 1, 2), r"worker 0 has come to W0\.0 and waits for B0\.0")


def test_two_workers_that_wait_for_each_other():
    schedule = one_f_one_b(2, 2)
    crossed = with_list(schedule, 0, [Task(F, 0, 0), Task(B, 0, 0), Task(F, 0, 1), Task(B, 0, 1)])
    check_schedule(crossed)
    crossed = with_list(crossed, 1, [Task(F, 1, 0), Task(F, 1, 1), Task(B, 1, 0), Task(B, 1, 1)])
    refused(
        dataclasses.replace(crossed, name="mine"),
        r"^schedule 'mine' of 2 stages and 2 micro-batches deadlocks: worker 0 has come to B0\.0 and waits for B1\.0; "
        r"worker 1 has come to F1\.1 and waits for F0\.1\. .* move B1\.0 or F0\.1 up$",
    )


def test_a_worker_that_waits_for_what_nobody_runs():
    schedule = Schedule("mine", 2, 1, ((), (Task(F, 1, 0),)))
    with pytest.raises(PlanError, match=r"cannot end: F1\.0 waits for F0\.0, which no worker runs\. Add it to a list"):
        list(executed(schedule))


def test_more_in_flight_than_promised():
    renamed = dataclasses.replace(gpipe(3, 8), name="1f1b")
    refused(renamed, r"holds 8 micro-batches at a time on stage 0; a schedule of that name holds at most 3 there")
    check_schedule(dataclasses.replace(renamed, name="mine"))


@given(legal())
def test_legal_schedules_pass(schedule):
    check_schedule(schedule)


@given(legal(), st.data())
def test_refused_exactly_where_waiting_goes_round(schedule, data):
    worker = data.draw(st.sampled_from([w for w, tasks in enumerate(schedule.workers) if tasks]))
    shuffled = with_list(schedule, worker, data.draw(st.permutations(schedule.workers[worker])))
    if nx.is_directed_acyclic_graph(waits(shuffled)):
        check_schedule(shuffled)
    else:
        refused(shuffled, "deadlocks: worker")


@given(legal())
def test_executed_runs_every_task_after_what_it_needs(schedule):
    ran = list(executed(schedule))
    place = {task: i for i, (_, task) in enumerate(ran)}
    assert len(place) == len(ran) == sum(map(len, schedule.workers))
    assert all(place[before] < place[after] for before, after in waits(schedule).edges)
    assert all(schedule.worker_of[task.stage] == worker for worker, task in ran)
