"""What is computed again changes no number; what is kept is what was planned."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import autopar
from autopar.ir import ATTENTION, FULL, NONE
from autopar.plan import from_json, to_json
from autopar.runtime.occupancy import local_bytes
from tests.api.attending import BATCH, STATE, X, Y, by_logarithm, planned, step, treated


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


def held_for_weights(stage):
    """Bytes on one device that a micro-batch keeps while it waits for its weight program."""
    reads = [stage.buffers[n] for n in stage.programs["weight"].inputs]
    return sum(local_bytes(buffer, stage) for buffer in reads if buffer.scope == "microbatch")


@pytest.mark.parametrize("remat", [NONE, FULL])
def test_what_waits_for_gradients_of_weights_is_planned(remat):
    plan = planned(remat, schedule="zb-h1")
    found = autopar.compile(step, STATE, X, Y, plan=plan)
    assert [stage.pending for stage in plan.stages] == [0, 1]
    for stage, facts, audit in zip(found.pipeline.stages, plan.stages, found.audit.stages, strict=True):
        assert held_for_weights(stage) == facts.pending_bytes
        assert audit.peak_ratio >= 0.9
    if remat == FULL:  # what is computed again for both programs waits between them
        assert plan.stages[1].pending_bytes > 4 * plan.stages[1].residual_bytes


FEW_QUERIES = functools.partial(step, heads=1, queries=3)
"""Keys are split, not heads: softmax takes its maximum and sum over devices."""

COMMUNICATING = {
    "full": lambda: (step, planned(FULL, strategy="megatron")),
    "full, with gradients of weights apart": lambda: (step, planned(FULL, strategy="megatron", schedule="zb-h1")),
    "attention": lambda: (FEW_QUERIES, few_queries(ATTENTION)),
}


def few_queries(remat):
    return planned(remat, fun=FEW_QUERIES, microbatches=BATCH, strategy="megatron")


def audited(fun, plan):
    return autopar.compile(fun, STATE, X, Y, plan=plan).audit


@pytest.mark.parametrize("name", COMMUNICATING)
def test_what_is_communicated_again_is_in_the_plan(name):
    fun, plan = COMMUNICATING[name]()
    found = audited(fun, plan)
    assert found.agrees, [row for stage in found.stages for row in stage.rows if not row.agrees]
    assert all(c.phase == "backward" and c.count for stage in plan.stages for c in stage.again)
    assert all(stage.again for stage in plan.stages)


def test_a_plan_that_leaves_out_what_is_communicated_again_is_found_out():
    plan = planned(FULL, strategy="megatron")
    silent = dataclasses.replace(plan, stages=tuple(dataclasses.replace(s, again=()) for s in plan.stages))
    assert not any(stage.agrees for stage in audited(step, silent).stages)


def test_nothing_is_communicated_again_where_all_is_kept():
    assert not any(stage.again for stage in few_queries(NONE).stages)


@pytest.mark.parametrize("remat", [NONE, ATTENTION, FULL])
def test_communication_that_runs_again_is_no_compute(remat):
    plan = few_queries(remat)
    talk = [sum(c.seconds for c in stage.collectives) for stage in plan.stages]
    busy = [plan.microbatches * (s.forward_s + s.backward_s) + s.once_s for s in plan.stages]
    assert plan.communication_s == pytest.approx(sum(talk) / len(talk))  # stages have equal numbers of devices
    assert plan.compute_s == pytest.approx((sum(busy) - sum(talk)) / len(talk))
    assert sum(plan.phase_s.values()) == pytest.approx(sum(busy))
    assert plan.collectives == tuple(c for stage in plan.stages for c in stage.collectives)
    rows = str(plan).split("Communication in a step by cause")[1]
    assert ("  again  " in rows) == any(stage.again for stage in plan.stages) == (remat != NONE)


def test_a_plan_file_keeps_what_runs_again():
    plan = few_queries(FULL)
    assert from_json(to_json(plan)).stages == plan.stages
