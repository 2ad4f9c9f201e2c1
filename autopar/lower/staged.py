"""A traced step that can be cut into stages: what the planner asks for while it searches, and what lowering uses."""

from __future__ import annotations

import functools
from dataclasses import replace

from autopar.ir import Op, Step
from autopar.lower.emit import emit
from autopar.partition import (
    Recomputable,
    StageSection,
    Staging,
    Timing,
    Unit,
    find_units,
    forward_ops,
    recomputable,
    stage_digest,
    stage_step,
    time_step,
)
from autopar.trace import Traced


class StagedStep:
    """A step in micro-batches, to be cut.

    Args:
      traced: the step.
      microbatches: their number.
      per_microbatch: as in :func:`autopar.partition.time_step`.
      most_units: how many units to cut it into at most.

    Raises:
      PlanError, CouplingError: the batch cannot be cut.
    """

    def __init__(
        self, traced: Traced, microbatches: int, *, per_microbatch: bool = False, most_units: int = 72
    ) -> None:
        self.traced = traced
        self.microbatches = microbatches
        self.timing: Timing = time_step(traced.step, microbatches, per_microbatch=per_microbatch)
        self.units: tuple[Unit, ...] = find_units(traced.step, self.timing, most_units)

    @functools.cached_property
    def forward(self) -> tuple[Op, ...]:
        """The ops of the forward pass that a cut divides, in order."""
        return forward_ops(self.traced.step, self.timing)

    @functools.cached_property
    def recomputable(self) -> Recomputable:
        """Which ops of each unit may run again in the backward pass."""
        return recomputable(self.traced.step, self.timing, self.units)

    @property
    def step(self) -> Step:
        """The user's step."""
        return self.traced.step

    @functools.lru_cache(maxsize=8)  # noqa: B019 (lives as long as one search)
    def staging(self, begins: tuple[int, ...]) -> Staging:
        """The step cut where its stages begin, as positions among the forward ops."""
        return stage_step(self.traced.step, self.timing, begins)

    def written(self, info: StageSection) -> Traced:
        """A stage as a step of its own, its state donated."""
        traced = emit(self.traced, self.timing, info.section)
        leaves = range(len(info.state))
        step = replace(
            traced.step,
            state=tuple((k, k) for k in leaves),
            donated=frozenset(leaves),
            batch=tuple(range(len(info.section.whole), len(traced.step.graph.inputs))),
            name=f"{self.traced.step.name}, stage {info.index}",
            apart=True,
        )
        return replace(traced, step=step)

    @functools.lru_cache(maxsize=256)  # noqa: B019 (lives as long as one search)
    def like(self, begins: tuple[int, ...], index: int) -> str:
        """Stages of equal digest are planned alike."""
        return stage_digest(self.step, self.timing, self.staging(begins).stages[index])

    def stage(self, begins: tuple[int, ...], index: int) -> tuple[Step, StageSection]:
        """One stage of a cut, for the planner."""
        info = self.staging(begins).stages[index]
        return self.written(info).step, info
