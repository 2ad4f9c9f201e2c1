"""A step in micro-batches beside the same step in plain jax, on one device."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from autopar.ir import Graph, Op
from autopar.lower import microbatched
from autopar.lower.emit import emit, whole_section
from autopar.partition import time_step
from autopar.trace import Traced, flatten_args, trace
from tests.trace.oracle import evaluate

Args = Sequence[Any]


def written(traced: Traced, count: int, *, per_microbatch: bool = False) -> Traced:
    """The step in ``count`` micro-batches; also one micro-batch goes through timing and emission."""
    if count > 1:
        return microbatched(traced, count, per_microbatch=per_microbatch)
    timing = time_step(traced.step, 1, per_microbatch=per_microbatch)
    return emit(traced, timing, whole_section(traced, timing))


def results(step: Callable[..., Any], args: Args, count: int, *, per_microbatch: bool = False) -> Any:
    """What the step returns, computed in micro-batches."""
    traced = trace(step, args)
    flat = evaluate(written(traced, count, per_microbatch=per_microbatch), flatten_args(traced, args))
    return jax.tree.unflatten(traced.out_tree, flat)


def numbers(x: Any) -> np.ndarray:
    """A leaf as numpy, a random key as its words."""
    return np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended) else x)


def agree(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Every leaf has the same dtype and shape, floats agree within ``tolerance``, all else is equal."""
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    for (path, b), a in zip(leaves, jax.tree.leaves(found), strict=True):
        name = jax.tree_util.keystr(path)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        a, b = numbers(a), numbers(b)
        if np.issubdtype(b.dtype, np.inexact):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)


def exact(step: Callable[..., Any], *args: Any, counts: Sequence[int] = (1, 4), tolerance: float = 1e-9) -> None:
    """The step computes in micro-batches what plain jax computes."""
    expected = jax.jit(step)(*args)
    for count in counts:
        agree(results(step, args, count), expected, tolerance)


def loop_of(graph: Graph, count: int) -> Op:
    """The loop over micro-batches."""
    loops = [op for op in graph.ops if op.loop is not None and op.loop.kind == "scan"]
    (loop,) = [op for op in loops if op.loop.length == count and not op.where.mark]
    return loop
