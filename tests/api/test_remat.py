"""What is computed again changes no number; what is kept is what was planned."""

import functools

import jax
import numpy as np
import pytest

import autopar
from autopar.ir import ATTENTION, FULL, NONE
from autopar.runtime.occupancy import local_bytes
from tests.api.attending import STATE, X, Y, by_logarithm, planned, step, treated


@functools.cache
def executable(*remat, **asked):
    """With one choice for all units, as planned; with several, units take turns."""
    plan = planned(*remat) if len(remat) == 1 else treated(planned(**asked), remat)
    return autopar.compile(step, STATE, X, Y, plan=plan)


@functools.cache
def expected():
    return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(step)(STATE, X, Y))]


@pytest.mark.parametrize(
    "found",
    [
        lambda: executable(ATTENTION),
        lambda: executable(FULL),
        lambda: executable(NONE, ATTENTION, FULL),
        lambda: executable(FULL, NONE, ATTENTION, schedule="zb-h1"),
    ],
    ids=["attention", "full", "mixed", "mixed with gradients of weights apart"],
)
def test_results_are_those_of_one_device(found):
    for a, b in zip(jax.tree.leaves(found()(STATE, X, Y)), expected(), strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-9, atol=1e-13)


def held(stage):
    """Bytes on one device that a micro-batch keeps from the forward to the backward program."""
    reads = [stage.buffers[n] for n in stage.programs["backward"].inputs]
    return sum(local_bytes(buffer, stage) for buffer in reads if buffer.scope == "microbatch")


@pytest.mark.parametrize("remat", [NONE, ATTENTION, FULL])
def test_programs_keep_what_was_planned_and_need_no_more_memory(remat):
    plan, found = planned(remat), executable(remat)
    for stage, facts, audit in zip(found.pipeline.stages, plan.stages, found.audit.stages, strict=True):
        assert held(stage) == pytest.approx(facts.residual_bytes, rel=0.15)
        assert audit.peak_ratio >= 0.9


def test_less_is_kept_the_more_is_computed_again():
    kept = [[held(stage) for stage in executable(remat).pipeline.stages] for remat in (NONE, ATTENTION, FULL)]
    assert all(n > a > f for n, a, f in zip(*kept, strict=True))


def test_attention_by_the_logarithm_of_the_sum_is_recognised():
    plan = planned(ATTENTION, fun=functools.partial(step, weigh=by_logarithm))
    assert sum(s.residual_bytes for s in plan.stages) < 0.8 * sum(s.residual_bytes for s in planned().stages)


@functools.cache
def split(remat, schedule="1f1b", fun=step, microbatches=4):
    """A plan whose stages are tensor parallel, and its programs."""
    asked = {"schedule": schedule, "microbatches": microbatches, "strategy": "megatron"}
    plan = planned(remat, fun=fun, **asked)
    return plan, autopar.compile(fun, STATE, X, Y, plan=plan)


def cores_that_communicate(remat):
    """Of one head and few queries, so that keys are split: softmax then takes its maximum and sum over devices."""
    return split(remat, fun=FEW_QUERIES, microbatches=BATCH)


FEW_QUERIES = functools.partial(step, heads=1, queries=3)
COMMUNICATING = {
    "full": lambda: split(FULL),
    "full, gradients of weights apart": lambda: split(FULL, "zb-h1"),
    "attention": lambda: cores_that_communicate(ATTENTION),
    "full, cores that communicate": lambda: cores_that_communicate(FULL),
}


@pytest.mark.parametrize("name", COMMUNICATING)
def test_what_is_communicated_again_is_in_the_plan(name):
    plan, found = COMMUNICATING[name]()
    assert found.audit.agrees, [row for stage in found.audit.stages for row in stage.rows if not row.agrees]
    assert all(stage.again for stage in plan.stages)
    assert {c.phase for stage in plan.stages for c in stage.again} == {"backward"}
    silent = dataclasses.replace(plan, stages=tuple(dataclasses.replace(s, again=()) for s in plan.stages))
    assert not autopar.compile(FEW_QUERIES if "core" in name or name == ATTENTION else step, STATE, X, Y, plan=silent).audit.agrees


def test_nothing_is_communicated_again_where_all_is_kept():
    assert not any(stage.again for stage in split(NONE)[0].stages)


def test_communication_that_runs_again_is_no_compute():
    plan, free = cores_that_communicate(FULL)[0], cores_that_communicate(NONE)[0]
    for p in (plan, free):
        talk = [sum(c.seconds for c in stage.collectives) for stage in p.stages]
        assert p.communication_s == pytest.approx(sum(talk) / len(talk))
        assert p.communication_s + p.compute_s + p.idle_s == pytest.approx(p.step_s)
        assert p.collectives == tuple(c for stage in p.stages for c in stage.collectives)
        for stage in p.stages:
            busy_s = p.microbatches * (stage.forward_s + stage.backward_s) + stage.once_s
            assert busy_s == pytest.approx(stage.plan.compute_s + again_s(stage, p) + sum(c.seconds for c in stage.collectives))
