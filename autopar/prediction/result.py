"""What a prediction says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from autopar.prediction.efficiency import Fitted
from autopar.prediction.memory import Held


@dataclass(frozen=True)
class Prediction:
    """A training step, predicted.

    Attributes:
      model, cluster: what of and where.
      devices: how many.
      microbatches: of a step, on each replica.
      step_s: seconds of a step.
      tokens_per_s: of all devices; of a model with two sides, tokens of both. Where an example has no tokens, examples.
      unit: of these: ``tokens``, ``images``, ...
      tflops_per_device: model FLOPs per second and device, in TFLOP/s: three times the forward pass's matrix products,
        attention in full, nothing that is computed again.
      hardware_tflops_per_device: the same with what is computed again: the forward pass but for the output layer under
        full recomputation, the core of attention under selective.
      mfu, hfu: these two over the data sheet's peak.
      seconds: cause -> its seconds on the device that works longest; they add up to ``step_s``.
      bubble: the part of the step that this device waits for others.
      exposed_s: seconds of collectives that no compute hides.
      held: bytes at the peak of the fullest device, by kind.
      memory_bytes: what a device has.
      efficiency: the one empirical constant, and the published rows that it was fitted on.
      stages: per stage, its first and last unit.
    """

    model: str
    cluster: str
    devices: int
    microbatches: int
    step_s: float
    tokens_per_s: float
    unit: str
    tflops_per_device: float
    hardware_tflops_per_device: float
    mfu: float
    hfu: float
    seconds: Mapping[str, float]
    bubble: float
    exposed_s: float
    held: Held
    memory_bytes: float
    efficiency: Fitted
    stages: tuple[tuple[str, str], ...]

    @property
    def peak_bytes(self) -> float:
        """Bytes that the fullest device holds at most."""
        return self.held.peak_bytes

    @property
    def fits(self) -> bool:
        """Whether they fit into its memory."""
        return self.peak_bytes <= self.memory_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "seconds": dict(self.seconds), "peak_bytes": self.peak_bytes, "fits": self.fits}
