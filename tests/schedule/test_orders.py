"""Every schedule is legal, holds no more than it promises, and looks as it should."""

import pytest

from autopar.errors import OptionError
from autopar.schedule import (
    CHUNKED,
    MOST_IN_FLIGHT,
    SCHEDULES,
    Kind,
    check_schedule,
    flights,
    gpipe,
    in_flight,
    in_flight_bound,
    interleaved,
    make_schedule,
    one_f_one_b,
    zb_h1,
)
from autopar.schedule.orders import rounds

MICROBATCHES = range(1, 65)


def lists(schedule):
    return [" ".join(str(task) for task in tasks) for tasks in schedule.workers]


@pytest.mark.parametrize("stages", range(1, 17))
@pytest.mark.parametrize("name", sorted(SCHEDULES.keys() - CHUNKED))
def test_legal(name, stages):
    for microbatches in MICROBATCHES:
        schedule = make_schedule(name, stages, microbatches)
        check_schedule(schedule)
        assert schedule.name == name
        assert schedule.worker_of == tuple(range(stages))


@pytest.mark.parametrize("workers", range(1, 9))
@pytest.mark.parametrize("chunks", range(1, 5))
@pytest.mark.parametrize("name", sorted(CHUNKED))
def test_legal_with_several_stages_on_a_worker(name, chunks, workers):
    for microbatches in {*range(1, 2 * workers + 3), 63, 64}:
        schedule = make_schedule(name, chunks * workers, microbatches, workers)
        check_schedule(schedule)
        assert schedule.name == name
        assert schedule.worker_of == tuple(range(workers)) * chunks


def test_every_schedule_promises_how_much_it_holds():
    assert SCHEDULES.keys() == MOST_IN_FLIGHT.keys()


@pytest.mark.parametrize("stages", [1, 2, 5, 8])
@pytest.mark.parametrize("microbatches", [1, 3, 8, 40])
def test_in_flight(stages, microbatches):
    one = in_flight(one_f_one_b(stages, microbatches))
    assert one == tuple(min(microbatches, stages - stage) for stage in range(stages))
    assert in_flight(gpipe(stages, microbatches)) == (microbatches,) * stages
    assert max(in_flight(zb_h1(stages, microbatches))) <= max(one)
    assert in_flight(make_schedule("inference", stages, microbatches)) == (1,) * stages


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize(("stages", "microbatches"), [(1, 3), (4, 2), (4, 8), (6, 40)])
def test_flights_are_what_is_held_besides_the_task_that_runs(name, stages, microbatches):
    schedule = make_schedule(name, stages, microbatches, max(stages // 2, 1) if name in CHUNKED else None)
    seen = [set() for _ in range(stages)]
    for tasks in schedule.workers:
        for k, running in enumerate(tasks):
            done = {(t.kind, t.microbatch) for t in tasks[:k] if t.stage == running.stage}
            over = {m for kind, m in done if kind == max(schedule.kinds, key=list(Kind).index)}
            here = {m for kind, m in done if kind == Kind.FORWARD} - over - {running.microbatch}
            back = {m for m in here if (Kind.BACKWARD, m) in done}
            seen[running.stage].add((len(here - back), len(back)))
    for held, found, most in zip(seen, flights(schedule), in_flight(schedule), strict=True):
        assert {(f.waiting, f.pending) for f in found} <= held
        assert all(any(f.waiting >= w and f.pending >= p for f in found) for w, p in held)
        assert max(f.all for f in found) == most


def test_bounds_of_a_name_of_ones_own():
    schedule = one_f_one_b(3, 5)
    own = type(schedule)("mine", 3, 5, schedule.workers)
    check_schedule(own)
    assert in_flight_bound(own) == (5, 5, 5)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_gradients_are_summed_in_one_order(name):
    schedule = make_schedule(name, 6, 11, 3 if name in CHUNKED else None)
    for tasks in schedule.workers:
        for program in {(task.kind, task.stage) for task in tasks}:
            assert [t.microbatch for t in tasks if (t.kind, t.stage) == program] == list(range(11))


def test_interleaved_takes_turns_as_megatron_does():
    assert lists(interleaved(4, 4, 2)) == [
        "F0.0 F0.1 F2.0 F2.1 F0.2 B2.0 F0.3 B2.1 F2.2 B0.0 F2.3 B0.1 B2.2 B2.3 B0.2 B0.3",
        "F1.0 F1.1 F3.0 B3.0 F3.1 B3.1 F1.2 B1.0 F1.3 B1.1 F3.2 B3.2 F3.3 B3.3 B1.2 B1.3",
    ]


def test_interleaved_with_one_stage_on_each_worker_is_1f1b():
    assert interleaved(4, 7, 4).workers == one_f_one_b(4, 7).workers


def test_zb_h1_puts_weight_tasks_off_by_stage():
    first, *_, last = lists(zb_h1(4, 6))
    assert first == ("F0.0 F0.1 F0.2 F0.3 B0.0 W0.0 F0.4 B0.1 W0.1 F0.5 B0.2 W0.2 B0.3 W0.3 B0.4 W0.4 B0.5 W0.5")
    assert last == ("F3.0 B3.0 F3.1 B3.1 F3.2 B3.2 F3.3 B3.3 W3.0 F3.4 B3.4 W3.1 F3.5 B3.5 W3.2 W3.3 W3.4 W3.5")
    without = [[t for t in tasks if t.kind != Kind.WEIGHT] for tasks in zb_h1(4, 6).workers]
    assert without == [list(tasks) for tasks in one_f_one_b(4, 6).workers]


@pytest.mark.parametrize("workers", [1, 2, 4, 7])
def test_rounds_are_even_and_long_enough(workers):
    for microbatches in MICROBATCHES:
        found = rounds(microbatches, workers)
        lengths = [len(r) for r in found]
        assert [m for r in found for m in r] == list(range(microbatches))
        assert lengths == sorted(lengths, reverse=True)
        assert lengths[0] - lengths[-1] <= 1
        assert min(lengths) >= min(workers, microbatches)
        assert lengths[0] < 2 * workers
        if microbatches % workers == 0:
            assert set(lengths) == {workers}


@pytest.mark.parametrize(
    ("asked", "lesson"),
    [
        (("1f1", 4, 8), r"unknown schedule '1f1': did you mean '1f1b'\? Known: 1f1b, gpipe"),
        (("zero bubble", 4, 8), "Known: 1f1b, gpipe, inference, interleaved, zb-h1"),
        (("gpipe", 0, 8), "stages=0 was asked for; it must be a whole number, 1 or more"),
        (("1f1b", 4, -1), "microbatches=-1"),
        (("zb-h1", 4, 2.0), "microbatches=2.0"),
        (("inference", True, 2), "stages=True"),
        (("interleaved", 4, 8, 0), "workers=0"),
        (("interleaved", 4, 8), "say on how many workers"),
        (("interleaved", 10, 8, 4), r"10 stages do not divide among 4 workers. Take 8 or 12 stages"),
        (("interleaved", 3, 8, 4), r"Take 4 stages"),
        (("1f1b", 8, 8, 4), "one stage on each worker; 8 stages and 4 workers were asked for"),
    ],
)
def test_what_cannot_be_made(asked, lesson):
    with pytest.raises(OptionError, match=lesson):
        make_schedule(*asked)


def test_as_many_workers_as_stages_may_be_named():
    assert make_schedule("1f1b", 4, 8, 4) == make_schedule("1f1b", 4, 8)
