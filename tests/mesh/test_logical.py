"""Logical meshes: which shapes there are, and which links an axis crosses."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.errors import ClusterError
from autopar.mesh import Cluster, Device, Level, LogicalMesh

sizes = st.integers(1, 6)


def cluster_of(*level_sizes):
    """A cluster whose levels are told apart by their latency: level i has latency i."""
    levels = tuple(Level(f"l{i}", n, float(i), 10.0**-i) for i, n in enumerate(level_sizes))
    return Cluster("test", Device("d", {"float32": 1.0}, 1.0, 1.0), levels)


def crossed(mesh: LogicalMesh):
    return [[(int(c.latency_s), c.size) for c in axis.levels] for axis in mesh.axes]


@pytest.mark.parametrize(
    ("levels", "shape", "expected"),
    [
        ((8,), (8,), [[(0, 8)]]),
        ((8,), (2, 4), [[(0, 2)], [(0, 4)]]),
        ((8, 2), (16,), [[(0, 8), (1, 2)]]),
        ((8, 2), (2, 8), [[(1, 2)], [(0, 8)]]),
        ((8, 2), (4, 4), [[(0, 2), (1, 2)], [(0, 4)]]),
        ((8, 2), (8, 2), [[(0, 4), (1, 2)], [(0, 2)]]),
        ((8, 2), (1, 16), [[], [(0, 8), (1, 2)]]),
        ((2, 2, 2), (2, 4), [[(2, 2)], [(0, 2), (1, 2)]]),
        ((1, 8), (2, 4), [[(1, 2)], [(1, 4)]]),
        # 6 devices on hosts of 4: up to 4 on one host, on up to 2 hosts.
        ((4, 3), (2, 6), [[(1, 2)], [(0, 4), (1, 2)]]),
        # 3 devices on hosts of 4: some lines straddle two hosts.
        ((4, 3), (4, 3), [[(0, 2), (1, 3)], [(0, 3), (1, 2)]]),
    ],
)
def test_links_of_axes(levels, shape, expected):
    assert crossed(cluster_of(*levels).mesh(shape)) == expected


def test_names_and_devices():
    mesh = Cluster.parse("h100:2x8").mesh((2, 2, 4))
    assert (mesh.names, mesh.devices, mesh.shape) == (("x", "y", "z"), 16, (2, 2, 4))
    assert len(set(Cluster.parse("cpu:1").mesh((1,) * 10).names)) == 10


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (8, 0), (-2, -4), (16,)])
def test_shapes_that_do_not_fit(shape):
    with pytest.raises(ClusterError, match="8 devices"):
        Cluster.parse("cpu:8").mesh(shape)


def test_meshes_in_order():
    assert [m.shape for m in Cluster.parse("cpu:8").meshes()] == [(8,), (2, 4), (4, 2), (2, 2, 2)]
    assert [m.shape for m in Cluster.parse("cpu:12").meshes(2)] == [(12,), (2, 6), (3, 4), (4, 3), (6, 2)]
    assert [m.shape for m in Cluster.parse("cpu:7").meshes()] == [(7,)]
    assert [m.shape for m in Cluster.parse("cpu:1").meshes()] == [(1,)]
    assert Cluster.parse("cpu:1").meshes()[0].axes[0].levels == ()
    assert len(Cluster.parse("tpu-v3:2048").meshes()) == 1 + 10 + 45
    with pytest.raises(ClusterError, match="max_axes=0"):
        Cluster.parse("cpu:8").meshes(0)


@given(st.integers(1, 60), st.integers(1, 4))
def test_meshes_are_all_ordered_factorisations(devices, max_axes):
    found = [m.shape for m in Cluster.uniform(devices, 1, 1, 1, 1).meshes(max_axes)]
    divisors = [n for n in range(2, devices + 1) if devices % n == 0]
    every = [s for k in range(1, max_axes + 1) for s in itertools.product(divisors, repeat=k)]
    assert found == ([s for s in every if math.prod(s) == devices] if devices > 1 else [(1,)])


@given(sizes, sizes, sizes, st.data())
def test_links_against_walking_every_line(a, b, c, data):
    """Per level, the most children of one parent that a line of the axis touches, by brute force."""
    cluster = cluster_of(a, b, c)
    mesh = data.draw(st.sampled_from(cluster.meshes(3)))
    for axis, (size, links) in enumerate(zip(mesh.shape, mesh.axes, strict=True)):
        stride = math.prod(mesh.shape[axis + 1 :])
        lines = [
            [base + k * stride for k in range(size)] for base in range(cluster.devices) if base // stride % size == 0
        ]
        expected = []
        for level, (inner, outer) in enumerate([(1, a), (a, a * b), (a * b, a * b * c)]):
            most = max(
                len({i // inner for i in line if i // outer == parent}) for line in lines for parent in range(c * b * a)
            )
            if most > 1:
                expected.append((level, most))
        assert [(int(found.latency_s), found.size) for found in links.levels] == expected
        assert links.size == size <= math.prod(found.size for found in links.levels)


@given(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=3), st.data())
def test_powers_of_two_are_exact(level_sizes, data):
    mesh = data.draw(st.sampled_from(cluster_of(*level_sizes).meshes(3)))
    for axis in mesh.axes:
        assert math.prod(found.size for found in axis.levels) == axis.size
