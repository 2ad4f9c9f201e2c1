"""Where stages wait for each other's messages, and cuts that spare them that."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopar.planner.stages.cost import Span, StageCost
from autopar.planner.stages.refine import refined, rhythm_s
from autopar.schedule import Kind, make_schedule
from autopar.simulate import simulate_schedule

LAYERS, MICROBATCHES = 9, 64


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_the_rhythm_is_that_of_the_simulation(data):
    stages = data.draw(st.integers(1, 6))
    seconds = st.integers(0, 20).map(float)
    forward, backward = (data.draw(st.lists(seconds, min_size=stages, max_size=stages)) for _ in range(2))
    hops = data.draw(st.lists(seconds, min_size=stages - 1, max_size=stages - 1))

    def step_s(microbatches):
        schedule = make_schedule("1f1b", stages, microbatches)
        timeline = simulate_schedule(
            schedule,
            lambda task: forward[task.stage] if task.kind == Kind.FORWARD else backward[task.stage],
            lambda source, target: hops[min(source, target)],
        )
        return timeline.step_s

    # A run of stages repeats itself after as many micro-batches as it has stages; 60 is a multiple of 1 .. 6.
    found = (step_s(240) - step_s(180)) / 60
    expected = rhythm_s([f + b for f, b in zip(forward, backward, strict=True)], [2 * hop for hop in hops])
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def cost(first, stop, shape, after):
    """Layers of a second each; the first is twice as long, and no stage holds more than four."""
    return StageCost(stop - first + (first == 0), 0.1) if stop - first <= 4 else None


def spans(*lengths):
    ends = list(itertools.accumulate(lengths, initial=0))
    return tuple(Span(a, b, 0) for a, b in itertools.pairwise(ends))


def objective(cut, hop):
    times = [cost(s.first, s.stop, s.shape, 0).microbatch_s for s in cut]
    return sum(times) + (MICROBATCHES - 1) * rhythm_s(times, [2 * hop] * (len(cut) - 1)) + 0.1


def all_cuts(stages):
    for ends in itertools.combinations(range(1, LAYERS), stages - 1):
        lengths = [b - a for a, b in itertools.pairwise((0, *ends, LAYERS))]
        if max(lengths) <= 4:
            yield spans(*lengths)


@pytest.mark.parametrize("hop", [0.0, 0.2, 1.5])
@pytest.mark.parametrize("lengths", [(2, 3, 4), (4, 4, 1), (1, 4, 4), (2, 2, 2, 3), (4, 3, 1, 1)])
def test_cuts_move_to_where_nobody_waits(lengths, hop):
    begin = spans(*lengths)
    found = refined(begin, cost, lambda k, at: 2 * hop, MICROBATCHES)
    assert found.step_s == pytest.approx(objective(found.spans, hop))
    assert found.step_s == pytest.approx(min(objective(cut, hop) for cut in all_cuts(len(lengths))))
    assert [c.microbatch_s for c in found.costs] == [cost(s.first, s.stop, 0, 0).microbatch_s for s in found.spans]


def test_slow_neighbours_are_set_apart():
    """Two of four equal stages get a layer more; side by side they would wait for each other's messages."""

    def even(first, stop, shape, after):
        return StageCost(float(stop - first))

    found = refined(spans(2, 3, 3, 2), even, lambda k, at: 0.5, MICROBATCHES)
    lengths = [s.stop - s.first for s in found.spans]
    assert sorted(lengths) == [2, 2, 3, 3]
    assert (3, 3) not in itertools.pairwise(lengths)


def test_a_cut_that_does_not_fit_is_not_moved():
    assert refined(spans(4, 5), cost, lambda k, at: 0.0, MICROBATCHES) is None
