"""The integer program finds the optimum that enumeration finds."""

import random

import pytest

from autopar.mesh import Cluster
from autopar.planner import Options, plan_step
from tests.planner.graphs import exhaustive, random_step

CLUSTERS = {
    "bandwidth": Cluster.uniform(4, float("inf"), float("inf"), 1.0, 1.0),
    "balanced": Cluster.uniform(4, 1e3, 1e3, 0.5, 1e2),
    "latency": Cluster.uniform(2, 1e2, 1e3, 10.0, 1e3),
}


def check(seed: int, ops: int, cluster: Cluster, shape: tuple[int, ...], **settings) -> None:
    step = random_step(random.Random(seed), ops)
    best = exhaustive(step, cluster, cluster.mesh(shape))
    plan = plan_step(step, cluster, Options(mesh=shape, mip_gap=0.0, **settings))
    assert plan.step_s == pytest.approx(best, rel=1e-6, abs=1e-9)
    assert plan.certificate.bound_s <= best * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize("seed", range(120))
def test_one_axis(seed):
    check(seed, 2 + seed % 4, CLUSTERS["balanced"], (4,))


@pytest.mark.parametrize("seed", range(60))
def test_two_axes(seed):
    check(1000 + seed, 2 + seed % 2, CLUSTERS["balanced"], (2, 2))


@pytest.mark.parametrize("seed", range(30))
def test_latency_bound(seed):
    check(2000 + seed, 2 + seed % 5, CLUSTERS["latency"], (2,))


@pytest.mark.parametrize("seed", range(20))
def test_divided_work_is_a_restriction(seed):
    """Forbidding repeated products can only cost."""
    step = random_step(random.Random(3000 + seed), 5)
    cluster = CLUSTERS["bandwidth"]
    free = plan_step(step, cluster, Options(mesh=(4,), mip_gap=0.0))
    divided = plan_step(step, cluster, Options(mesh=(4,), mip_gap=0.0, divide_work=True))
    assert free.step_s == pytest.approx(0.0, abs=1e-9)  # repeating everything is free when compute is
    assert divided.step_s >= free.step_s


@pytest.mark.parametrize("seed", range(10))
def test_cbc_agrees_with_highs(seed):
    step = random_step(random.Random(4000 + seed), 5)
    cluster = CLUSTERS["balanced"]
    found = [plan_step(step, cluster, Options(mesh=(4,), mip_gap=0.0, solver=s)).step_s for s in ("highs", "cbc")]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
