"""Partitions of a chain against exhaustive search."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autopar.errors import InternalError, OptionError
from autopar.mesh import Cluster, Submesh, place
from autopar.planner.stages import StageCost, even_partition, partition, partition_s

SHAPES = ([1, 2, 4, 8], [1], [1, 3], [2, 4], [3, 2], [1, 2, 3, 4, 5, 6, 7, 8], [2, 2, 6])


def shapes_of(sizes):
    return [Submesh((n,)) for n in sizes]


def every_partition(units, sizes, devices, max_stages, idle=False):
    """All (cuts, shapes) whose devices are as many as there are (or fewer), by recursion."""

    def rest(first, left, stages):
        if first == units:
            if left == 0 or idle:
                yield ()
            return
        if not stages:
            return
        for stop in range(first + 1, units + 1):
            for shape, size in enumerate(sizes):
                if size <= left:
                    for tail in rest(stop, left - size, stages - 1):
                        yield ((first, stop, shape), *tail)

    return rest(0, devices, max_stages)


def exhaustive(units, sizes, devices, cost, microbatches, max_stages, fill, idle=False):
    """The least objective of all partitions that fit; None if none does."""
    best = None
    for spans in every_partition(units, sizes, devices, max_stages, idle):
        costs = [cost(*span, len(spans) - i) for i, span in enumerate(spans)]
        if None not in costs:
            found = (
                fill * sum(c.microbatch_s for c in costs)
                + (microbatches - fill) * max(c.microbatch_s for c in costs)
                + max(c.once_s for c in costs)
            )
            best = found if best is None else min(best, found)
    return best


@st.composite
def chains(draw):
    """(units, sizes, devices, cost): of few numbers, so that many tie, or of many; the two costs may be at odds."""
    units = draw(st.integers(1, 7))
    sizes = draw(st.sampled_from(SHAPES))
    devices = draw(st.integers(1, 8))
    seed, misfits = draw(st.integers(0, 10**6)), draw(st.sampled_from([0, 0.2, 0.6]))
    few, once, trade = draw(st.booleans()), draw(st.sampled_from([0.0, 1.0, 30.0])), draw(st.booleans())
    additive, by_place = draw(st.booleans()), draw(st.booleans())
    lengths = random.Random(seed).choices(range(1, 9), k=units)

    def cost(first, stop, shape, stages_after):
        dice = random.Random(repr((seed, first, stop, shape, stages_after if by_place else 0)))
        if dice.random() < misfits:
            return None
        noise = dice.randint(1, 4) if few else dice.uniform(0.5, 4)
        work = sum(lengths[first:stop]) / sizes[shape] if additive else 1.0
        once_s = dice.randint(0, 3) if few else dice.random()
        return StageCost(work * noise, once * (once_s + 1) / (work * noise) if trade else once * once_s)

    return units, sizes, devices, cost


@settings(max_examples=400, deadline=None)
@given(chains(), st.sampled_from([1, 2, 8, 100]), st.integers(1, 8), st.sampled_from([1.0, 0.5, 1 / 3, 0.0]))
def test_optimal(chain, microbatches, max_stages, fill):
    units, sizes, devices, cost = chain
    found = partition(units, shapes_of(sizes), devices, cost, microbatches, max_stages=max_stages, fill=fill)
    best = exhaustive(units, sizes, devices, cost, microbatches, max_stages, fill)
    if best is None:
        assert found is None
        return
    assert found is not None and not found.idle
    assert found.best.step_s == pytest.approx(best, rel=1e-9)
    assert found.bound_s == found.best.step_s
    check_finalists(found, sizes, cost, units, devices, microbatches, max_stages, fill)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 100)), min_size=1, max_size=40),
    st.sampled_from([1, 2, 10]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
@example([(0, 100), (1, 90), (89, 5)], 1, 1.0)  # the best is between the extremes of both
@example([(0, 100), (85, 5), (89, 1)], 1, 1.0)
def test_one_stage_of_many_prices(points, microbatches, fill):
    """A trade between the two costs, with no chain around it: the search over thresholds alone."""
    found = partition(
        1, shapes_of([4] * len(points)), 4, lambda i, j, s, k: StageCost(*points[s]), microbatches, fill=fill
    )
    assert found.best.step_s == pytest.approx(min(microbatches * t + o for t, o in points))
    assert found.bound_s == found.best.step_s


def check_costs(found, cost, microbatches, fill):
    """All differ, and cost what their stages cost."""
    assert len({p.spans for p in found.partitions}) == len(found.partitions) <= 8
    for p in found.partitions:
        assert p.costs == tuple(cost(s.first, s.stop, s.shape, p.stages - i) for i, s in enumerate(p.spans))
        assert p.step_s == pytest.approx(partition_s(p.costs, microbatches, fill), rel=1e-9)


def check_finalists(found, sizes, cost, units, devices, microbatches, max_stages, fill):
    """Each is what it says it is; all differ; the best comes first."""
    check_costs(found, cost, microbatches, fill)
    assert [p.step_s for p in found.partitions] == sorted(p.step_s for p in found.partitions)
    for p in found.partitions:
        assert [p.spans[0].first, *(s.stop for s in p.spans)] == [*(s.first for s in p.spans), units]
        assert all(s.first < s.stop for s in p.spans) and p.stages <= max_stages
        used = sum(sizes[s.shape] for s in p.spans)
        assert used == devices or (found.idle and used < devices)


@settings(max_examples=150, deadline=None)
@given(chains(), st.sampled_from([1, 8]))
def test_idle_devices_only_where_nothing_takes_them_all(chain, microbatches):
    units, sizes, devices, cost = chain
    found = partition(units, shapes_of(sizes), devices, cost, microbatches, idle=True)
    full = exhaustive(units, sizes, devices, cost, microbatches, units, 1.0)
    best = full if full is not None else exhaustive(units, sizes, devices, cost, microbatches, units, 1.0, idle=True)
    assert (found is None) == (best is None)
    if found is not None:
        assert found.idle == (full is None)
        assert found.best.step_s == pytest.approx(best, rel=1e-9)
        check_finalists(found, sizes, cost, units, devices, microbatches, units, 1.0)


@settings(max_examples=100, deadline=None)
@given(chains(), st.sampled_from([0.01, 0.2, 1.0]))
def test_a_gap_is_kept(chain, gap):
    units, sizes, devices, cost = chain
    found = partition(units, shapes_of(sizes), devices, cost, 8, gap=gap)
    if found is not None:
        best = exhaustive(units, sizes, devices, cost, 8, units, 1.0)
        assert found.bound_s <= best * (1 + 1e-9)
        assert best * (1 - 1e-9) <= found.best.step_s <= found.bound_s * (1 + gap) * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(chains(), st.integers(1, 8))
def test_even_partitions_are_never_better(chain, stages):
    units, sizes, devices, cost = chain
    even = even_partition(units, shapes_of(sizes), devices, cost, 8, stages)
    if even is None:
        return
    lengths = [s.stop - s.first for s in even.spans]
    assert sum(lengths) == units and max(lengths) - min(lengths) <= 1 and lengths == sorted(lengths)
    assert {sizes[s.shape] for s in even.spans} == {devices // stages}
    assert partition(units, shapes_of(sizes), devices, cost, 8).best.step_s <= even.step_s * (1 + 1e-9)


def test_even_layers_give_even_stages():
    """48 equal layers, perfect scaling within a host and none beyond, many micro-batches: one stage per host."""
    shapes = Cluster.parse("h100:8x8").submeshes()

    def cost(first, stop, shape, stages_after):
        return StageCost((stop - first) / min(shapes[shape].devices, 8) + 1e-3 * shapes[shape].devices)

    found = partition(48, shapes, 64, cost, 256)
    assert [s.stop - s.first for s in found.best.spans] == [6] * 8
    assert {str(shapes[s.shape]) for s in found.best.spans} == {"8"}
    assert found.best == even_partition(48, shapes, 64, cost, 256, 8)


def test_memory_of_micro_batches_in_flight_bends_the_cut():
    """Early stages hold more micro-batches: with two units' room for one of them, the first stages are shorter."""

    def cost(first, stop, shape, stages_after):
        fits = (stop - first) * (2 + stages_after) <= 8
        return StageCost(float(stop - first)) if fits else None

    found = partition(5, shapes_of([1]), 3, cost, 4)
    assert [s.stop - s.first for s in found.best.spans] == [1, 2, 2]
    assert even_partition(4, shapes_of([1]), 2, cost, 4, 2) is not None
    assert even_partition(6, shapes_of([1]), 3, cost, 4, 3) is None


