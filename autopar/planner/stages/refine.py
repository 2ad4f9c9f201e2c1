"""Move the cuts of a partition to where stages wait less for each other's messages.

The search over cuts and submeshes (:mod:`autopar.planner.stages.partition`) takes the slowest stage for the rhythm of a
pipeline. Under 1F1B there is more to it: neighbours that are as slow as each other also wait for what they send each
other (:func:`rhythm_s`), so the slow ones should not stand together. The search leaves open which of equal layers'
stages are the longer ones; steepest descent over single units settles that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from autopar.planner.stages.cost import CostOf, Partition, Span

_STEPS = 50
_EVENNESS = 1e-3  # of a micro-batch's time


def rhythm_s(microbatch_s: Sequence[float], round_trip_s: Sequence[float]) -> float:
    """Seconds from one micro-batch to the next under 1F1B, once the pipeline is full.

    Each stage has one micro-batch more on its way than the next. So in the time in which a micro-batch goes forward
    from stage ``i`` to ``j`` and back, the stages ``i .. j`` get ``j - i + 1`` of them done, and not more.

    Args:
      microbatch_s: of each stage, forward and backward.
      round_trip_s: between each stage and the next, what goes forward and what comes back.

    >>> rhythm_s([3.0, 3.0, 2.0], [0.5, 0.5])
    3.25
    """
    slowest_s = 0.0
    for i in range(len(microbatch_s)):
        total_s = 0.0
        for j in range(i, len(microbatch_s)):
            total_s += microbatch_s[j] + (round_trip_s[j - 1] if j > i else 0.0)
            slowest_s = max(slowest_s, total_s / (j - i + 1))
    return slowest_s


def refined(
    spans: tuple[Span, ...],
    cost: CostOf,
    round_trip_s: Callable[[int, int], float],
    microbatches: int,
    fill: float = 1.0,
) -> Partition | None:
    """The same submeshes with the cuts moved; ``step_s`` counts the messages. None if it does not fit as it is.

    Args:
      spans: the stages.
      cost: as the search had it.
      round_trip_s: between stage ``k`` and the next, if the next begins at unit ``at``: what goes forward and back.
      microbatches: of one step.
      fill: as the search had it.
    """

    def priced(spans: tuple[Span, ...]) -> Partition | None:
        costs = [cost(s.first, s.stop, s.shape, len(spans) - k) for k, s in enumerate(spans)]
        fitting = tuple(c for c in costs if c is not None)
        if len(fitting) < len(costs):
            return None
        times = [c.microbatch_s for c in fitting]
        waits = [round_trip_s(k, span.stop) for k, span in enumerate(spans[:-1])]
        loop_s = fill * sum(times) + (microbatches - fill) * rhythm_s(times, waits)
        return Partition(spans, fitting, loop_s + max(c.once_s for c in fitting))

    best = priced(spans)
    for _ in range(_STEPS):
        if best is None:
            break
        moved = (p for p in map(priced, _moves(best.spans)) if p is not None)
        found = min(moved, key=_rank_s, default=best)
        if _rank_s(found) >= _rank_s(best):
            break
        best = found
    return best


def _rank_s(cut: Partition) -> float:
    """What descends. Evenness counts next to nothing: of two slowest stages, one is relieved after the other."""
    times = [c.microbatch_s for c in cut.costs]
    return cut.step_s + _EVENNESS * sum(t * t for t in times) / max(sum(times), 1e-30)


def _moves(spans: tuple[Span, ...]) -> Iterator[tuple[Span, ...]]:
    """The partitions in which one stage has a unit more and another one less."""
    for low, high in itertools.combinations(range(len(spans)), 2):
        for by in (-1, 1):
            shifted = [
                Span(s.first + by * (low < k <= high), s.stop + by * (low <= k < high), s.shape)
                for k, s in enumerate(spans)
            ]
            if all(s.first < s.stop for s in shifted):
                yield tuple(shifted)


__all__ = ["refined", "rhythm_s"]
