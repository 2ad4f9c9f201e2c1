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
