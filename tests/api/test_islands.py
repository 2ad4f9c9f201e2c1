"""Pipelines over islands of unlike devices: planned for each, and run with equal results."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

import autopar
from autopar import Cluster
from autopar.simulate import simulate_plan
from tests.api.pipelines import STATE, X, Y, planned, step

SLOW = Cluster.uniform(2, 1e8, 1e9, 1e-7, 1e9)
FAST = Cluster.uniform(4, 2e8, 2e9, 1e-7, 1e9)
MIXED = Cluster.joined([SLOW, FAST], latency_s=1e-6, bytes_per_s=5e8)


def limited(slow_bytes, fast_bytes):
    """The mixed cluster with so much memory on each device."""
    islands = [SLOW.with_memory(slow_bytes), FAST.with_memory(fast_bytes)]
    return Cluster.joined(islands, latency_s=1e-6, bytes_per_s=5e8)


def islands_of(plan):
    cluster = Cluster.from_dict(plan.cluster)
    return [cluster.island_at(stage.devices[0]) for stage in plan.stages]


@functools.cache
def expected(steps=3):
    state, metrics = STATE, None
    for _ in range(steps):
        state, metrics = jax.jit(step)(state, X, Y)
    return state, metrics


RUNS = {
    "searched": {"cluster": MIXED, "stages": None, "max_stages": 4},
    "equal": {"cluster": MIXED, "stages": 3},
    "turned round": {"cluster": Cluster.joined([FAST, SLOW], latency_s=1e-6, bytes_per_s=5e8), "stages": 3},
    "zero bubble": {"cluster": MIXED, "stages": None, "max_stages": 3, "schedule": "zb-h1"},
    "interleaved": {
        "cluster": Cluster.joined([SLOW, Cluster.parse("cpu:2")], latency_s=1e-6, bytes_per_s=5e8),
        "stages": 4, "schedule": "interleaved", "stages_per_worker": 2,
    },
    "text": {"cluster": "cpu:4+cpu:4", "stages": 4},
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_results_are_those_of_one_device(name):
    plan = planned(**RUNS[name])
    assert len(set(islands_of(plan))) == 2
    run = autopar.compile(step, STATE, X, Y, plan=plan)
    assert run.audit.agrees
    state = STATE
    for _ in range(3):
        state, metrics = run(state, X, Y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), (state, metrics), expected())


@pytest.mark.parametrize("name", RUNS)
def test_a_stage_lies_on_one_island_and_is_priced_there(name):
    plan = planned(**RUNS[name])
    cluster = Cluster.from_dict(plan.cluster)
    for stage, index in zip(plan.stages, islands_of(plan), strict=True):
        assert cluster.island_at(stage.devices[1] - 1) == index
        part, island = Cluster.from_dict(stage.plan.cluster), cluster.islands[index]
        assert part.device == island.device and part.devices == stage.devices[1] - stage.devices[0]
        assert part.levels[0].bytes_per_s == island.levels[0].bytes_per_s
    once_s = max(stage.once_s for stage in plan.stages)
    assert plan.step_s == pytest.approx(simulate_plan(plan).step_s + once_s, rel=1e-9)


def test_equal_stages_are_slower_on_slower_devices():
    plan = planned(**RUNS["equal"])
    assert islands_of(plan) == [0, 1, 1]
    slow, *fast = (stage.forward_s + stage.backward_s for stage in plan.stages)
    assert slow > 1.4 * max(fast)


def test_the_search_gives_faster_devices_more_units_and_beats_each_island_alone():
    plan = planned(**RUNS["searched"])
    units = [0, 0]
    for stage, island in zip(plan.stages, islands_of(plan), strict=True):
        units[island] += stage.units[1] - stage.units[0]
    assert units[1] > 2 * units[0] > 0
    for alone in (SLOW, FAST):
        assert plan.step_s < planned(stages=None, max_stages=4, cluster=alone).step_s


def test_an_island_that_only_costs_is_left_alone():
    crawling = Cluster.uniform(2, 1e6, 1e7, 1e-7, 1e9)
    cluster = Cluster.joined([crawling, FAST], latency_s=1e-6, bytes_per_s=5e8)
    plan = planned(stages=None, max_stages=4, cluster=cluster)
    assert set(islands_of(plan)) == {1} and plan.devices == 4
    assert plan.step_s == pytest.approx(planned(stages=None, max_stages=4, cluster=FAST).step_s, rel=1e-9)
    assert "2 of the cluster's 6 devices have no stage" in " ".join(str(plan).split())


def test_islands_too_far_apart_are_not_joined():
    """What a cut costs between islands is known only once it is simulated, and then one island is better."""
    plan = planned(stages=None, max_stages=4, cluster=Cluster.joined([SLOW, FAST], latency_s=1.0, bytes_per_s=5e8))
    assert set(islands_of(plan)) == {1}
    assert plan.step_s == pytest.approx(planned(stages=None, max_stages=4, cluster=FAST).step_s, rel=1e-9)


def test_each_island_has_its_own_memory():
    """Nothing fits where all devices have little; where one island's have more, the heavy stage lies there."""
    peak = planned(**RUNS["searched"]).peak_bytes
    small, large = 0.45 * peak, 4.0 * peak
    with pytest.raises(autopar.InfeasibleError, match="GiB per device of cluster"):
        planned(stages=None, max_stages=3, remat="none", cluster=limited(small, small))
    for sizes in ((small, large), (large, small)):
        plan = planned(stages=None, max_stages=3, remat="none", cluster=limited(*sizes))
        held = {island: stage.peak_bytes for stage, island in zip(plan.stages, islands_of(plan), strict=True)}
        assert all(held[island] <= sizes[island] for island in held)
        assert held[sizes.index(large)] > small
    with pytest.raises(autopar.InfeasibleError, match=r"GiB \(uniform\) or .*GiB \(uniform\) per device"):
        planned(stages=3, cluster=limited(small / 20, small / 10))


def test_plans_are_saved_and_tell_their_devices(tmp_path):
    fast = dataclasses.replace(FAST, device=dataclasses.replace(FAST.device, name="swift", memory_bytes=2.0**20))
    plan = planned(stages=3, cluster=Cluster.joined([SLOW, fast], latency_s=1e-6, bytes_per_s=5e8))
    plan.save(tmp_path / "plan.json")
    again = autopar.load_plan(tmp_path / "plan.json")
    assert again == plan and math.isfinite(again.step_s)
    rows = [line.split() for line in str(again).splitlines() if line.startswith("  ")]
    assert [row[3] for row in rows if row[0] in "012"][:3] == ["uniform", "swift", "swift"]
    assert "on uniform; stage" in " ".join(str(again).split())
    with pytest.raises(autopar.PlanError, match="made for cluster"):
        autopar.load_plan(tmp_path / "plan.json", cluster=MIXED)


def test_clusters_of_one_type_say_nothing_of_types():
    assert "type" not in str(planned(cluster="cpu:4+cpu:4", stages=4)).split()
