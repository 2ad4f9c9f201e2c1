"""Bandwidth terms against machines that move the bytes: rings step by step, groups of rings, messages on a torus."""

import itertools
import math

import numpy as np
import pytest

from autopar.cost import collective_s
from autopar.mesh import PRESETS, AxisLinks, Cluster, Crossing, Level
from autopar.sharding.layout import Collective

CHUNK = 60  # bytes of what one device hands to each other


class Ring:
    """Devices around a ring. In a step each sends a piece to the next; the time of a step is that of the longest."""

    def __init__(self, bytes_per_s):
        self.bytes_per_s, self.seconds = bytes_per_s, 0.0

    def shift(self, pieces):
        self.seconds += max(piece.nbytes for piece in pieces) / self.bytes_per_s
        return [pieces[i - 1] for i in range(len(pieces))]


def reduce_scatter(ring, arrays):
    """Device i ends with the sum of piece i + 1."""
    n = len(arrays)
    pieces = [np.split(array, n) for array in arrays]
    moving = [pieces[i][i] for i in range(n)]
    for step in range(1, n):
        moving = [got + pieces[i][(i - step) % n] for i, got in enumerate(ring.shift(moving))]
    return moving


def all_gather(ring, parts, first=1):
    """Every device ends with all parts; device i starts with piece i + first."""
    n = len(parts)
    found = [{(i + first) % n: part} for i, part in enumerate(parts)]
    moving = parts
    for step in range(1, n):
        moving = ring.shift(moving)
        for i, got in enumerate(moving):
            found[i][(i + first - step) % n] = got
    return [np.concatenate([each[k] for k in range(n)]) for each in found]


def arrays(count, nbytes):
    return [np.random.default_rng(i).integers(0, 100, nbytes, dtype=np.uint8) for i in range(count)]


def axis(*levels):
    return AxisLinks(math.prod(n for n, _ in levels), tuple(Crossing(n, 0.0, rate) for n, rate in levels))


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_a_ring_takes_as_long_as_its_steps(n):
    ring, given = Ring(7.0), arrays(n, n * CHUNK)
    scattered = reduce_scatter(ring, given)
    whole = sum(array.astype(int) for array in given).astype(np.uint8)
    assert all((part == np.split(whole, n)[(i + 1) % n]).all() for i, part in enumerate(scattered))
    line = axis((n, 7.0))
    assert collective_s(Collective.REDUCE_SCATTER, line, n * CHUNK) == pytest.approx(ring.seconds)
    found = all_gather(ring, scattered)
    assert all((array == whole).all() for array in found)
    assert collective_s(Collective.ALL_REDUCE, line, n * CHUNK) == pytest.approx(ring.seconds)


@pytest.mark.parametrize(("inner", "outer"), [(2, 2), (4, 2), (2, 3), (4, 4)])
def test_a_hierarchy_takes_as_long_as_its_rings_one_after_the_other(inner, outer):
    """Scatter in hosts, reduce across them what is left, gather in hosts: all devices end with the sum."""
    n = inner * outer
    given = arrays(n, n * CHUNK)
    hosts = [given[h * inner : (h + 1) * inner] for h in range(outer)]
    inside, across = [Ring(11.0) for _ in hosts], [Ring(3.0) for _ in range(inner)]
    left = [reduce_scatter(ring, mine) for ring, mine in zip(inside, hosts, strict=True)]
    for k, ring in enumerate(across):
        column = all_gather(ring, reduce_scatter(ring, [left[h][k] for h in range(outer)]))
        for h in range(outer):
            left[h][k] = column[h]
    found = [all_gather(ring, mine) for ring, mine in zip(inside, left, strict=True)]
    whole = sum(array.astype(int) for array in given).astype(np.uint8)
    assert all((array == whole).all() for host in found for array in host)
    seconds = max(ring.seconds for ring in inside) + max(ring.seconds for ring in across)
    assert collective_s(Collective.ALL_REDUCE, axis((inner, 11.0), (outer, 3.0)), n * CHUNK) == pytest.approx(seconds)


