"""A plan in time: what it says agrees with the plan, and its parts add up."""

import dataclasses
import math

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autopar
from autopar.mesh import Cluster
from autopar.schedule import Kind, flights, in_flight, make_schedule
from autopar.simulate import simulate, simulate_plan
from tests.api import attending
from tests.api.pipelines import STATE, X, Y, planned, step
from tests.report.plans import decoder, pipeline, stage

SCHEDULES = ("1f1b", "gpipe", "zb-h1")


def whole(microbatches=1, **asked):
    """A plan without stages."""
    options = autopar.Options(microbatches=microbatches, **asked)
    return autopar.plan(step, STATE, X, Y, cluster="h100:4", options=options)


def every_plan():
    """Searched and hand-made, with stages and without."""
    for schedule in SCHEDULES:
        yield planned(schedule=schedule)
        yield attending.planned("full", schedule=schedule)
        yield attending.planned("auto", stages=4, schedule=schedule)
    yield planned(stages=1)
    yield whole()
    yield whole(4)


@pytest.mark.parametrize("contention", [False, True])
def test_the_times_of_a_worker_add_up_to_the_step(contention):
    for plan in every_plan():
        found = simulate(plan, contention=contention)
        for w in found.workers:
            parts = (w.compute_s, w.collective_s, w.exposed_s, w.idle_s)
            assert min(parts) >= -1e-12 and sum(parts) == pytest.approx(found.step_s, rel=1e-9)


def test_at_full_speed_it_is_the_plan():
    for plan in every_plan():
        found = simulate(plan, contention=False)
        assert found.step_s == pytest.approx(plan.step_s, rel=1e-9)
        assert found.bubble == pytest.approx(plan.idle_s / plan.step_s, abs=1e-9)
        devices = sum(w.devices for w in found.workers)
        for name in ("compute", "collective"):
            seconds = sum(getattr(w, f"{name}_s") * w.devices for w in found.workers) / devices
            planned_s = plan.compute_s if name == "compute" else plan.communication_s
            assert seconds == pytest.approx(planned_s, rel=1e-6, abs=1e-12)


def test_contention_makes_no_step_shorter():
    for plan in every_plan():
        assert simulate(plan).step_s >= simulate(plan, contention=False).step_s - 1e-12


def test_the_memory_of_a_stage_peaks_at_what_its_plan_says():
    for plan in every_plan():
        found = simulate(plan)
        peaks = [s.peak_bytes for s in plan.stages] or [plan.peak_bytes]
        assert [w.peak_bytes for w in found.workers] == peaks
        assert found.peak_bytes == plan.peak_bytes or plan.stages


sizes = st.integers(0, 10**6)


@st.composite
def stages(draw):
    """A stage of any sizes under any schedule, holding what its schedule says, as a search writes it down."""
    count, microbatches = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    schedule = make_schedule(draw(st.sampled_from(SCHEDULES)), count, microbatches)
    index = draw(st.integers(0, count - 1))
    kept, pending = draw(sizes), draw(sizes)
    most = max(flights(schedule)[index], key=lambda f: f.waiting * kept + f.pending * pending)
    facts = dataclasses.replace(
        stage(0), in_flight=in_flight(schedule)[index], pending=most.pending, residual_bytes=kept,
        pending_bytes=pending, spared_bytes=0, waiting_bytes=draw(sizes), handed_bytes=draw(sizes),
    )  # fmt: skip
    return schedule, index, facts, most


@given(stages())
def test_memory_peaks_where_the_schedule_holds_most(drawn):
    schedule, index, facts, most = drawn
    facts = dataclasses.replace(facts, plan=dataclasses.replace(facts.plan, peak_bytes=300 * 2**20))
    others = [dataclasses.replace(facts, devices=(8 * s, 8 * s + 8)) for s in range(schedule.stages)]
    plan = pipeline(
        schedule.name, cluster=Cluster.parse(f"h100:{schedule.stages}x8").to_dict(), stages=tuple(others),
        microbatches=schedule.microbatches,
    )  # fmt: skip
    worker = simulate(plan).workers[index]
    besides = most.waiting * facts.residual_bytes + most.pending * facts.pending_bytes
    assert worker.peak_bytes == facts.plan.peak_bytes + facts.waiting_bytes + facts.handed_bytes + besides
    if most.all == facts.in_flight:
        assert worker.peak_bytes == facts.peak_bytes
    times, levels = zip(*worker.memory, strict=True)
    assert list(times) == sorted(set(times)) and times[0] == 0 and min(levels) >= 0
    assert levels[-1] == min(levels)  # nothing is left over


def test_several_stages_of_a_worker_hold_less_than_each_by_itself():
    plan = pipeline(microbatches=4)
    a, b = plan.stages
    plan = dataclasses.replace(plan, stages=(a, b, a, b), schedule="interleaved")
    found = simulate(plan)
    assert [w.stages for w in found.workers] == [(0, 2), (1, 3)]
    for worker in found.workers:
        alone = sum(plan.stages[s].peak_bytes for s in worker.stages)
        assert max(plan.stages[s].peak_bytes for s in worker.stages) < worker.peak_bytes <= alone
        assert len([u for u in found.updates if u.end_s > u.start_s]) == 2


