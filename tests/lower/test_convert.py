"""Conversions that are local, against what they mean."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from autopar.lower.convert import convert
from autopar.lower.localize import Axes
from autopar.sharding.layout import REPLICATED, Move


def test_a_slice_of_a_multiple_of_a_slice_of_positions():
    """XLA alone gives 2 for the first: it forgets the product."""

    def part(microbatch, device):
        positions = lax.dynamic_slice(lax.iota(jnp.int32, 16), [microbatch * 2], [2]) * 512
        return convert(positions, Move(0, REPLICATED, 0), Axes(("data",), (2,), (device,)), (2,))

    found = [int(jax.jit(part)(jnp.int32(1), jnp.int32(device))[0]) for device in (0, 1)]
    assert np.array_equal(found, [1024, 1536])
