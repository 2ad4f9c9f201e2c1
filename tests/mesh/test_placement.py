"""Submeshes, the clusters that they are, where stages lie, and the links between them."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopar.errors import ClusterError
from autopar.mesh import Cluster, Device, Level, Submesh, link_between, place


def cluster_of(*sizes):
    levels = tuple(Level(f"l{i}", n, 10.0 ** (i - 6), 10.0 ** (9 - i)) for i, n in enumerate(sizes))
    return Cluster("test", Device("d", {"float32": 1.0}, 1.0, 1.0), levels)


@pytest.mark.parametrize(
    ("text", "shapes", "powers"),
    [
        ("cpu:1", "1", "1"),
        ("h100:8", "1 2 4 8", "1 2 4 8"),
        ("cpu:6", "1 2 3 6", "1 2 3 6"),
        ("h100:3x8", "1 2 4 8 2x8 3x8", "1 2 4 8 2x8 3x8"),
        ("cpu:6x4", "1 2 4 2x4 3x4 4x4 5x4 6x4", "1 2 4 2x4 3x4 4x4 6x4"),
        ("v100-16gb:3x1", "1 2x1 3x1", "1 2x1 3x1"),
        ("h100:1x4", "1 2 4", "1 2 4"),
    ],
)
def test_submeshes(text, shapes, powers):
    cluster = Cluster.parse(text)
    assert [str(s) for s in cluster.submeshes()] == shapes.split()
    assert [str(s) for s in cluster.submeshes(powers=True)] == powers.split()


def test_submeshes_of_three_levels():
    found = cluster_of(4, 6, 3).submeshes()
    assert [str(s) for s in found] == ["1", "2", "4", "2x4", "3x4", "6x4", "2x6x4", "3x6x4"]
    assert [s.devices for s in found] == [1, 2, 4, 8, 12, 24, 48, 72]
    assert [s.level for s in found] == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("text", "shape", "same"),
    [
        ("h100:16x8", "2x8", "h100:2x8"),
        ("h100:16x8", "8", "h100:8"),
        ("h100:16x8", "4", "h100:4"),
        ("cpu:6", "3", "cpu:3"),
    ],
)
def test_a_part_is_the_cluster_of_its_size(text, shape, same):
    cluster = Cluster.parse(text)
    (submesh,) = [s for s in cluster.submeshes() if str(s) == shape]
    part = cluster.part(submesh)
    assert part.fingerprint == Cluster.parse(same).fingerprint
    assert part.device == cluster.device
    assert part.name == f"{text}[{shape}]"
    assert Cluster.from_dict(part.to_dict()) == part


@pytest.mark.parametrize("text", ["h100:3x8", "v100-16gb:4x1", "cpu:12", "h100:1x1"])
def test_parts_keep_devices_and_links(text):
    cluster = Cluster.parse(text)
    for submesh in cluster.submeshes():
        part = cluster.part(submesh)
        assert part.devices == submesh.devices
        for inside, outside in zip(part.levels, cluster.levels, strict=False):
            assert (inside.name, inside.latency_s, inside.bytes_per_s) == (
                outside.name,
                outside.latency_s,
                outside.bytes_per_s,
            )
        assert part.meshes()
    assert cluster.part(cluster.submeshes()[-1]) is cluster
    assert len({cluster.part(s).fingerprint for s in cluster.submeshes()}) == len(cluster.submeshes())


@pytest.mark.parametrize("sizes", [(8,), (4, 2), (16, 1), (8, 3), (0, 1), (8, 1, 1)])
def test_no_submesh(sizes):
    cluster = Cluster.parse("h100:2x8")
    for use in (cluster.part, lambda s: place(cluster, [s])):
        with pytest.raises(ClusterError, match="no submesh"):
            use(Submesh(sizes))


def named(cluster, text):
    shapes = {str(s): s for s in cluster.submeshes()}
    return [shapes[name] for name in text.split()]


@pytest.mark.parametrize(
    ("text", "shapes", "starts"),
    [
        ("h100:2x8", "4 4 8", [0, 4, 8]),
        ("h100:2x8", "4 8 4", [0, 8, 4]),
        ("h100:4x8", "2x8 2x8", [0, 16]),
        ("h100:4x8", "3x8 8", [0, 24]),
        ("h100:4x8", "4 2x8 4 8", [0, 8, 4, 24]),
        ("h100:2x8", "1 4 2 4 1 4", [0, 1, 5, 8, 7, 12]),
        ("cpu:2x6", "2 3 2 2 3", [0, 6, 2, 4, 9]),  # in order, 2 + 3 leaves room for none
        ("cpu:2x4", "2 4", [0, 4]),  # two devices idle
        ("cpu:2x4", "1 2", [0, 1]),
        ("v100-16gb:4x1", "1 2x1 1", [0, 1, 3]),
        ("cpu:4", "", []),
    ],
)
def test_places(text, shapes, starts):
    cluster = Cluster.parse(text)
    assert [r.start for r in place(cluster, named(cluster, shapes))] == starts


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([(8, 4), (6, 3), (12, 2), (4, 2, 3), (4, 6, 2), (1, 5), (10, 2), (16,), (3, 1, 2)]),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_every_sequence_has_a_place(sizes, seed, idle):
    cluster, dice = cluster_of(*sizes), random.Random(seed)
    stages, left = [], cluster.devices
    while left and not (idle and dice.random() < 0.1):
        stages.append(dice.choice([s for s in cluster.submeshes() if s.devices <= left]))
        left -= stages[-1].devices
    places = place(cluster, stages)
    assert [len(r) for r in places] == [s.devices for s in stages]
    ids = [i for r in places for i in r]
    assert len(set(ids)) == len(ids)
    assert not ids or 0 <= min(ids) <= max(ids) < cluster.devices
    for found, stage in zip(places, stages, strict=True):
        inner = math.prod(sizes[: stage.level])
        block = inner * sizes[stage.level]
        assert found.start % inner == 0  # whole children of its level
        assert found[0] // block == found[-1] // block  # of one parent
        assert link_between(cluster, found, found) is None
    for a, b in itertools.combinations(places, 2):
        assert link_between(cluster, a, b) == link_between(cluster, b, a) == walked(cluster, a, b)


def walked(cluster, a, b):
    """The outermost level that a pair crosses, by walking all pairs."""
    crossed = []
    for i, j in itertools.product(a, b):
        inner = 1
        for index, level in enumerate(cluster.levels):
            outer = inner * level.size
            if i // outer == j // outer and i // inner != j // inner:
                crossed.append(index)
            inner = outer
    return cluster.levels[max(crossed)]


def test_stage_order_is_kept_where_it_fills_the_hosts():
    cluster = Cluster.parse("h100:4x8")
    for shapes in ("4 4 8 2x8", "1 1 2 4 8 2x8", "2x8 8 4 2 2", "4 2 1 1 2 2 4 8 8"):
        starts = [r.start for r in place(cluster, named(cluster, shapes))]
        assert starts == sorted(starts)


def test_too_many_devices():
    cluster = Cluster.parse("h100:2x8")
    with pytest.raises(ClusterError, match=r"24 devices.*has 16.*2x8 \+ 8"):
        place(cluster, named(cluster, "2x8 8"))


def test_sizes_that_fill_no_host():
    cluster = Cluster.parse("h100:2x8")
    with pytest.raises(ClusterError, match="no arrangement of the stages 3, 3, 3, 3, 3, 1"):
        place(cluster, [Submesh((3, 1))] * 5 + [Submesh((1, 1))])


def test_links():
    cluster = Cluster.parse("h100:2x8")
    assert link_between(cluster, range(4), range(4, 8)) is cluster.levels[0]
    assert link_between(cluster, range(8), range(8, 16)) is cluster.levels[1]
    assert link_between(cluster, range(8, 16), range(8, 16)) is None
    with pytest.raises(ClusterError, match="overlap"):
        link_between(cluster, range(8), range(4, 8))
    with pytest.raises(ClusterError, match="not on cluster"):
        link_between(cluster, range(8), range(16, 24))
