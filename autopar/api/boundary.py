"""A hint in the user's step: a pipeline stage may begin here."""

from __future__ import annotations

from typing import TypeVar

import jax

from autopar.partition import BOUNDARY

Tree = TypeVar("Tree")


def stage_boundary(tree: Tree) -> Tree:
    """Marks a place where a pipeline stage may begin. Where a step has such marks, stages begin at no other place.

    It returns what it gets, and its gradient is that of the identity, so a step may be marked whether it is planned
    with stages or not. With as many marks as ``Options.stages`` less one, they are where the step is cut. Inside a
    loop (``jax.lax.scan``) they say nothing; a scan over stacked layers is cut between layers.

    Args:
      tree: what passes from one stage to the next: arrays of any shapes, in any pytree.

    Example:
      >>> import jax.numpy as jnp
      >>> stage_boundary({"h": jnp.ones(2)})["h"].shape
      (2,)
    """
    with jax.named_scope(BOUNDARY):
        return jax.lax.optimization_barrier(tree)


__all__ = ["stage_boundary"]
