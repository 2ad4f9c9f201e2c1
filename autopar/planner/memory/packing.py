"""How much room arrays take that are held at different times in one block of memory: XLA's heap.

Buffers are placed by size, the largest first, then the longest held; each into the smallest gap that is free for as
long as it is held (``GlobalDecreasingSizeBestFitHeap``). What is left between them is the fragmentation that a sum
of sizes does not see.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ALIGNMENT = 64  # bytes
MOST = 1500
"""Only as many buffers are placed; the rest, the smallest, are taken to fit between them."""


def packed_bytes(buffers: Sequence[tuple[int, int, int]]) -> int:
    """Height of the block, bytes.

    Args:
      buffers: (first time, last time inclusive, bytes).
    """
    order = sorted((b for b in buffers if b[2]), key=lambda b: (-b[2], b[0] - b[1], b[0]))[:MOST]
    n = len(order)
    first, last, low, high = (np.zeros(n, dtype=np.int64) for _ in range(4))
    for i, (start, end, nbytes) in enumerate(order):
        size = -(-nbytes // ALIGNMENT) * ALIGNMENT
        meets = np.flatnonzero((first[:i] <= end) & (last[:i] >= start))
        meets = meets[np.argsort(low[meets], kind="stable")]
        tops = np.maximum.accumulate(high[meets]) if len(meets) else high[:0]
        floor = np.concatenate(([0], tops))  # where each gap begins; the last has no end
        gaps = low[meets] - floor[:-1]
        fitting = np.flatnonzero(gaps >= size)
        at = floor[fitting[np.argmin(gaps[fitting])]] if len(fitting) else floor[-1]
        first[i], last[i], low[i], high[i] = start, end, at, at + size
    return int(high.max(initial=0))


__all__ = ["packed_bytes"]
