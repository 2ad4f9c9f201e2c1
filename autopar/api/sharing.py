"""What plans of one traced step on several clusters share."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

from autopar.lower import StagedStep, microbatched, unstacked
from autopar.planner import Options, Shared
from autopar.trace import Traced


class Sharing:
    """Work on a traced step that is done once for all of its plans, on whatever clusters and by whatever strategy.

    The step in its micro-batches, cut into units; and the plans of units, see
    :mod:`autopar.planner.stages.sharing`.

    Args:
      traced: the step.
    """

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self._staged: dict[Hashable, StagedStep] = {}
        self._written: dict[Hashable, Traced] = {}
        self._shared: dict[str, Shared] = {}

    def staged(self, microbatches: int, chunks: int, *, per_microbatch: bool) -> StagedStep:
        """The step as one that can be cut.

        Args:
          microbatches: their number.
          chunks: parts of a stack of scanned layers.
          per_microbatch: as in :class:`autopar.Options`.

        Raises:
          PlanError, CouplingError: the batch cannot be cut.
        """
        key = microbatches, chunks, per_microbatch
        if key not in self._staged:
            parts = unstacked(self.traced, chunks)
            self._staged[key] = StagedStep(parts.traced, microbatches, per_microbatch=per_microbatch)
        return self._staged[key]

    def written(self, microbatches: int, *, per_microbatch: bool) -> Traced:
        """The step written in micro-batches.

        Raises:
          PlanError, CouplingError: the batch cannot be cut.
        """
        key = microbatches, per_microbatch
        if key not in self._written:
            self._written[key] = microbatched(self.traced, microbatches, per_microbatch=per_microbatch)
        return self._written[key]

    def shared(self, staged: StagedStep, options: Options) -> Shared:
        """What searches for stages of a step, with equal options, have in common."""
        key = f"{id(staged)} {dataclasses.asdict(options)}"
        if key not in self._shared:
            self._shared[key] = Shared(staged, options)
        return self._shared[key]
