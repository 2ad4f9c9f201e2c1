"""Large programs are approached by a first-order method: the bound holds, and plans are within the gap asked for."""

import random

import numpy as np
import pytest

from autopar.planner import Options, plan_step, solve
from autopar.planner.one_mesh import MeshProgram, prepare
from tests.planner.graphs import exhaustive, random_step
from tests.planner.test_optimal import CLUSTERS


@pytest.fixture
def always(monkeypatch):
    """As if every program were large; counts how often one is approached."""
    asked = []
    approach = solve.HighsProgram.approach

    def counted(self, time_limit_s, gap):
        asked.append(self)
        return approach(self, time_limit_s, gap)

    monkeypatch.setattr(solve, "_LARGE", 0)
    monkeypatch.setattr(solve.HighsProgram, "approach", counted)
    return asked


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("name", ["balanced", "latency"])
def test_plans_are_within_the_gap(always, name, seed):
    cluster, shape = CLUSTERS[name], (4,) if name == "balanced" else (2,)
    step = random_step(random.Random(seed), 2 + seed % 4)
    best = exhaustive(step, cluster, cluster.mesh(shape))
    plan = plan_step(step, cluster, Options(mesh=shape, mip_gap=0.02))
    assert always
    assert plan.certificate.bound_s <= best * (1 + 1e-6) + 1e-9
    assert plan.step_s <= best * 1.02 + 1e-9


def program(seed: int) -> solve.HighsProgram:
    cluster, options = CLUSTERS["balanced"], Options()
    prepared = prepare(random_step(random.Random(seed), 4), options)
    return MeshProgram(prepared, cluster, cluster.mesh((2, 2)), options, {}).highs


@pytest.mark.parametrize("seed", range(20))
def test_any_duals_bound_the_relaxation(seed):
    """Weak duality: also of duals that are far off, as of a method that was stopped."""
    found = program(seed)
    least = found.relax(10.0).bound
    noise = np.random.default_rng(seed)
    for _ in range(20):
        y = noise.normal(0.0, 10.0, found._lp.num_row_)
        bound, reduced = found._weak_duality(y)
        assert bound / found.scale <= least + 1e-9
        assert reduced.shape == (found._lp.num_col_,)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_found_is_feasible_and_close(seed):
    near = program(seed).approach(10.0, 5e-3)
    exact = program(seed).relax(10.0)
    assert near.bound <= exact.bound * (1 + 1e-7) + 1e-9
    assert near.bound >= exact.bound * 0.99 - 1e-9


def test_a_program_that_is_approached_can_be_relaxed_afterwards():
    found = program(7)
    found.approach(10.0, 5e-3)
    assert found.relax(10.0).bound == pytest.approx(program(7).relax(10.0).bound)
