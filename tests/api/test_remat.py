"""What is computed again changes no number; what is kept is what was planned."""

import functools

import jax
import numpy as np
import pytest

import autopar
from autopar.ir import ATTENTION, FULL, NONE
from autopar.runtime.occupancy import local_bytes
from tests.api.attending import STATE, X, Y, by_logarithm, planned, step, treated

MIXES = [(ATTENTION,), (FULL,), (NONE, ATTENTION, FULL), (FULL, NONE)]


@functools.cache
def executable(words, **asked):
    return autopar.compile(step, STATE, X, Y, plan=treated(planned(**asked), words))


def numbers(found):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(found)]


@pytest.mark.parametrize("words", MIXES, ids="-".join)
@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_results_are_those_of_one_device_and_of_keeping_everything(words, schedule):
    found = numbers(executable(words, schedule=schedule)(STATE, X, Y))
    for a, b in zip(found, numbers(jax.jit(step)(STATE, X, Y)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    for a, b in zip(found, numbers(executable((NONE,), schedule=schedule)(STATE, X, Y)), strict=True):
        np.testing.assert_array_equal(a, b)


def held(stage):
    """Buffer name -> bytes on one device that a micro-batch keeps from the forward to the backward program."""
    reads = stage.programs["backward"].inputs
    return {n: local_bytes(stage.buffers[n], stage) for n in reads if stage.buffers[n].scope == "microbatch"}


@pytest.mark.parametrize("remat", [NONE, ATTENTION, FULL])
def test_programs_keep_what_was_planned(remat):
    plan = planned(remat)
    found = autopar.compile(step, STATE, X, Y, plan=plan)
    for stage, facts, audit in zip(found.pipeline.stages, plan.stages, found.audit.stages, strict=True):
        assert sum(held(stage).values()) == pytest.approx(facts.residual_bytes, rel=0.15)
        assert audit.peak_ratio >= 0.9


def test_less_is_kept_the_more_is_computed_again():
    kept = {}
    for words in ((NONE,), (ATTENTION,), (FULL,)):
        kept[words] = [sum(held(stage).values()) for stage in executable(words).pipeline.stages]
    assert all(n > a >= f for n, a, f in zip(kept[NONE,], kept[ATTENTION,], kept[FULL,], strict=True))


def test_attention_by_the_logarithm_of_the_sum_is_recognised():
    plan = planned(ATTENTION, fun=functools.partial(step, weigh=by_logarithm))
    assert sum(s.residual_bytes for s in plan.stages) < 0.8 * sum(s.residual_bytes for s in planned().stages)
