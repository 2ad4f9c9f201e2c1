"""Windows and exchanges: the arithmetic, and the price against the compiled program."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from autopar import ir
from autopar.lower.localize import Axes, localize
from autopar.sharding.halo import Window, exchanges, slabs
from autopar.sharding.strategy import named
from tests.rules.machine import NAMES, per_device, rule_of, spread, trace


@given(
    taps=st.integers(1, 5), stride=st.integers(1, 3), low=st.integers(-2, 5), base=st.integers(1, 3),
    spread=st.integers(1, 3), shards=st.integers(2, 4), scale=st.integers(1, 4),
)  # fmt: skip
def test_the_halo_is_what_the_windows_of_a_shard_touch(taps, stride, low, base, spread, shards, scale):
    g = math.gcd(stride, base)
    points, made = shards * scale * stride // g, shards * scale * base // g
    window = Window(taps, stride, low, base, spread)
    assert window.aligns(points, made)
    below, above = 0, 0
    for shard in range(shards):
        first, last = shard * points // shards, (shard + 1) * points // shards
        for out in range(shard * made // shards, (shard + 1) * made // shards):
            for tap in range(taps):
                at, rest = divmod(out * stride - low + tap * spread, base)
                if rest == 0:
                    below, above = max(below, first - at), max(above, at - last + 1)
    assert window.halo[0] >= below and window.halo[1] >= above
    # No wider than the reach of the window, rounded to whole points.
    assert window.halo[0] <= max(0, low) // base and window.halo[1] <= max(0, (taps - 1) * spread - low) // base + 1


def test_slabs_stop_at_the_end_of_the_mesh():
    assert slabs(2, 2, (5, 0)) == [(1, 2)]
    assert slabs(4, 8, (0, 0)) == []


@pytest.mark.parametrize(
    ("mesh", "names"), [((4,), ("h",)), ((2, 2), ("h", "w")), ((2, 2), ("w", "n")), ((8,), ("h",))]
)
def test_the_priced_exchanges_are_the_ones_compiled(mesh, names):
    x, k = np.random.rand(2, 3, 8, 8), np.random.rand(4, 3, 5, 5)
    traced = trace(lambda x, k: lax.conv(x, k, (1, 1), "SAME"), (x, k), "conv_general_dilated")
    rule = rule_of(traced)
    strategy = named(rule, mesh, names)
    priced = exchanges(rule, strategy, mesh, x.shape, 8)
    op = ir.Op(0, "conv_general_dilated", (0, 1), (2,), rule)
    shapes = ((x.shape, k.shape), (tuple(traced.results[0].shape),))

    def run(args):
        return localize(op, traced.equation, strategy, Axes(NAMES[: len(mesh)], mesh), shapes, args)

    rng = np.random.default_rng(0)
    parts = [spread(a, layout, mesh, rng) for a, layout in zip((x, k), strategy.operands, strict=True)]
    hlo = per_device(run, mesh).lower(parts).compile().as_text()
    found = re.findall(r"f64\[([\d,]*)\]\S* collective-permute(?:-start)?\(", hlo)
    sent = [8 * math.prod(map(int, dims.split(","))) for dims in found]
    assert sorted(sent) == sorted(e.nbytes for e in priced)
    assert sent
