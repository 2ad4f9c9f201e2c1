"""What a pipeline does in which order, as data."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cached_property


class Kind(enum.StrEnum):
    """What a task computes for one micro-batch on one stage."""

    FORWARD = "F"
    BACKWARD = "B"  # the whole backward pass; where the schedule has WEIGHT tasks, only what earlier stages wait for
    WEIGHT = "W"  # the rest of the backward pass: what only the gradients of the stage's own parameters need


@dataclass(frozen=True, slots=True, order=True)
class Task:
    """One run of one program: ``kind`` of ``stage`` for ``microbatch``."""

    kind: Kind
    stage: int
    microbatch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.stage}.{self.microbatch}"


@dataclass(frozen=True)
class Schedule:
    """Every worker's tasks, in the order in which it runs them.

    Attributes:
      name: ``gpipe``, ``1f1b``, ``interleaved``, ``zb-h1`` or ``inference``.
      stages: number of stages.
      microbatches: number of micro-batches.
      workers: per worker, its tasks in order. A worker holds one stage, or several (interleaved).
    """

    name: str
    stages: int
    microbatches: int
    workers: tuple[tuple[Task, ...], ...]

    @cached_property
    def worker_of(self) -> tuple[int, ...]:
        """Stage -> the worker that holds it."""
        held = {task.stage: w for w, tasks in enumerate(self.workers) for task in tasks}
        return tuple(held[s] for s in range(self.stages))

    @cached_property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of task it has."""
        return frozenset(task.kind for tasks in self.workers for task in tasks)
