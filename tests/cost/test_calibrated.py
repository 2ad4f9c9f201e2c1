"""Prices of what was calibrated: the measured lines and curves, alone and inside a hierarchy."""

import dataclasses

import pytest

from autopar.cost import collective_s, compute_s, transfer_s
from autopar.mesh import TRANSFER, Cluster, CollectiveLine, Device, Level, Rates
from autopar.sharding.layout import LOCAL, Collective

KINDS = sorted(set(Collective) - LOCAL, key=lambda kind: kind.value)
LINES = tuple(CollectiveLine(kind.value, 4, 1e-3 + i * 1e-4, 1e-6 * (i + 1)) for i, kind in enumerate(KINDS))
INNER = Level("device", 4, 1.0, 1.0, (*LINES, CollectiveLine(TRANSFER, 0, 0.5, 0.25)))
OUTER = Level("host", 2, 5.0, 10.0)
DEVICE = Device("d", {"float32": 1e9}, 1e9, 1e9)
ONE, TWO = Cluster("one", DEVICE, (INNER,)), Cluster("two", DEVICE, (INNER, OUTER))


@pytest.mark.parametrize("kind", KINDS)
def test_on_one_level_the_line_is_the_price(kind):
    line = LINES[KINDS.index(kind)]
    assert collective_s(kind, ONE.mesh((4,)).axes[0], 800) == pytest.approx(line.latency_s + line.s_per_byte * 800)


@pytest.mark.parametrize("kind", [Collective.ALL_REDUCE, Collective.ALL_GATHER, Collective.REDUCE_SCATTER])
def test_across_hosts_the_rest_is_as_it_was(kind):
    line, times = LINES[KINDS.index(kind)], 2 if kind is Collective.ALL_REDUCE else 1
    across = 5.0 + times * (800 / 4) * 1 / 2 / 10.0
    expected = line.latency_s + line.s_per_byte * 800 + across
    assert collective_s(kind, TWO.mesh((8,)).axes[0], 800) == pytest.approx(expected)
    assert collective_s(kind, TWO.mesh((2, 4)).axes[0], 800) == pytest.approx(5.0 + times * 800 / 2 / 10.0)


def test_what_was_not_measured_keeps_its_price():
    some = dataclasses.replace(INNER, measured=LINES[:1])
    plain = Cluster("plain", DEVICE, (dataclasses.replace(INNER, measured=()),)).mesh((4,)).axes[0]
    mixed = Cluster("mixed", DEVICE, (some,)).mesh((4,)).axes[0]
    for kind in KINDS[1:]:
        assert collective_s(kind, mixed, 800) == collective_s(kind, plain, 800)


def test_transfers():
    assert transfer_s(INNER, 8) == pytest.approx(0.5 + 2.0)
    assert transfer_s(dataclasses.replace(INNER, measured=LINES), 8) == pytest.approx(1.0 + 8.0)


def test_work():
    slow, fast = ((1e6, 1.0),), ((1e6, 0.1),)
    rates = Rates(1, (("float32", fast),), (("float32", slow),), ((1e6, 0.5),))
    device = dataclasses.replace(DEVICE, rates=rates, overhead_s=2.0)
    assert compute_s(device, "float32", 1e6, 0) == pytest.approx(2.1)
    assert compute_s(device, "float32", 1e6, 0, matmul=False) == pytest.approx(3.0)
    assert compute_s(device, "float32", 1e6, 1e6) == pytest.approx(2.5)
    assert compute_s(device, "float32", 1e6, 0, matmul=False, starts=False) == pytest.approx(1.0)
    assert compute_s(device, "float32", 0, 0) == 0.0
    plain = dataclasses.replace(device, rates=None)
    assert compute_s(plain, "float32", 1e6, 0, starts=False, matmul=False) == compute_s(plain, "float32", 1e6, 0)
