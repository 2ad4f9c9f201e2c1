"""What a pipeline stage costs, and what that makes of a partition: the terms of the objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autopar.errors import InternalError


@dataclass(frozen=True, slots=True)
class StageCost:
    """Seconds of one stage on one submesh.

    Attributes:
      microbatch_s: forward and backward of one micro-batch, with what it cannot hide of its transfers.
      once_s: what it does once a step: reduction of gradients, update.
    """

    microbatch_s: float
    once_s: float = 0.0

    def __post_init__(self):
        for what, seconds in (("microbatch_s", self.microbatch_s), ("once_s", self.once_s)):
            if not 0 <= seconds < math.inf:
                raise InternalError(f"a stage has {what} = {seconds}; what does not fit costs None, not infinity")


CostOf = Callable[[int, int, int, int], StageCost | None]
"""``cost(first, stop, shape, stages_after)`` of units ``first .. stop - 1`` on the ``shape``-th submesh shape.

``stages_after`` counts the stages from this one to the end, itself included: under 1F1B a stage holds the residuals
of ``min(stages_after, microbatches)`` micro-batches. None where it does not fit into memory.
"""


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """One stage of a partition.

    Attributes:
      first, stop: its units, ``stop`` excluded.
      shape: index of its submesh among the shapes.
    """

    first: int
    stop: int
    shape: int


@dataclass(frozen=True)
class Partition:
    """A chain of units cut into stages, each on a submesh.

    Attributes:
      spans: the stages, in order.
      costs: of each.
      step_s: the objective.
    """

    spans: tuple[Span, ...]
    costs: tuple[StageCost, ...]
    step_s: float

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.spans)


def partition_s(costs: Sequence[StageCost], microbatches: int, fill: float = 1.0) -> float:
    """The objective, seconds; see :mod:`autopar.planner.stages.partition`.

    >>> partition_s([StageCost(1.0, 0.5), StageCost(2.0, 0.25)], microbatches=4)
    9.5
    """
    slowest_s = max(cost.microbatch_s for cost in costs)
    total_s = sum(cost.microbatch_s for cost in costs)
    return fill * total_s + (microbatches - fill) * slowest_s + max(cost.once_s for cost in costs)
