"""Two sites with a link 100 times slower than those inside: only what hides there crosses it, and the page says so."""

import functools

import numpy as np
import pytest

import autopar
from autopar.mesh import Cluster, Level
from autopar.report.links import link_traffic, without_s
from tests.api.pipelines import STATE, X, Y, step

SITE = (0, 1)
PARAMETERS = sum(layer[name].nbytes for layer in STATE["layers"] for name in ("w", "b"))


def sites(slower):
    device = Cluster.uniform(8, 1e8, 1e9, 1e-7, 1e9).device
    return Cluster("two sites", device, (Level("device", 4, 1e-7, 1e9), Level("site", 2, 1e-7 * slower, 1e9 / slower)))


@functools.cache
def planned(slower=100, microbatches=4, batches=1, **options):
    asked = autopar.Options(microbatches=microbatches, **options)
    x, y = np.tile(X, (batches, 1)), np.tile(Y, (batches, 1))
    return autopar.plan(step, STATE, x, y, cluster=sites(slower), options=asked)


def across(plan):
    return [t for t in link_traffic(plan) if t.link == SITE]


def test_a_pipeline_sends_activations_alone():
    plan = planned(max_stages=4)
    assert len(plan.stages) >= 2
    assert {stage.devices[0] // 4 == (stage.devices[1] - 1) // 4 for stage in plan.stages} == {True}
    assert [t.use for t in across(plan)] == ["pipeline"]
    assert plan.step_s < planned(max_stages=1).step_s
    assert 0 < without_s(plan, SITE) < sum(t.seconds for t in across(plan))  # most of it hides behind compute


@pytest.mark.parametrize("microbatches", [4, 8])
def test_without_stages_gradients_are_summed_across_once_per_step(microbatches):
    plan = planned(microbatches=microbatches, batches=8, mesh=(2, 4))
    found = across(plan)
    assert {t.use for t in found} <= {"data parallel"} and all(t.why.startswith("sum in") for t in found)
    # One for each of eight parameters, one for the loss, however many micro-batches; a gradient passes once each way.
    assert 8 <= sum(t.count for t in found) <= 9
    assert sum(t.bytes for t in found) <= PARAMETERS + 64


def test_fast_links_are_used_for_more():
    """The same step where sites are as near as devices: the test above can fail."""
    plan = planned(slower=1, microbatches=4)
    assert plan.step_s < planned(slower=100).step_s
    near, far = (planned(slower=slower, mesh=(8,)) for slower in (1, 100))
    assert sum(t.bytes for t in across(near)) > sum(t.bytes for t in across(far))


@pytest.mark.parametrize("microbatches", [4, 8])
def test_sites_too_far_apart_do_not_wait_for_each_other(microbatches):
    """A pipeline would, which only its simulation tells; then one site does as well alone."""
    plan = planned(slower=10_000, microbatches=microbatches, max_stages=4)
    device = Cluster.uniform(4, 1e8, 1e9, 1e-7, 1e9)
    options = autopar.Options(microbatches=microbatches, max_stages=4)
    alone = autopar.plan(step, STATE, X, Y, cluster=device, options=options)
    assert plan.step_s == pytest.approx(alone.step_s, rel=0.02)
    assert across(plan) == []


def test_the_page_says_what_the_link_costs():
    page = str(planned(max_stages=4))
    assert "site to site  pipeline" in page and "site to site adds " in page
    page = str(planned(mesh=(2, 4), batches=8))
    assert "site to site  data parallel  sum in update" in page


def test_sites_by_name():
    plan = autopar.plan(
        step, STATE, X, Y, cluster="cpu:2x4:region", options=autopar.Options(microbatches=4, max_stages=2)
    )
    assert across(plan) == [] and {stage.devices[1] <= 4 for stage in plan.stages} == {True}
