"""The statistics, on times that are known."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.calibrate import timing
from autopar.calibrate.timing import Effort, line, repeated_s, rising


@given(st.floats(1e-6, 1e-3), st.floats(1e-12, 1e-6), st.integers(0, 1000))
def test_a_line_is_found_again_through_noise(latency_s, s_per_byte, seed):
    sizes = [2.0**k for k in range(8, 25, 2)]
    noise = np.random.default_rng(seed).uniform(0.97, 1.03, len(sizes))
    found = line(sizes, [(latency_s + s_per_byte * n) * f for n, f in zip(sizes, noise, strict=True)])
    for n in sizes:
        assert found[0] + found[1] * n == pytest.approx(latency_s + s_per_byte * n, rel=0.1)


@given(st.lists(st.tuples(st.floats(1, 1e9), st.floats(1e-6, 10)), min_size=1, max_size=6))
def test_a_line_takes_no_negative_time(points):
    latency_s, slope = line(*zip(*points, strict=True))
    assert latency_s >= 0 <= slope and latency_s + slope > 0


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=8))
def test_what_falls_is_evened_out(seconds):
    found = rising([(2.0**i, s) for i, s in enumerate(seconds)])
    assert [amount for amount, _ in found] == [2.0**i for i in range(len(seconds))]
    assert all(a[1] <= b[1] * (1 + 1e-12) for a, b in itertools.pairwise(found))
    assert sum(s for _, s in found) == pytest.approx(sum(seconds))


@pytest.mark.parametrize(("each_s", "guess_s"), [(2e-4, 1e-5), (2e-4, 2e-3), (5e-3, 1e-5), (1e-6, 1e-2)])
@pytest.mark.parametrize("given_call", [True, False])
def test_a_repetition_is_timed_without_its_call(monkeypatch, each_s, guess_s, given_call):
    """On a clock that is moved by what is called, and by others at every third call."""
    call_s, now, calls = 1e-3, [0.0], itertools.count()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def make(times):
        def call():
            now[0] += call_s + times * each_s + 0.5 * (next(calls) % 3 == 0)

        return call

    effort = Effort(5, 4e-3, 4e-3)
    found = repeated_s(make, effort, guess_s=guess_s, call_s=call_s if given_call else None)
    assert found == pytest.approx(each_s, rel=1e-6)