def test_a_slow_link_is_exposed_and_its_messages_queue():
    plan = planned()
    slow = Cluster.uniform(4, 1e8, 1e9, 1e-3, 1e6).to_dict()
    plan = dataclasses.replace(plan, cluster=slow)
    queued, free = simulate(plan), simulate(plan, contention=False)
    assert queued.step_s > free.step_s > plan.step_s
    assert queued.workers[1].exposed_s > 0 and queued.workers[0].exposed_s > 0
    forward, back = queued.links
    assert (forward.source, forward.target, forward.messages) == (0, 1, 4) and back.messages == 4
    assert forward.busy_s == pytest.approx(4 * (1e-3 + forward.bytes / 4 / 1e6))
    assert forward.queued_s > 0 and all(link.queued_s == 0 for link in free.links)
    assert simulate_plan(plan).step_s == free.timeline.step_s


def test_utilisation_is_work_by_what_was_possible():
    plan = whole()
    found = simulate(plan)
    one = 2 * 32 * 16 * 16
    assert (found.flops, found.dtype, found.again_flops) == (11 * one, "float64", 0)
    assert found.peak_flops_per_s == 4 * 67e12
    assert found.mfu == found.hfu == pytest.approx(11 * one / (4 * 67e12 * plan.step_s))
    half = simulate(plan, flops=5.5 * one, dtype="bfloat16")
    assert half.mfu == pytest.approx(found.mfu / 2 * 67 / 989.4)
    again = attending.planned("full")
    more = simulate(again)
    assert more.hfu / more.mfu == pytest.approx(1 + again.again_flops / sum(again.flops.values()))


def test_a_run_takes_whole_steps_of_all_devices():
    found = simulate(decoder(cluster=Cluster.parse("h100:8").to_dict(), phase_s=PHASES), units=1000)
    bill = found.bill(2500, 2.0)
    assert (bill.steps, bill.units) == (3, 2500)
    assert bill.hours == pytest.approx(3 * found.step_s / 3600)
    assert bill.device_hours == pytest.approx(8 * bill.hours) and bill.cost == pytest.approx(2 * bill.device_hours)
    assert found.bill(2500).cost is None and found.units_per_s == pytest.approx(1000 / found.step_s)


PHASES = {"forward": 0.01, "backward": 0.02, "update": 0.001}


def test_a_plan_without_stages_goes_phase_by_phase():
    plan = decoder(phase_s=PHASES, microbatches=2)
    found = simulate(plan)
    assert [str(e.task) for e in found.timeline.events] == ["F0.0", "B0.0", "F0.1", "B0.1"]
    assert found.step_s == pytest.approx(sum(PHASES.values())) and found.bubble == pytest.approx(0, abs=1e-12)
    assert found.timeline.step_s == pytest.approx(0.03)
    (update,) = found.updates
    assert update.end_s - update.start_s == pytest.approx(0.001)
    assert found.links == () and {task.kind for task, *_ in found.timeline.events} == {Kind.FORWARD, Kind.BACKWARD}


def test_plans_too_old_say_what_they_lack():
    with pytest.raises(autopar.PlanError, match=r"plan format 1\). Plan again"):
        simulate(decoder(phase_s={}))
    old = decoder(phase_s=PHASES)
    assert simulate(old).mfu is None and simulate(old).hfu is None
    with pytest.raises(autopar.OptionError, match=r"older than plan format 6.*dtype='bfloat16'"):
        simulate(old, flops=1e12)
    assert simulate(old, flops=1e12, dtype="float32").mfu > 0


@pytest.mark.parametrize("wrong", [{"flops": -1.0}, {"units": math.nan}, {"units": math.inf}])
def test_numbers_that_make_no_sense(wrong):
    with pytest.raises(autopar.OptionError, match="makes no sense"):
        simulate(decoder(phase_s=PHASES), **wrong)


def test_a_bill_needs_units_and_a_price_that_makes_sense():
    with pytest.raises(autopar.OptionError, match="units=batch_size"):
        simulate(decoder(phase_s=PHASES)).bill(1e12)
    for budget, price in ((-1, 1.0), (1e9, -2.0), (math.inf, 1.0)):
        with pytest.raises(autopar.OptionError, match="makes no sense"):
            simulate(decoder(phase_s=PHASES), units=10).bill(budget, price)


def test_it_is_a_verb_of_plans():
    plan = autopar.plan(lambda w: w * 2, jax.ShapeDtypeStruct((8,), "float32"), cluster="h100:2")
    assert plan.simulate(units=8).units == 8 and autopar.simulate(plan).step_s == pytest.approx(plan.step_s)