@pytest.mark.parametrize(("inner", "outer"), [(2, 2), (4, 2), (2, 3), (4, 4)])
def test_an_all_to_all_over_a_hierarchy_waits_for_its_busiest_level(inner, outer):
    """All messages of a device go through its own port, those to other hosts through that to the network, too."""
    n = inner * outer
    ports, network = np.zeros(n), np.zeros(n)
    for a, b in itertools.permutations(range(n), 2):
        ports[a] += CHUNK
        network[a] += CHUNK * (a // inner != b // inner)
    seconds = max(ports.max() / 11.0, network.max() / 3.0)
    found = collective_s(Collective.ALL_TO_ALL, axis((inner, 11.0), (outer, 3.0)), n * CHUNK)
    assert found == pytest.approx(seconds)


def torus_seconds(sides, link_bytes_per_s):
    """An all-to-all on a torus: dimension by dimension, the shorter way round, half each way where both are as long."""
    loads: dict[tuple, float] = {}
    nodes = list(itertools.product(*map(range, sides)))
    for a, b in itertools.permutations(nodes, 2):
        at = list(a)
        for d, side in enumerate(sides):
            ahead = (b[d] - at[d]) % side
            for sign, hops in ((1, ahead), (-1, side - ahead)):
                part = 1.0 if hops * 2 < side else 0.5 if hops * 2 == side else 0.0
                for k in range(hops if ahead and part else 0):
                    link = (*at[:d], (at[d] + sign * k) % side, *at[d + 1 :], d, sign)
                    loads[link] = loads.get(link, 0.0) + part * CHUNK
            at[d] = b[d]
    return max(loads.values()) / link_bytes_per_s


@pytest.mark.parametrize("sides", [(2,), (3,), (4,), (8,), (16,)])
def test_an_all_to_all_around_a_ring(sides):
    """The level's bandwidth is that of both links of a ring."""
    (n,) = sides
    cluster = Cluster("ring", PRESETS["tpu-v4"].device, (Level("device", n, 0.0, 2 * 5.0, torus=1),))
    found = collective_s(Collective.ALL_TO_ALL, cluster.mesh((n,)).axes[0], n * CHUNK)
    assert found == pytest.approx(torus_seconds(sides, 5.0))


@pytest.mark.parametrize("sides", [(4, 4), (8, 8), (4, 4, 4)])
def test_an_all_to_all_over_a_whole_torus(sides):
    """The price is at most s / (s - 1) of what rings of s take: it counts none of the messages to oneself."""
    n = math.prod(sides)
    cluster = Cluster("torus", PRESETS["tpu-v4"].device, (Level("device", n, 0.0, 2 * 5.0, torus=len(sides)),))
    found = collective_s(Collective.ALL_TO_ALL, cluster.mesh((n,)).axes[0], n * CHUNK)
    expected, s = torus_seconds(sides, 5.0), sides[0]
    assert expected <= found * (1 + 1e-9) and found <= s / (s - 1) * expected * (1 + 1e-9)


def test_cores_share_the_links_of_a_chip():
    """2,048 cores on 32 x 32 chips: half of the bytes cross 64 links of 70 GB/s, in both directions."""
    (axis,) = Cluster.parse("tpu-v3:2048").mesh((2048,)).axes
    found = collective_s(Collective.ALL_TO_ALL, axis, 1e8) - axis.levels[0].latency_s
    bisection = 2048 * 1e8 / 4 / (64 * 70e9)
    assert bisection <= found <= 32 / 31 * bisection


def test_only_an_all_to_all_minds_the_torus():
    ring, switch = (
        Cluster("c", PRESETS["tpu-v4"].device, (Level("device", 16, 1e-6, 10.0, torus=torus),)).mesh((16,)).axes[0]
        for torus in (1, 0)
    )
    for kind in Collective:
        slower = collective_s(kind, ring, 1e3) > collective_s(kind, switch, 1e3)
        assert slower == (kind is Collective.ALL_TO_ALL)


def test_tpus_are_tori_and_others_are_not():
    assert {name for name, preset in PRESETS.items() if preset.torus} == {n for n in PRESETS if n.startswith("tpu")}
    assert Cluster.parse("tpu-v5e:256").levels[0].side == 16 and Cluster.parse("h100:2x8").levels[0].side == 0
    again = Cluster.from_dict(Cluster.parse("tpu-v4:2x64").to_dict())
    assert again == Cluster.parse("tpu-v4:2x64") and again.levels[0].side == 4
