"""Packing needs at least what is held at once, and exactly that where lifetimes nest."""

from hypothesis import given
from hypothesis import strategies as st

from autopar.planner.memory.packing import ALIGNMENT, packed_bytes

BUFFERS = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 40)).map(
        lambda b: (min(b[:2]), max(b[:2]), b[2] * ALIGNMENT)
    ),
    max_size=25,
)


def held_at_once(buffers):
    return max((sum(n for s, e, n in buffers if s <= t <= e) for t in range(21)), default=0)


@given(BUFFERS)
def test_between_what_is_held_at_once_and_the_sum(buffers):
    assert held_at_once(buffers) <= packed_bytes(buffers) <= sum(n for _, _, n in buffers)


@given(st.lists(st.integers(1, 40), max_size=10))
def test_exact_where_lifetimes_nest_and_the_longest_are_the_largest(sizes):
    nested = [(i, 20 - i, n * ALIGNMENT) for i, n in enumerate(sorted(sizes, reverse=True))]
    assert packed_bytes(nested) == held_at_once(nested)


def test_a_gap_that_nothing_fits_into():
    a, b, c = (0, 2, 3 * ALIGNMENT), (1, 5, 2 * ALIGNMENT), (3, 5, 4 * ALIGNMENT)
    assert held_at_once([a, b, c]) == 6 * ALIGNMENT
    assert packed_bytes([a, b, c]) == 6 * ALIGNMENT
    d = (4, 8, ALIGNMENT)
    assert packed_bytes([a, b, c, d]) == 7 * ALIGNMENT
    assert packed_bytes([(0, 0, 1)]) == ALIGNMENT
