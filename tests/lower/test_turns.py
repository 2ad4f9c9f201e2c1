"""What runs again waits for the backward pass, unit by unit, changes no number, and is planned as being there so."""

import sys

import jax
import numpy as np
import pytest

import autopar
from autopar.ir import FULL, NONE
from autopar.lower.turns import turns
from autopar.segments import BACKWARD
from tests.api.attending import ACCELERATORS, STATE, X, Y, planned, step


def plan_of(remat, **asked):
    return planned(remat, stages=1, cluster=ACCELERATORS, **asked)


@pytest.fixture(scope="module")
def executable():
    return autopar.compile(step, STATE, X, Y, plan=plan_of(FULL))


def test_results_are_those_of_one_device(executable):
    expected = jax.jit(step)(STATE, X, Y)
    for a, b in zip(jax.tree.leaves(executable(STATE, X, Y)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-9, atol=1e-13)


def test_units_wait_for_each_other(monkeypatch):
    found = []

    def noted(segments, k, plan):
        made = list(turns(segments, k, plan))
        found.append((k, segments, made))
        return made

    monkeypatch.setattr(sys.modules["autopar.lower.stage_programs"], "turns", noted)
    plan = plan_of(FULL)
    autopar.compile(step, STATE, X, Y, plan=plan).close()
    (segments, made) = next((s, m) for k, s, m in found if k == BACKWARD)
    again = segments.again[BACKWARD]
    before = set()
    waits = 0
    for turn in made:
        runs_again = {op.id in again for op in turn.ops}
        assert len(runs_again) == 1
        if runs_again == {True} and turn.after is not None:
            assert turn.after[0] in before and turn.kept
            waits += 1
        elif runs_again == {False}:
            before |= {v for op in turn.ops for v in op.results}
    assert sorted(op.id for turn in made for op in turn.ops) == sorted(op.id for op in segments.programs[BACKWARD].ops)
    (stage,) = plan.stages
    assert waits >= stage.units[1] - stage.units[0] - 1 > 0
    # Every operand is there when it is read.
    ready = {form[0] for forms in segments.programs[BACKWARD].inputs.values() for form in forms}
    own = {v for op in segments.programs[BACKWARD].ops for v in op.results}
    for turn in made:
        for op in turn.ops:
            assert not (set(op.operands) & own) - ready
            ready.update(op.results)


def test_what_one_unit_makes_again_is_planned_to_be_there_at_a_time():
    (kept,), (again,) = plan_of(NONE).stages, plan_of(FULL).stages
    assert kept.spared_bytes == 0 < again.spared_bytes < kept.residual_bytes - again.residual_bytes
    assert again.peak_bytes < kept.peak_bytes
    (waiting,) = plan_of(FULL, schedule="zb-h1").stages
    assert waiting.spared_bytes == 0


def test_xla_on_cpu_orders_as_it_likes():
    (stage,) = planned(FULL, stages=1).stages
    assert stage.spared_bytes == 0
