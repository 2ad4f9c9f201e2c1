"""Partitions over islands of unlike devices, against exhaustive search."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopar.errors import OptionError
from autopar.mesh import Cluster, Submesh, place
from autopar.planner.stages import StageCost, even_partition, partition, partition_s
from tests.planner import test_partition as alike

SIZES = ([1], [1, 2], [2], [1, 2, 4], [3, 2], [2, 2])


def every_partition(units, shapes, devices, max_stages, idle=False):
    """All (cuts, shapes) that leave each island full or untouched (or anything over, if idle), by recursion."""

    def rest(first, left, stages):
        if first == units:
            if idle or all(n in (0, full) for n, full in zip(left, devices, strict=True)):
                yield ()
            return
        if not stages:
            return
        for stop in range(first + 1, units + 1):
            for index, shape in enumerate(shapes):
                if shape.devices <= left[shape.island]:
                    fewer = [n - shape.devices * (k == shape.island) for k, n in enumerate(left)]
                    for tail in rest(stop, fewer, stages - 1):
                        yield ((first, stop, index), *tail)

    return rest(0, list(devices), max_stages)


def exhaustive(units, shapes, devices, cost, microbatches, max_stages, fill, idle=False):
    """The least objective of all partitions that fit; None if none does."""
    found = []
    for spans in every_partition(units, shapes, devices, max_stages, idle):
        costs = [cost(*span, len(spans) - i) for i, span in enumerate(spans)]
        if None not in costs:
            found.append(partition_s(costs, microbatches, fill))
    return min(found, default=None)


@st.composite
def chains(draw, islands=None):
    """(units, shapes, devices, cost): unlike islands, each with a speed of its own for every stage."""
    count = islands or draw(st.integers(2, 3))
    units = draw(st.integers(1, 5 if count == 2 else 4))
    devices = [draw(st.integers(1, 4 if count == 2 else 3)) for _ in range(count)]
    sizes = [draw(st.sampled_from(SIZES)) for _ in range(count)]
    shapes = [Submesh((n,), k) for k, many in enumerate(sizes) for n in many]
    seed, misfits = draw(st.integers(0, 10**6)), draw(st.sampled_from([0, 0.2, 0.6]))
    few, once, by_place = draw(st.booleans()), draw(st.sampled_from([0.0, 1.0, 30.0])), draw(st.booleans())
    speeds = [random.Random(seed + k).choice([1, 1, 2, 10]) for k in range(count)]

    def cost(first, stop, shape, stages_after):
        dice = random.Random(repr((seed, first, stop, shape, stages_after if by_place else 0)))
        if dice.random() < misfits:
            return None
        work = (stop - first) / shapes[shape].devices / speeds[shapes[shape].island]
        noise = dice.randint(1, 3) if few else dice.uniform(0.5, 4)
        return StageCost(work * noise, once * (dice.randint(0, 3) if few else dice.random()))

    return units, shapes, devices, cost


@settings(max_examples=400, deadline=None)
@given(chains(), st.sampled_from([1, 2, 8, 100]), st.integers(1, 6), st.sampled_from([1.0, 0.5, 1 / 3, 0.0]))
def test_optimal(chain, microbatches, max_stages, fill):
    units, shapes, devices, cost = chain
    found = partition(units, shapes, devices, cost, microbatches, max_stages=max_stages, fill=fill)
    best = exhaustive(units, shapes, devices, cost, microbatches, max_stages, fill)
    assert (found is None) == (best is None)
    if found is not None:
        assert found.best.step_s == pytest.approx(best, rel=1e-9)
        assert found.bound_s == found.best.step_s and not found.idle
        check_finalists(found, shapes, devices, cost, microbatches, fill)


def check_finalists(found, shapes, devices, cost, microbatches, fill):
    """Each is what it says it is, and stays within its islands."""
    alike.check_costs(found, cost, microbatches, fill)
    for p in found.partitions:
        used = [
            sum(shapes[s.shape].devices for s in p.spans if shapes[s.shape].island == k) for k in range(len(devices))
        ]
        if found.idle:
            assert all(n <= full for n, full in zip(used, devices, strict=True))
        else:
            assert all(n in (0, full) for n, full in zip(used, devices, strict=True))


@settings(max_examples=200, deadline=None)
@given(chains(), st.sampled_from([1, 8]))
def test_idle_devices_only_where_nothing_fills_the_islands(chain, microbatches):
    units, shapes, devices, cost = chain
    found = partition(units, shapes, devices, cost, microbatches, idle=True)
    full = exhaustive(units, shapes, devices, cost, microbatches, units, 1.0)
    best = full if full is not None else exhaustive(units, shapes, devices, cost, microbatches, units, 1.0, idle=True)
    assert (found is None) == (best is None)
    if found is not None:
        assert found.idle == (full is None)
        assert found.best.step_s == pytest.approx(best, rel=1e-9)
        check_finalists(found, shapes, devices, cost, microbatches, 1.0)


@settings(max_examples=100, deadline=None)
@given(alike.chains(), st.sampled_from([1, 8]))
def test_one_island_is_a_cluster_of_equal_devices(chain, microbatches):
    units, sizes, devices, cost = chain
    shapes = alike.shapes_of(sizes)
    assert partition(units, shapes, [devices], cost, microbatches) == partition(
        units, shapes, devices, cost, microbatches
    )
    expected = alike.exhaustive(units, sizes, devices, cost, microbatches, units, 1.0)
    assert exhaustive(units, shapes, [devices], cost, microbatches, units, 1.0) == expected


@settings(max_examples=60, deadline=None)
@given(chains(2), st.integers(0, 2))
def test_an_island_without_shapes_changes_nothing(chain, at):
    """It cannot be used, so all is as without it."""
    units, shapes, devices, cost = chain
    moved = [Submesh(s.sizes, s.island + (s.island >= at)) for s in shapes]
    more = [*devices[:at], 3, *devices[at:]]
    found, expected = (partition(units, s, d, cost, 4) for s, d in ((moved, more), (shapes, devices)))
    assert (found is None) == (expected is None)
    assert found is None or found.best == expected.best


def test_a_slow_island_is_left_alone_where_it_only_costs():
    """Four units on two fast devices; a third, 100 times as slow, would be the slowest stage however short it is."""
    shapes = [Submesh((1,), 0), Submesh((1,), 1)]

    def cost(first, stop, shape, stages_after):
        return StageCost((stop - first) * (1.0 if shapes[shape].island == 0 else speed))

    speed = 100.0
    assert [s.shape for s in partition(4, shapes, [2, 1], cost, 8).best.spans] == [0, 0]
    speed = 1.0
    assert sorted(s.shape for s in partition(4, shapes, [2, 1], cost, 8).best.spans) == [0, 0, 1]


def test_faster_devices_get_more_units():
    """One device twice as fast as the other: two thirds of the units, in the place that suits."""
    shapes = [Submesh((1,), 0), Submesh((1,), 1)]

    def cost(first, stop, shape, stages_after):
        fits = shape == 0 or stages_after == 1  # the fast one holds one micro-batch only
        return StageCost((stop - first) / (shape + 1)) if fits else None

    best = partition(9, shapes, [1, 1], cost, 16).best
    assert [(s.stop - s.first, s.shape) for s in best.spans] == [(3, 0), (6, 1)]


def test_finalists_can_be_placed():
    cluster = Cluster.parse("cpu:2x4+cpu:6")
    shapes = cluster.submeshes()
    dice = random.Random(1)
    works = [dice.uniform(1, 3) for _ in range(8)]

    def cost(first, stop, shape, stages_after):
        n = shapes[shape].devices * (1 + shapes[shape].island)
        return StageCost(sum(works[first:stop]) * (1 + 0.02 * n) / n, 0.1 * (stop - first))

    devices = [island.devices for island in cluster.islands]
    for found in partition(8, shapes, devices, cost, 32, keep=20).partitions:
        assert sum(map(len, place(cluster, [shapes[s.shape] for s in found.spans]))) in (6, 8, 14)


# equal stages


def even(cluster, stages, units=12, rounds=1):
    shapes = cluster.submeshes()
    devices = [island.devices for island in cluster.islands]
    found = even_partition(units, shapes, devices, lambda *_: StageCost(1.0), 8, stages, rounds=rounds)
    return None if found is None else [(s.stop - s.first, shapes[s.shape].island) for s in found.spans]


@pytest.mark.parametrize(
    ("text", "stages", "islands"),
    [
        ("cpu:4+cpu:4", 2, [0, 1]),
        ("cpu:4+cpu:4", 4, [0, 0, 1, 1]),
        ("cpu:2x2+cpu:8", 3, [0, 1, 1]),
        ("cpu:8+cpu:2x2", 3, [0, 0, 1]),
        ("cpu:4+cpu:4", 1, None),  # no stage on both islands
        ("cpu:4+cpu:4", 3, None),
        ("cpu:4+cpu:2", 2, None),  # three devices each
        ("cpu:4+cpu:4", 16, None),
    ],
)
def test_equal_stages(text, stages, islands):
    found = even(Cluster.parse(text), stages)
    assert found == (islands and [(12 // stages, island) for island in islands])


def test_equal_stages_in_rounds():
    """Interleaved: the second half of the stages runs where the first half does."""
    assert even(Cluster.parse("cpu:2+cpu:2"), 4, rounds=2) == [(3, 0), (3, 1), (3, 0), (3, 1)]
    assert even(Cluster.parse("cpu:4"), 4, rounds=2) == [(3, 0)] * 4
    assert even(Cluster.parse("cpu:4+cpu:2"), 6, rounds=2) == [(2, 0), (2, 0), (2, 1)] * 2


@settings(max_examples=100, deadline=None)
@given(chains(), st.integers(1, 6))
def test_equal_stages_are_never_better(chain, stages):
    units, shapes, devices, cost = chain
    found = even_partition(units, shapes, devices, cost, 8, stages)
    if found is None:
        return
    order = [shapes[s.shape].island for s in found.spans]
    assert order == sorted(order) and set(order) == set(range(len(devices)))
    assert {shapes[s.shape].devices for s in found.spans} == {sum(devices) // stages}
    assert partition(units, shapes, devices, cost, 8).best.step_s <= found.step_s * (1 + 1e-9)


# bad input


def test_bad_counts():
    def asked(devices, shapes):
        partition(2, shapes, devices, lambda *_: StageCost(1.0), 2)

    with pytest.raises(OptionError, match="1 or more devices, not 0"):
        asked([2, 0], [Submesh((1,))])
    with pytest.raises(OptionError, match="1 or more islands, not 0"):
        asked([], [Submesh((1,))])
    with pytest.raises(OptionError, match=r"island 2.*devices of 2 islands"):
        asked([2, 2], [Submesh((1,)), Submesh((1,), 2)])


def test_the_oracle_counts_right():
    """Two units: both on either island (2), or one on each in either order (2)."""
    shapes = [Submesh((1,), 0), Submesh((1,), 1)]
    assert len(set(every_partition(2, shapes, [1, 1], 2))) == 4
    assert len(set(every_partition(2, shapes, [2, 1], 2))) == 1 + 1  # a pair on the first, or one on the second
    idle = set(every_partition(2, shapes, [2, 1], 2, idle=True))
    assert len(idle) == 2 + len(set(itertools.product([0, 1], repeat=2))) - 1
