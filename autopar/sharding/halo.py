"""Windows that slide along a split dim: what a shard needs from its neighbours, and what that costs. No jax.

Along one dim of n points, dilated by ``base`` and padded by ``low`` in front, a window of ``taps`` points,
``spread`` apart, moves by ``stride`` and makes m points. Where ``n * base == m * stride`` up to a common
factor, shard p of the operand lies right under shard p of the result, and the extra points at either side
are the same for every shard.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autopar.ir import Kind, Rule
from autopar.sharding.layout import local_shape
from autopar.sharding.strategy import Strategy


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window along one dim.

    Attributes:
      taps: points of the window.
      stride: steps between windows, in dilated points.
      low: padding in front, in dilated points; may be negative (cropping).
      base: dilation of the operand.
      spread: dilation of the window.
    """

    taps: int
    stride: int = 1
    low: int = 0
    base: int = 1
    spread: int = 1

    @property
    def halo(self) -> tuple[int, int]:
        """Operand points that one shard needs from its (lower, higher) neighbours."""
        below = max(0, self.low) // self.base
        last = (self.taps - 1) * self.spread - self.low - self.stride  # beyond the shard's own dilated points
        return below, max(0, last // self.base + 1)

    def padding(self, points: int, made: int) -> tuple[int, int]:
        """The padding with which ``points`` operand points, halo included, make ``made`` points.

        Args:
          points: operand points at hand: the shard and its halo.
          made: result points of the shard.
        """
        low = self.low - self.halo[0] * self.base
        span = (made - 1) * self.stride + (self.taps - 1) * self.spread + 1
        return low, span - low - ((points - 1) * self.base + 1)

    def aligns(self, points: int, made: int) -> bool:
        """Whether equal shards of the operand and the result lie over each other."""
        return points > 0 and made > 0 and points * self.base == made * self.stride


@dataclass(frozen=True, slots=True)
class Exchange:
    """One collective-permute: every device passes a slab to the device ``hop`` further along the axis.

    Attributes:
      axis: mesh axis.
      hop: +1 fills the lower halo of the next device, -1 the higher halo of the previous; further hops where
        the halo is wider than a shard.
      width: points of the slab along the split dim.
      nbytes: bytes each device sends.
    """

    axis: int
    hop: int
    width: int
    nbytes: int


def slabs(points: int, shards: int, halo: tuple[int, int]) -> list[tuple[int, int]]:
    """The (hop, width) of every exchange that fills ``halo`` around a shard of ``points`` points.

    Example:
      >>> slabs(points=2, shards=4, halo=(3, 1))
      [(1, 2), (2, 1), (-1, 1)]
    """
    found = []
    for sign, wanted in zip((1, -1), halo, strict=True):
        for hop in range(1, min(math.ceil(wanted / points), shards - 1) + 1):
            found.append((sign * hop, min(points, wanted - (hop - 1) * points)))
    return found


def halo_axes(rule: Rule, strategy: Strategy) -> list[tuple[int, int, tuple[int, int]]]:
    """Per mesh axis that splits a halo factor: (axis, dim of operand 0, halo)."""
    found = []
    for axis, action in enumerate(strategy.actions):
        if action.factor is None:
            continue
        factor = rule.factors[action.factor]
        if factor.kind is Kind.HALO:
            found.append((axis, action.operands[0], factor.halo))
    return found


def exchanges(
    rule: Rule, strategy: Strategy, mesh: Sequence[int], shape: Sequence[int], item_bytes: int
) -> list[Exchange]:
    """Every collective-permute that ``strategy`` needs before the local op can run, in order.

    Args:
      rule: of the op.
      strategy: of the op.
      mesh: sizes of the mesh axes.
      shape: global shape of operand 0.
      item_bytes: bytes of one element of operand 0.
    """
    part = list(local_shape(shape, strategy.operands[0], mesh)) if strategy.operands else []
    found = []
    for axis, dim, halo in halo_axes(rule, strategy):
        row_bytes = item_bytes * math.prod(n for d, n in enumerate(part) if d != dim)
        for hop, width in slabs(part[dim], mesh[axis], halo):
            found.append(Exchange(axis, hop, width, width * row_bytes))
        part[dim] += sum(halo)
    return found
