"""The graph computes what the function computes."""

import copy

import jax
import numpy as np
import pytest

from autopar.trace import flatten_args, trace
from tests.trace.oracle import evaluate
from tests.trace.steps import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_graph_computes_what_the_function_computes(case):
    fun, args = case()
    traced = trace(fun, args)
    found = evaluate(traced, flatten_args(traced, args))
    expected = jax.tree.leaves(jax.jit(fun)(*copy.deepcopy(args)))
    assert len(found) == len(expected) == len(traced.step.graph.outputs)
    for path, a, b in zip(traced.out_paths, found, expected, strict=True):
        assert a.dtype == b.dtype, path
        if jax.dtypes.issubdtype(b.dtype, jax.dtypes.extended):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        if jax.dtypes.issubdtype(b.dtype, np.floating) and "random" not in case.__name__:
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=path)
        else:
            np.testing.assert_array_equal(a, b, err_msg=path)
