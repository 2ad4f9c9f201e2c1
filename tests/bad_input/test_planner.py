"""What the planner cannot do, and what it did not manage in time."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pulp
import pytest
from jax.extend.core import Primitive
from jax.interpreters import mlir

import autopar
from autopar.planner.solve import HighsProgram, Outcome
from tests.bad_input.steps import ONE, STATE, X, Y, planned, refused, same, step


def test_cbc_is_missing(monkeypatch):
    monkeypatch.setattr(pulp.PULP_CBC_CMD, "available", lambda self: False)
    with refused(autopar.SolverError, "'cbc' was asked for", "has no CBC", r"solver='highs'"):
        planned(options=autopar.Options(solver="cbc"))


def nothing_found(self, *limits):
    return Outcome("time limit", {}, -math.inf, False, 0.0)


def test_nothing_is_found_in_time(monkeypatch):
    for stage in ("relax", "dive", "branch"):
        monkeypatch.setattr(HighsProgram, stage, nothing_found)
    with refused(autopar.SolverError, "highs found no plan on mesh 8", "time limit of 5 ms", "Options\\(time_limit_s="):
        planned(options=autopar.Options(mesh=(8,), time_limit_s=0.005))


def test_what_was_found_in_time_is_kept(monkeypatch):
    branch = HighsProgram.branch

    def stopped(self, *limits):
        return dataclasses.replace(branch(self, *limits), status="time limit", bound=-math.inf)

    monkeypatch.setattr(HighsProgram, "relax", nothing_found)
    monkeypatch.setattr(HighsProgram, "branch", stopped)
    plan = planned()
    assert plan.certificate.status == "time limit" and plan.gap == 1.0 and plan.certificate.bound_s == 0
    assert "time limit" in str(plan)
    assert same(autopar.compile(step, STATE, X, Y, plan=plan)(STATE, X, Y), jax.jit(step)(STATE, X, Y))


def test_one_mesh_out_of_time_does_not_lose_the_others(monkeypatch):
    relax, calls = HighsProgram.relax, []

    def second_fails(self, limit):
        calls.append(self)
        return nothing_found(self) if self is not calls[0] else relax(self, limit)

    monkeypatch.setattr(HighsProgram, "relax", second_fails)
    monkeypatch.setattr(HighsProgram, "branch", nothing_found)
    plan = planned(options=autopar.Options())
    assert plan.mesh_shape == (2, 4) and any("mesh 8 was left out" in w for w in plan.warnings)


def test_meshes_that_were_not_tried_are_named():
    plan = planned(options=autopar.Options(time_limit_s=1e-6))
    assert any("ended before mesh" in w and "2x2x2" in w for w in plan.warnings)
    assert same(autopar.compile(step, STATE, X, Y, plan=plan)(STATE, X, Y), jax.jit(step)(STATE, X, Y))


@pytest.mark.parametrize("budget, solver", [(1024, "highs"), (5000, "highs"), (1024, "cbc")])
def test_no_room(budget, solver):
    words = (
        "step does not fit: on mesh 8 it needs, by the planner's count, at least [0-9.]+ KiB per device",
        r"at steps\.py:\d+ \(loss\)",
        "the budget is",
        "short",
        "Largest holders there",
        r"\(64, \d+\) \d+ KiB",
        r"memory_bytes=\d+ should do",
        r"\d+ devices",
    )
    with refused(autopar.InfeasibleError, *words) as caught:
        planned(options=autopar.Options(mesh=(8,), memory_bytes=budget, solver=solver))
    enough = caught.value.enough_bytes
    assert f"memory_bytes={enough:.0f} should do" in str(caught.value)
    # What it says should do does, and well below the bound nothing does.
    assert planned(options=autopar.Options(mesh=(8,), memory_bytes=1.25 * enough)).peak_bytes <= 1.25 * enough
    with refused(autopar.InfeasibleError, "does not fit"):
        planned(options=autopar.Options(mesh=(8,), memory_bytes=0.8 * caught.value.least_bytes))


def test_of_all_meshes_the_one_that_needs_least_is_named():
    with refused(autopar.InfeasibleError, r"on mesh \d(x\d)* it needs", r"memory_bytes=\d+ should do") as caught:
        planned(options=autopar.Options(max_axes=2, memory_bytes=1024))
    with refused(autopar.InfeasibleError, "on mesh 8") as alone:
        planned(options=autopar.Options(mesh=(8,), memory_bytes=1024))
    assert caught.value.enough_bytes <= alone.value.enough_bytes


def test_dims_that_no_axis_divides():
    state = {"w": STATE["w"][:7, :9], "v": STATE["v"][:9, :5]}
    args = (state, X[:11, :7], Y[:11, :5])
    plan = planned(step, *args)
    assert "x of shape (11, 7): no dim divides by an axis of mesh 8; kept whole." in plan.warnings
    assert "no dim divides" in str(plan)
    assert same(autopar.compile(step, *args, plan=plan)(*args), jax.jit(step)(*args))


def test_a_batch_that_the_devices_do_not_divide():
    args = (STATE, X[:60], Y[:60])
    plan = planned(step, *args)
    assert any("x of shape (60, 16): dim 0 does not divide by the 8 devices of mesh 8" in w for w in plan.warnings)
    assert same(autopar.compile(step, *args, plan=plan)(*args), jax.jit(step)(*args))
    assert not planned().warnings


mystery_p = Primitive("mystery")
mystery_p.def_abstract_eval(lambda x: jax.core.ShapedArray(x.shape, x.dtype))
mlir.register_lowering(mystery_p, mlir.lower_fun(lambda x: jnp.flip(x, 0) * 2 + x[:1], multiple_results=False))


@pytest.mark.parametrize("backend", ["shard_map", "gspmd"])
def test_a_primitive_without_a_rule(backend):
    def odd(w, x):
        h = mystery_p.bind(x @ w)
        return w + x.T @ h

    args = (STATE["w"], X)
    exe = autopar.compile(odd, *args, cluster="cpu:8", options=dataclasses.replace(ONE, backend=backend))
    (warning,) = exe.plan.warnings
    assert warning.startswith("mystery at test_planner.py:") and "gathered operands" in warning
    assert "autopar.register_rule" in warning and "mystery" in str(exe.plan)
    np.testing.assert_allclose(exe(*args), jax.jit(odd)(*args), rtol=1e-12)
