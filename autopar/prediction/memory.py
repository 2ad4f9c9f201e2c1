"""Bytes that a device holds at most, by kind.

Per parameter: a copy in the dtype of matmuls (none in float32), its gradient, its master in float32 and the optimizer's
moments; ZeRO (Rajbhandari et al. 2020) divides the last two among replicas, then gradients, then the copy, of which two
layers are whole at a time. Activations: what each unit keeps, times the micro-batches in flight; and while a layer's
backward pass runs, what it computes again. What an allocator wastes and what libraries take is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autopar.prediction.pricing import kept_bytes, working_bytes
from autopar.prediction.stages import Stage
from autopar.prediction.work import Unit

MASTER_BYTES = 4


@dataclass(frozen=True)
class Held:
    """Bytes of one device at its peak.

    Attributes:
      parameters: with the master copy.
      gradients, moments: of them.
      activations: of micro-batches in flight.
      working: of the layer whose backward pass runs, or of the logits.
    """

    parameters: float
    gradients: float
    moments: float
    activations: float
    working: float

    @property
    def peak_bytes(self) -> float:
        """All of it."""
        return self.parameters + self.gradients + self.moments + self.activations + self.working


@dataclass(frozen=True)
class StateBytes:
    """Bytes per parameter, and among how many they are divided.

    Attributes:
      copy: of the copy in the dtype of matmuls, 0 if that is the master.
      gradient, moments: of each.
      zero: stage of ZeRO.
      shard: replicas that share what it shards.
    """

    copy: float
    gradient: float
    moments: float
    zero: int
    shard: int


def held(stages: Sequence[Stage], flights: Sequence[int], state: StateBytes, remat: str) -> Held:
    """What a device with these stages holds.

    Args:
      stages: of the device.
      flights: micro-batches in flight, for each.
      state: bytes per parameter.
      remat: what is computed again.
    """
    units = [unit for stage in stages for unit in stage]
    shared, own = sum(unit.parameters for unit in units), sum(unit.expert_parameters for unit in units)
    whole = 2 * max((unit.parameters for unit in units), default=0.0) if state.zero == 3 else 0.0
    part = [1.0 if state.zero < stage else 1 / state.shard for stage in (1, 2, 3)]
    return Held(
        state.copy * (shared * part[2] + own + whole) + MASTER_BYTES * (shared * part[0] + own),
        state.gradient * (shared * part[1] + own),
        state.moments * (shared * part[0] + own),
        sum(n * sum(kept_bytes(unit, remat) for unit in stage) for n, stage in zip(flights, stages, strict=True)),
        max((working for stage in stages for working in _working(stage, remat)), default=0.0),
    )


def _working(stage: Sequence[Unit], remat: str) -> list[float]:
    """Per layer, what its backward pass makes."""
    found = [0.0]
    for unit in stage:
        if unit.starts or unit.last:
            found.append(0.0)
        found[-1] += working_bytes(unit, remat)
    return found
