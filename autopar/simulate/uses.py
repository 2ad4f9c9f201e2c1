"""What becomes of the time, the links and the memory of a simulated step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from autopar.simulate.memory import Steps


class Update(NamedTuple):
    """What a worker does once per step, from ``start_s`` to ``end_s`` after the start of the step."""

    worker: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class WorkerUse:
    """What becomes of a worker's time, and what its devices hold. The four times add up to the step.

    Attributes:
      stages: that it has: one, unless the schedule puts several on a worker; none of a plan without stages.
      devices: how many it has.
      compute_s: seconds of compute.
      collective_s: seconds of communication inside its stages, during which it does not compute.
      exposed_s: seconds for which it waits while a message is on its way to it, or queues for the link.
      idle_s: seconds for which it waits for what others have not computed yet.
      memory: bytes on one device over the step.
    """

    stages: tuple[int, ...]
    devices: int
    compute_s: float
    collective_s: float
    exposed_s: float
    idle_s: float
    memory: Steps = field(repr=False)

    @property
    def title(self) -> str:
        """What it is called.

        >>> WorkerUse((1, 3), 8, 0.0, 0.0, 0.0, 0.0, ()).title
        'stages 1, 3'
        """
        return stages_text(self.stages)

    @property
    def peak_bytes(self) -> int:
        """The most that one device holds."""
        return max(level for _, level in self.memory)


def stages_text(stages: Sequence[int]) -> str:
    """What a worker of these stages is called."""
    return f"stage{'s' if len(stages) > 1 else ''} {', '.join(map(str, stages))}" if stages else "all devices"


@dataclass(frozen=True, slots=True)
class LinkUse:
    """What goes from one worker to another in a step.

    Attributes:
      source, target: workers.
      level: the kind of link, ``host`` between hosts.
      messages: how many.
      bytes: over all of them, on the busiest device.
      busy_s: seconds for which messages are on their way.
      queued_s: seconds that messages wait for others, added up.
    """

    source: int
    target: int
    level: str
    messages: int
    bytes: float
    busy_s: float
    queued_s: float


@dataclass(frozen=True, slots=True)
class Bill:
    """What a training run takes.

    Attributes:
      units: tokens, or whatever is counted.
      steps: of training.
      hours: of wall time.
      device_hours: of all devices of the cluster, busy or not.
      cost: of these; None where no price was given.
    """

    units: float
    steps: int
    hours: float
    device_hours: float
    cost: float | None
