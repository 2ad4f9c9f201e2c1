"""The proof: every rule under its strategies, run in parts on devices, equals the whole op."""

from __future__ import annotations

import os

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from autopar.sharding.rules import TABLE
from tests.rules import cases_compute, cases_elementwise, cases_shaping
from tests.rules.draw import Draw
from tests.rules.machine import MESHES, check, trace

CASES = {**cases_elementwise.CASES, **cases_shaping.CASES, **cases_compute.CASES}
# More examples where a rule has more to get wrong. AUTOPAR_RULE_EXAMPLES multiplies them all.
EXAMPLES = {
    "broadcast_in_dim": 4, "conv_general_dilated": 16, "dot_general": 10, "dynamic_slice": 4,
    "dynamic_update_slice": 4, "fft": 4, "gather": 16, "iota": 4, "pad": 4, "reduce_window": 6,
    "reduce_window_max": 8, "reduce_window_sum": 8, "reshape": 12, "scatter": 8, "scatter-add": 12, "scatter-mul": 8,
    "select_n": 4, "slice": 4, "threefry2x32": 4,
}  # fmt: skip
# Slow to compile, and no different from any other elementwise op.
FEW = {"igamma", "igamma_grad_a", "igammac", "polygamma", "random_gamma", "regularized_incomplete_beta", "zeta"}
MORE = int(os.environ.get("AUTOPAR_RULE_EXAMPLES", "1"))


def test_every_rule_of_the_table_has_a_case():
    assert set(CASES) == set(TABLE)


@pytest.mark.parametrize("primitive", sorted(CASES))
def test_parts_equal_the_whole(primitive):
    @settings(
        max_examples=(1 if primitive in FEW else EXAMPLES.get(primitive, 2)) * MORE,
        deadline=None,
        derandomize=MORE == 1,
        database=None,
        phases=[Phase.generate],
    )
    @given(seed=st.integers(0, 2**32 - 1))
    def prove(seed):
        draw = Draw(seed)
        function, args = CASES[primitive](draw)
        check(trace(function, args, primitive), draw.of(MESHES), seed, limit=4 if primitive in FEW else 40)

    prove()
