"""Collective prices: closed forms on one level, and laws on any hierarchy."""

import math
import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.cost import collective_line, collective_s, level_parts
from autopar.mesh import AxisLinks, Cluster, Crossing
from autopar.sharding.layout import LOCAL, Collective

KINDS = sorted(set(Collective) - LOCAL, key=lambda kind: kind.value)
SCATTERING = [kind for kind in KINDS if kind is not Collective.PERMUTE]

rates = st.floats(1e6, 1e12, allow_nan=False, allow_infinity=False)
crossings = st.builds(
    lambda n, latency_s, rate: Crossing(n, latency_s, rate), st.integers(2, 8), st.floats(0, 1e-3), rates
)
byte_counts = st.floats(0, 1e12)


@st.composite
def axes(draw, min_levels=1):
    levels = tuple(draw(st.lists(crossings, min_size=min_levels, max_size=3)))
    return AxisLinks(math.prod(level.size for level in levels), levels)


def single(n, latency_s=1.0, bytes_per_s=1.0):
    return AxisLinks(n, (Crossing(n, latency_s, bytes_per_s),) if n > 1 else ())


@pytest.mark.parametrize(
    ("kind", "factor"),
    [
        (Collective.ALL_REDUCE, 2 * 3 / 4),
        (Collective.ALL_GATHER, 3 / 4),
        (Collective.REDUCE_SCATTER, 3 / 4),
        (Collective.ALL_TO_ALL, 3 / 4),
        (Collective.PERMUTE, 1.0),
        (Collective.SLICE, None),
        (Collective.FILL, None),
    ],
)
def test_one_level_is_alpha_plus_beta(kind, factor):
    """The formulas of Alpa's planner, on its terms: alpha once, beta per byte."""
    axis = Cluster.uniform(4, math.inf, math.inf, 1.0, 1.0).mesh((4,)).axes[0]
    expected = 0.0 if factor is None else 1.0 + factor * 1000.0
    assert collective_s(kind, axis, 1000.0) == pytest.approx(expected)


def test_two_levels_by_hand():
    """4 devices per host at 100 B/s, 2 hosts at 10 B/s per device, 800 bytes."""
    axis = AxisLinks(8, (Crossing(4, 1.0, 100.0), Crossing(2, 5.0, 10.0)))
    inside, across = 800 * 3 / 4 / 100, 200 * 1 / 2 / 10
    assert collective_s(Collective.REDUCE_SCATTER, axis, 800) == pytest.approx(1 + inside + 5 + across)
    assert collective_s(Collective.ALL_GATHER, axis, 800) == pytest.approx(1 + inside + 5 + across)
    assert collective_s(Collective.ALL_REDUCE, axis, 800) == pytest.approx(1 + 2 * inside + 5 + 2 * across)
    assert collective_s(Collective.ALL_TO_ALL, axis, 800) == pytest.approx(1 + 5 + 800 * 4 / 8 / 10)
    assert collective_s(Collective.PERMUTE, axis, 800) == pytest.approx(5 + 800 / 10)


@pytest.mark.parametrize("kind", list(Collective))
def test_nothing_to_do_alone(kind):
    assert collective_s(kind, single(1), 1e9) == 0.0


@given(st.sampled_from(KINDS), axes(), byte_counts, byte_counts)
def test_monotone_in_bytes(kind, axis, a, b):
    assert collective_s(kind, axis, min(a, b)) <= collective_s(kind, axis, max(a, b))


@given(st.sampled_from(KINDS), st.integers(1, 64), byte_counts)
def test_monotone_in_devices(kind, n, nbytes):
    assert collective_s(kind, single(n), nbytes) <= collective_s(kind, single(n + 1), nbytes) * (1 + 1e-12)


@given(axes(), byte_counts)
def test_all_reduce_is_reduce_scatter_then_all_gather_less_one_latency_per_level(axis, nbytes):
    two = collective_s(Collective.REDUCE_SCATTER, axis, nbytes) + collective_s(Collective.ALL_GATHER, axis, nbytes)
    saved = sum(level.latency_s for level in axis.levels)
    assert collective_s(Collective.ALL_REDUCE, axis, nbytes) == pytest.approx(two - saved)


@given(st.sampled_from(KINDS), axes(min_levels=2), byte_counts)
def test_a_hierarchy_is_never_cheaper_than_its_fastest_level_alone(kind, axis, nbytes):
    latency_s = min(level.latency_s for level in axis.levels)
    alone = single(axis.size, latency_s, max(level.bytes_per_s for level in axis.levels))
    assert collective_s(kind, axis, nbytes) >= collective_s(kind, alone, nbytes) * (1 - 1e-9)


@given(st.sampled_from(SCATTERING), axes(min_levels=2), byte_counts)
def test_a_hierarchy_is_never_dearer_than_its_slowest_level_alone_but_for_latency(kind, axis, nbytes):
    latency_s = sum(level.latency_s for level in axis.levels)
    alone = single(axis.size, latency_s, min(level.bytes_per_s for level in axis.levels))
    assert collective_s(kind, axis, nbytes) <= collective_s(kind, alone, nbytes) * (1 + 1e-9)


@given(st.sampled_from(KINDS), axes(), byte_counts)
def test_the_line_is_the_cost(kind, axis, nbytes):
    latency_s, s_per_byte = collective_line(kind, axis)
    assert collective_s(kind, axis, nbytes) == latency_s + s_per_byte * nbytes


def test_infinite_bandwidth_leaves_latency():
    assert collective_s(Collective.ALL_REDUCE, single(4, 1.0, math.inf), 1e30) == 1.0


def test_cheap_enough_to_call_a_million_times():
    axis = Cluster.parse("h100:2x8").mesh((16,)).axes[0]
    seconds = min(timeit.repeat(lambda: collective_s(Collective.ALL_REDUCE, axis, 1e6), number=1000, repeat=5))
    assert seconds / 1000 < 20e-6  # about 1e-6 on a quiet machine


@given(st.sampled_from(KINDS), axes(), byte_counts)
def test_levels_add_up_to_the_cost(kind, axis, nbytes):
    parts = level_parts(kind, axis)
    assert len(parts) == len(axis.levels)
    assert all(part.latency_s == level.latency_s for part, level in zip(parts, axis.levels, strict=True))
    for part, level in zip(parts, axis.levels, strict=True):
        assert part.s_per_byte == pytest.approx(part.share / level.bytes_per_s)
    each_s = [part.latency_s + part.decides * part.s_per_byte * nbytes for part in parts]
    assert collective_s(kind, axis, nbytes) <= sum(each_s) * (1 + 1e-9)
    if kind is not Collective.PERMUTE:
        assert collective_s(kind, axis, nbytes) == pytest.approx(sum(each_s))
