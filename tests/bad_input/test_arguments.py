"""Arguments that differ from those planned: path, expected, found, at every call."""

import jax
import numpy as np
import pytest

import autopar
from tests.bad_input.steps import ONE, STATE, X, Y, planned, refused, same, step


@pytest.fixture(scope="module")
def spread():
    """The step after its first call."""
    found = autopar.parallelize(step, cluster="cpu:8", options=ONE)
    found(STATE, X, Y)
    return found


@pytest.mark.parametrize(
    "args, words",
    [
        ((STATE, X[:32], Y), (r"argument x .*float64\[64,16\]", r"found float64\[32,16\]", "plan and compile again")),
        ((STATE, X.astype("float32"), Y), (r"argument x .*float64\[64,16\]", r"found float32\[64,16\]")),
        (({**STATE, "w": X}, X, Y), (r"state\['w'\] .*float64\[16,32\]", r"found float64\[64,16\]")),
        (({**STATE, "bias": Y}, X, Y), (r"unexpected state\['bias'\]", "plan and compile again")),
        (({"w": STATE["w"]}, X, Y), (r"missing state\['v'\]",)),
        (([STATE["v"], STATE["w"]], X, Y), (r"missing state\['v'\]", r"unexpected state\[0\]")),
        ((STATE, X), ("missing y",)),
        ((STATE, X, "y"), (r"argument y .*float64\[64,8\]", "found a str")),
    ],
    ids=["shape", "dtype", "state", "more", "less", "structure", "missing", "text"],
)
def test_later_calls_are_checked(spread, args, words):
    with refused(autopar.PlanError, *words):
        spread(*args)
    assert same(spread(STATE, X, Y), jax.jit(step)(STATE, X, Y))  # nothing was lost


def test_an_argument_by_name_instead_of_by_position(spread):
    with refused(autopar.PlanError, "3 arguments were passed by position and 0 by name"):
        spread(STATE, X, y=Y)


def test_a_plan_for_other_shapes_or_another_step():
    plan = planned()
    with refused(autopar.PlanError, r"x float64\[64, 16\]", r"has x float64\[32, 16\]", "Plan again"):
        autopar.compile(step, STATE, X[:32], Y[:32], plan=plan)
    with refused(autopar.PlanError, "another version of 'step'", "the computation does not", "fingerprint"):
        autopar.compile(lambda state, x, y: (state, (x @ state["w"]).sum()), STATE, X, Y, plan=plan)
    with refused(autopar.PlanError, r"has 4 array arguments, this step has 3"):
        autopar.compile(lambda state, x: state, STATE, X, plan=plan)
    with refused(autopar.PlanError, r"argument x "):
        autopar.parallelize(step, plan=plan)(STATE, X[:32], Y[:32])


def test_the_plan_before_the_first_call():
    with refused(autopar.PlanError, "step has not been called", "Call it once", r"autopar\.plan\(step"):
        _ = autopar.parallelize(step).plan


def test_an_argument_that_is_no_array():
    with refused(autopar.TraceError, "argument x is a str", "static_argnames='x'"):
        planned(step, STATE, "x", Y)


def test_numpy_twice(spread):
    first, second = spread(STATE, X, Y), spread(STATE, X, Y)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, first, second)))


def test_a_donated_state():
    """What the user holds on one device survives; what a step returned is given to the next."""
    spread = autopar.parallelize(step, cluster="cpu:8", options=ONE, donate_argnums=0)
    first = jax.tree.map(jax.numpy.asarray, STATE)
    second, _ = spread(first, X, Y)
    assert same(first, STATE)
    third, _ = spread(second, X, Y)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(second))
    expected = jax.jit(step)(jax.jit(step)(STATE, X, Y)[0], X, Y)[0]
    assert same(third, expected)
    with refused(autopar.PlanError, r"state\['v'\] was deleted", "donate_argnums", "what that step returned"):
        spread(second, X, Y)
