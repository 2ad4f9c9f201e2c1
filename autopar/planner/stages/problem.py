"""What the search for stages asks of a step: a chain of units, and any cut of it as stages."""

from __future__ import annotations

from typing import Protocol

from autopar.ir import Op, Step
from autopar.partition import Recomputable, StageSection, Staging, Unit


class StagedProblem(Protocol):
    """A step in micro-batches that can be cut (:class:`autopar.lower.StagedStep`)."""

    microbatches: int
    units: tuple[Unit, ...]

    @property
    def step(self) -> Step:
        """The user's step."""

    @property
    def forward(self) -> tuple[Op, ...]:
        """The ops of the forward pass that a cut divides, in order."""

    @property
    def recomputable(self) -> Recomputable:
        """Which ops of each unit may run again in the backward pass."""

    def staging(self, begins: tuple[int, ...]) -> Staging:
        """The step cut where its stages begin, as positions among the forward ops."""

    def like(self, begins: tuple[int, ...], index: int) -> str:
        """Digest of one stage of a cut: equal ones are planned once."""

    def stage(self, begins: tuple[int, ...], index: int) -> tuple[Step, StageSection]:
        """One stage of a cut as a step of its own: a loop over micro-batches with its sums."""
