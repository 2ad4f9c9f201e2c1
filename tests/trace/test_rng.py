"""Random bits as a function of position are jax's bits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopar.trace import flatten_args, rng, trace
from tests.trace.oracle import evaluate


@pytest.mark.parametrize("width", [8, 16, 32, 64])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (1, 1), (5,), (3, 1, 4), (300, 301), (2, 3, 5, 7)], ids=str)
def test_bits_are_jaxs(width, shape):
    dtype = jnp.dtype(f"uint{width}")
    for key in (jax.random.key(42), jax.random.PRNGKey(42)):
        expected = jax.random.bits(key, shape, dtype)
        if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.wrap_key_data(key)
        np.testing.assert_array_equal(rng.random_bits(key, width, shape), expected)


@pytest.mark.parametrize("keys_shape", [(3,), (2, 2)], ids=str)
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=str)
def test_bits_of_many_keys(keys_shape, shape):
    keys = jax.random.split(jax.random.key(1), keys_shape)

    def draw(keys):
        for _ in keys_shape:
            draw.inner = jax.vmap(draw.inner)
        return draw.inner(keys)

    draw.inner = lambda k: jax.random.bits(k, shape, jnp.uint32)
    expected = draw(keys)
    np.testing.assert_array_equal(rng.random_bits(keys, 32, shape), expected)


def test_without_64_bit_types():
    with jax.enable_x64(False):
        traced = trace(lambda k: jax.random.uniform(k, (7, 9)), (jax.random.key(0),))
        found = evaluate(traced, flatten_args(traced, (jax.random.key(0),)))[0]
        np.testing.assert_array_equal(found, jax.random.uniform(jax.random.key(0), (7, 9)))
        assert not {v.dtype for v in traced.step.graph.values.values()} & {"uint64", "int64", "float64"}


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 2**48), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5))
def test_wide_products(stride, indices):
    high, low = rng.wide_product(jnp.asarray(indices, jnp.uint32), max(indices) + 1, stride)
    exact = [(i * stride) % 2**64 for i in indices]
    np.testing.assert_array_equal(low, np.array([e % 2**32 for e in exact], np.uint32))
    np.testing.assert_array_equal(np.broadcast_to(high, len(indices)), np.array([e >> 32 for e in exact], np.uint32))


def test_positions_beyond_32_bits():
    """Rows of a shape of 2**34 elements, picked by replacing the iota of each dim."""
    shape = (1 << 14, 3 << 10, 1 << 9)
    picked = [np.array([0, 1, 5461, 16383]), np.array([0, 7, 3071]), np.array([0, 511])]
    jaxpr = jax.make_jaxpr(lambda: rng.positions(shape))()
    high, low = _evaluate_at(jaxpr.jaxpr, shape, picked)
    exact = np.ravel_multi_index(np.meshgrid(*picked, indexing="ij"), shape)
    np.testing.assert_array_equal(low, (exact % 2**32).astype(np.uint32))
    np.testing.assert_array_equal(high, (exact >> 32).astype(np.uint32))
    assert math.prod(shape) > 2**32 and exact.max() == math.prod(shape) - 1


def _evaluate_at(jaxpr, shape, picked):
    """Evaluate with each dim of ``shape`` restricted to the picked positions: everything is elementwise."""
    at = dict(zip(shape, picked, strict=True))
    env = {}

    def read(a):
        return a.val if hasattr(a, "val") else env[a]

    for eqn in jaxpr.eqns:
        params = dict(eqn.params)
        args = [jnp.asarray(read(a), a.aval.dtype) for a in eqn.invars]
        if eqn.primitive.name == "iota":
            out = jnp.asarray(at[params["shape"][0]], jnp.uint32)
        else:
            if "shape" in params:
                params["shape"] = tuple(len(at[n]) if n in at else n for n in params["shape"])
            out = eqn.primitive.bind(*args, **params)
        env[eqn.outvars[0]] = out
    return [read(a) for a in jaxpr.outvars]


def test_each_dim_has_its_own_iota():
    graph = trace(lambda k: jax.random.bits(k, (4, 1, 6), jnp.uint32), (jax.random.key(0),)).step.graph
    sizes = [graph.values[op.results[0]].shape for op in graph.ops if op.primitive == "iota"]
    assert sizes == [(4,), (6,)]
