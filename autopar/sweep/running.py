"""How long a step takes that really runs, for the column beside the prediction."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from autopar.api import Executable, StagedExecutable
from autopar.api.handles import Handle
from autopar.trace import Traced

_WARM_UP = 2  # steps: the first moves the state to its place
_ROUNDS = 3


def measured_step_s(step: Executable | StagedExecutable, traced: Traced, args: Sequence[Any], steps: int) -> float:
    """Seconds per step: the median of a few rounds of steps one after the other, each from the state of the last.

    Args:
      step: what to run.
      traced: the step, which says what of its arguments is state.
      args: arrays to begin with. The batch stays the same.
      steps: of one round.
    """
    # Copies, for the step may give its arguments away.
    leaves = [x.copy() if isinstance(x, jax.Array) else x for x in jax.tree.leaves((tuple(args), {}))]

    def run(count: int, leaves: list[Any]) -> list[Any]:
        results: list[Any] = []
        for _ in range(count):
            given, named = jax.tree.unflatten(traced.in_tree, leaves)
            results = jax.tree.leaves(step(*given, **named))
            leaves = list(leaves)
            for source, target in traced.step.state:
                leaves[source] = results[target]
        _wait(results)
        return leaves

    leaves = run(_WARM_UP, leaves)
    seconds = []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        leaves = run(steps, leaves)
        seconds.append((time.perf_counter() - begin) / steps)
    return statistics.median(seconds)


def _wait(results: Sequence[Any]) -> None:
    """Until a step is done, also where its state lies on stages."""
    jax.block_until_ready([x for x in results if isinstance(x, jax.Array)])
    for x in results:
        if isinstance(x, Handle):
            np.asarray(x)
