"""A plan in time: who works when, what waits for what, what is held, and what a training run takes and costs."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from autopar.errors import OptionError
from autopar.files import write_text
from autopar.simulate.perfetto import Measured, trace_text
from autopar.simulate.timeline import Timeline
from autopar.simulate.uses import Bill, LinkUse, Update, WorkerUse


@dataclass(frozen=True)
class Simulation:
    """A plan in time, as predicted.

    Attributes:
      name, cluster: of the plan.
      devices: of the cluster, whether the plan uses them or not.
      microbatches: parts of the batch.
      timeline: of all micro-batches: tasks and messages.
      updates: what follows them.
      step_s: when the last update ends.
      workers: what becomes of the time of each.
      links: what goes between them.
      contention: messages wait for each other.
      peak_flops_per_s: of all devices together, in ``dtype``; 0 if the FLOPs are unknown.
      dtype: in which most of the arithmetic is done.
      flops: of the model, per step (``autopar.ir.product_flops``); 0 if unknown.
      again_flops: FLOPs computed again to save memory.
      units: tokens per step, or whatever is counted; 0 if nothing is.
      unit: what they are called.
    """

    name: str
    cluster: str
    devices: int
    microbatches: int
    timeline: Timeline = field(repr=False)
    updates: tuple[Update, ...] = field(repr=False)
    step_s: float
    workers: tuple[WorkerUse, ...] = field(repr=False)
    links: tuple[LinkUse, ...] = field(repr=False)
    contention: bool
    peak_flops_per_s: float
    dtype: str
    flops: float
    again_flops: float
    units: float
    unit: str

    @property
    def bubble(self) -> float:
        """The part of the step for which the average device waits, 0 to 1."""
        waits = sum(w.devices * (w.exposed_s + w.idle_s) for w in self.workers)
        whole = sum(w.devices for w in self.workers) * self.step_s
        return waits / whole if whole else 0.0

    @property
    def peak_bytes(self) -> int:
        """The most that any device holds."""
        return max(worker.peak_bytes for worker in self.workers)

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation: FLOPs of the model by what all devices could do in the step; None if unknown."""
        return self._share(self.flops) if self.flops else None

    @property
    def hfu(self) -> float | None:
        """Hardware FLOPs utilisation: the same with what is computed again; None if unknown."""
        return self._share(self.flops + self.again_flops) if self.flops else None

    def _share(self, flops: float) -> float:
        possible = self.peak_flops_per_s * self.step_s
        return flops / possible if possible else math.inf

    @property
    def units_per_s(self) -> float | None:
        """Tokens, or whatever is counted, per second; None if nothing is."""
        return self.units / self.step_s if self.units and self.step_s else None

    def bill(self, units: float, price_per_device_hour: float | None = None) -> Bill:
        """What a training run of so many tokens takes.

        Args:
          units: tokens, or whatever the simulation counts, of the whole run.
          price_per_device_hour: of one device, in any currency.

        Raises:
          OptionError: the simulation does not know how many there are in a step, or a number makes no sense.
        """
        if not self.units:
            raise OptionError(
                "what a run costs depends on how many tokens a step has, which a plan does not say: "
                "autopar.simulate(plan, units=batch_size * sequence_length, unit='tokens')."
            )
        for what, number in (("a budget", units), ("a price", price_per_device_hour or 0.0)):
            if not 0 <= number < math.inf:
                raise OptionError(f"{what} of {number} makes no sense; it must be a finite number, not negative.")
        steps = math.ceil(units / self.units)
        hours = steps * self.step_s / 3600
        cost = None if price_per_device_hour is None else hours * self.devices * price_per_device_hour
        return Bill(units, steps, hours, hours * self.devices, cost)

    def check_measured(self, measured: Sequence[Measured]) -> None:
        """Check that spans can be of a step under this plan.

        Args:
          measured: spans of a step that ran.

        Raises:
          OptionError: they are of another plan.
        """
        stages = {s for worker in self.workers for s in worker.stages}
        strange = sorted({span.stage for span in measured} - stages)
        if strange:
            raise OptionError(
                f"the measured spans have stage {strange[0]}, and the plan of {self.name} has "
                f"{f'{len(stages)} stages, counted from 0' if stages else 'no stages'}. Pass the spans of a step under "
                "this plan."
            )

    def to_perfetto(self, path: str | os.PathLike[str], measured: Sequence[Measured] = ()) -> None:
        """Write the step as a trace that https://ui.perfetto.dev and chrome://tracing show.

        One track per worker with its tasks (``F3`` is the forward pass of micro-batch 3, ``B`` backward, ``W``
        weights, ``U`` the update), one per link with its messages, and the memory of each worker's devices.

        Args:
          path: of the file, JSON in the Trace Event format.
          measured: spans of a step that ran (``executable.timeline``), to stand beside the prediction.

        Raises:
          OptionError: the file cannot be written, or the spans are of another plan.
        """
        write_text(path, self.perfetto_text(measured), OptionError, "the trace")

    def perfetto_text(self, measured: Sequence[Measured] = ()) -> str:
        """What :meth:`to_perfetto` writes.

        Args:
          measured: spans of a step that ran, which are put beside the predicted ones.

        Raises:
          OptionError: the spans are of another plan.
        """
        self.check_measured(measured)
        return trace_text(self.name, self.timeline, self.updates, self.workers, self.links, measured)