def test_finalists_can_be_placed():
    cluster = Cluster.parse("cpu:6x6")
    shapes = cluster.submeshes()
    dice = random.Random(1)
    works = [dice.uniform(1, 3) for _ in range(12)]

    def cost(first, stop, shape, stages_after):
        n = shapes[shape].devices
        return StageCost(sum(works[first:stop]) * (1 + 0.02 * n) / n, 0.1 * (stop - first))

    for found in partition(12, shapes, cluster.devices, cost, 32, keep=20).partitions:
        assert sum(map(len, place(cluster, [shapes[s.shape] for s in found.spans]))) == 36


def test_the_objective():
    costs = [StageCost(1.0, 0.5), StageCost(3.0, 0.25), StageCost(2.0)]
    assert partition_s(costs, 4) == 1 + 3 + 2 + 3 * 3 + 0.5
    assert partition_s(costs, 4, fill=0.5) == 0.5 * 6 + 3.5 * 3 + 0.5
    assert partition_s(costs, 1, fill=0.0) == 3.5


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"units": 0}, "units"),
        ({"devices": 0}, "devices"),
        ({"microbatches": 0}, "microbatches"),
        ({"shapes": []}, "shapes"),
        ({"max_stages": 0}, "stages"),
        ({"keep": 0}, "keep"),
        ({"fill": 1.5}, "fill"),
        ({"gap": -0.1}, "gap"),
        ({"gap": float("nan")}, "gap"),
    ],
)
def test_bad_options(change, word):
    given_ = {"units": 2, "shapes": shapes_of([1]), "devices": 2, "microbatches": 2}
    with pytest.raises(OptionError, match=word):
        partition(cost=lambda *_: StageCost(1.0), **{**given_, **change})


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_a_cost_is_a_time(seconds):
    with pytest.raises(InternalError, match="microbatch_s"):
        StageCost(seconds)
    with pytest.raises(InternalError, match="once_s"):
        StageCost(1.0, seconds)


def test_nothing_fits():
    assert partition(3, shapes_of([1, 2]), 2, lambda *_: None, 4, idle=True) is None
    assert partition(3, shapes_of([4]), 2, lambda *_: StageCost(1.0), 4, idle=True) is None
    assert partition(3, shapes_of([2]), 3, lambda *_: StageCost(1.0), 4) is None
    assert partition(3, shapes_of([2]), 3, lambda *_: StageCost(1.0), 4, idle=True).idle


def test_the_oracle_counts_right():
    """Ways to cut 3 units times sequences of sizes: one stage of 4; two of 2; three of 1, 1 and 2."""
    assert len(set(every_partition(3, [1, 2, 4], 4, 3))) == 1 * 1 + 2 * 1 + 1 * 3
