"""The roofline."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.cost import compute_s
from autopar.mesh import PRESETS, Cluster, Device

amounts = st.floats(0, 1e18)


def test_bound_by_flops_or_by_memory():
    device = Device("d", {"float32": 1e12}, 1e11, 1e9, overhead_s=1e-6, efficiency=0.5)
    assert compute_s(device, "float32", 1e12, 1e6) == pytest.approx(2.0 + 1e-6)
    assert compute_s(device, "float32", 1e6, 1e11) == pytest.approx(1.0 + 1e-6)


def test_nothing_costs_nothing_and_anything_a_launch():
    device = PRESETS["h100"].device
    assert compute_s(device, "float32", 0, 0) == 0
    assert compute_s(device, "float32", 0, 1) >= device.overhead_s > 0


def test_infinite_rates_are_free():
    device = Cluster.uniform(4, math.inf, math.inf, 1, 1).device
    assert compute_s(device, "bfloat16", 1e15, 1e12) == 0


@given(st.sampled_from(sorted(PRESETS)), st.sampled_from(["bfloat16", "float32", "int8", "key<fry>"]), amounts, amounts)
def test_more_work_never_takes_less_time(name, dtype, flops, nbytes):
    device = PRESETS[name].device
    once = compute_s(device, dtype, flops, nbytes)
    assert 0 <= once <= compute_s(device, dtype, 2 * flops, nbytes) <= compute_s(device, dtype, 2 * flops, 2 * nbytes)
    assert math.isfinite(once)
