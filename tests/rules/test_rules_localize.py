"""The proof: every rule under its strategies, run in parts on devices, equals the whole op."""

from __future__ import annotations

import os

import pytest
import rule_cases_compute
import rule_cases_elementwise
import rule_cases_shaping
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_draw import Draw
from rule_machine import MESHES, check, trace

from autopar.sharding.rules import TABLE

CASES = {**rule_cases_elementwise.CASES, **rule_cases_shaping.CASES, **rule_cases_compute.CASES}
# More examples where a rule has more to get wrong. AUTOPAR_RULE_EXAMPLES multiplies them all.
EXAMPLES = {
    "broadcast_in_dim": 4, "conv_general_dilated": 24, "dot_general": 10, "dynamic_slice": 4,
    "dynamic_update_slice": 4, "fft": 4, "gather": 24, "iota": 4, "pad": 4, "reduce_window": 6,
    "reduce_window_max": 8, "reduce_window_sum": 8, "reshape": 12, "scatter": 8, "scatter-add": 20, "scatter-mul": 8,
    "select_n": 4, "slice": 4, "threefry2x32": 4,
}  # fmt: skip
MORE = int(os.environ.get("AUTOPAR_RULE_EXAMPLES", "1"))


def test_every_rule_of_the_table_has_a_case():
    assert set(CASES) == set(TABLE)


@pytest.mark.parametrize("primitive", sorted(CASES))
def test_parts_equal_the_whole(primitive):
    @settings(max_examples=EXAMPLES.get(primitive, 2) * MORE, deadline=None, derandomize=MORE == 1, database=None)
    @given(seed=st.integers(0, 2**32 - 1))
    def prove(seed):
        draw = Draw(seed)
        function, args = CASES[primitive](draw)
        check(trace(function, args, primitive), draw.of(MESHES), seed)

    prove()
