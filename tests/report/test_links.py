"""What crosses each link: nothing is lost between levels, and what a link adds is what goes without it."""

import dataclasses
import math

import pytest

from autopar.cost import collective_s, transfer_s
from autopar.mesh import Cluster, Joint, Level
from autopar.plan import CollectiveRecord, MeshAxis
from autopar.report import plan_text
from autopar.report.links import level_amounts, link_text, link_traffic, without_s
from autopar.sharding.layout import Collective
from autopar.simulate import simulate_plan
from tests.report.plans import decoder, pipeline

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
TWO_SITES = Cluster(
    "sites", Cluster.parse("cpu:8").device, (Level("device", 4, 1e-5, 1e9), Level("site", 2, 1e-3, 1e7))
)


def record(cluster, mesh, axis, kind, nbytes, count=3):
    links = cluster.mesh(mesh).axes[axis]
    seconds = count * collective_s(Collective(kind), links, nbytes)
    return CollectiveRecord(kind, ("xyz"[axis],), nbytes, count, count, seconds, "update", "here", "P(sum)->R")


def on(cluster, mesh, *records):
    axes = tuple(MeshAxis(name, n) for name, n in zip("xyz", mesh, strict=False))
    return decoder(cluster=cluster.to_dict(), mesh=axes, collectives=records, arrays=[])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mesh", [(8,), (2, 4), (4, 2), (2, 2, 2)])
def test_the_seconds_of_a_collective_are_divided_among_its_levels(kind, mesh):
    for axis in range(len(mesh)):
        c = record(TWO_SITES, mesh, axis, kind, 4096)
        amounts = level_amounts(on(TWO_SITES, mesh, c), c)
        assert sum(seconds for _, _, seconds in amounts) == pytest.approx(c.seconds)
        assert [level for level, _, _ in amounts] == [
            i for i, crosses in enumerate([math.prod(mesh[axis + 1 :]) < 4, math.prod(mesh[axis:]) > 4]) if crosses
        ]


def test_bytes_by_hand():
    """8 devices on 2 sites, 4096 bytes on each: 3/4 are reduced inside, a quarter of them is summed across."""
    amounts = [
        level_amounts(on(TWO_SITES, (8,), c), c) for c in (record(TWO_SITES, (8,), 0, k, 4096, 1) for k in KINDS)
    ]
    assert [[n for _, n, _ in found] for found in amounts] == [
        [2 * 3072, 2 * 512], [3072, 512], [3072, 512], [3584, 2048], [4096, 4096],
    ]  # fmt: skip


def test_without_a_link_a_step_of_one_program_is_shorter_by_what_it_spends_there():
    c = record(TWO_SITES, (8,), 0, "all-reduce", 4096)
    plan = on(TWO_SITES, (8,), c)
    inside = Cluster("inside", TWO_SITES.device, (TWO_SITES.levels[0], Level("site", 2, 0.0, math.inf)))
    assert without_s(plan, (0, 1)) == pytest.approx(c.seconds - record(inside, (8,), 0, "all-reduce", 4096).seconds)
    assert without_s(plan, (0, 0)) + without_s(plan, (0, 1)) == pytest.approx(c.seconds)


def slow(plan, **link):
    """The pipeline with another link between its two hosts."""
    cluster = Cluster.from_dict(plan.cluster)
    level = dataclasses.replace(cluster.levels[1], **link)
    return dataclasses.replace(plan, cluster=dataclasses.replace(cluster, levels=(cluster.levels[0], level)).to_dict())


def test_without_a_link_a_pipeline_waits_for_no_message():
    plan = slow(pipeline(), latency_s=1e-3, bytes_per_s=1e9)
    expected = simulate_plan(plan).step_s - simulate_plan(slow(plan, latency_s=0.0, bytes_per_s=math.inf)).step_s
    assert without_s(plan, (0, 1)) == pytest.approx(expected) and expected > 1e-3
    traffic = [t for t in link_traffic(plan) if t.link == (0, 1)]
    assert [(t.use, t.count, t.bytes) for t in traffic] == [("pipeline", 8, 4 * 2 * 2**22 / 8)]
    assert traffic[0].seconds == pytest.approx(8 * transfer_s(Level("host", 2, 1e-3, 1e9), 2**22 / 8))


def test_without_the_links_inside_a_pipeline_its_tasks_are_shorter():
    plan = pipeline()
    inside = sum(c.seconds for c in plan.stages[0].plan.collectives if c.phase == "forward") / plan.microbatches
    once = sum(c.seconds for c in plan.stages[0].plan.collectives if c.phase == "update")
    stages = tuple(
        dataclasses.replace(s, forward_s=s.forward_s - inside, once_s=max(s.once_s - once, 0.0)) for s in plan.stages
    )
    shorter = dataclasses.replace(plan, stages=stages)
    expected = simulate_plan(plan).step_s + 0.01 - simulate_plan(shorter).step_s
    assert without_s(plan, (0, 0)) == pytest.approx(expected)


def test_islands_are_told_apart():
    members = tuple(map(Cluster.parse, ("v100-16gb:8", "h100:8", "cpu:2")))
    joints = [Joint(0, 1, 1e-3, 1e8), Joint(0, 2, 1e-2, 1e7), Joint(1, 2, 1e-2, 1e7)]
    cluster = Cluster.joined(members).with_joints(joints)
    plan = pipeline(cluster=cluster.to_dict())
    between = next(t for t in link_traffic(plan) if t.use == "pipeline")
    assert between.link == (0, -1, 1) and link_text(cluster, between.link) == "v100-16gb:8 to h100:8"
    assert between.seconds == pytest.approx(8 * (1e-3 + 2**19 / 1e8))
    assert without_s(plan, between.link) > 0 == without_s(plan, (0, -1, 2))
    assert "v100-16gb:8 to h100:8 adds" in plan_text(plan)
    assert "device to device of h100:8 adds" in " ".join(plan_text(plan).split())


def test_one_kind_of_link_needs_no_words():
    assert "crosses" not in plan_text(decoder())
    nothing = on(TWO_SITES, (2, 4))
    assert "What crosses each link\n  nothing" in plan_text(nothing)


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_asked(width):
    plan = pipeline(cluster=Cluster.parse("v100-16gb:8+h100:8").to_dict())
    assert max(map(len, plan_text(plan, width).splitlines())) <= width
