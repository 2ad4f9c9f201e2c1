"""Seconds of one unit for one micro-batch, by cause."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from autopar.cost import compute_s
from autopar.mesh import AxisLinks, Device
from autopar.prediction.rates import Wiring, is_tpu
from autopar.prediction.work import Cause, Exchange, Kernel, Unit

Seconds = dict[Cause, float]


def added(parts: Iterable[Seconds]) -> Seconds:
    """Sums, cause by cause.

    >>> added([{Cause.MATMUL: 1.0}, {Cause.MATMUL: 2.0, Cause.TENSOR: 1.0}])[Cause.MATMUL]
    3.0
    """
    found = dict.fromkeys(Cause, 0.0)
    for part in parts:
        for cause, seconds in part.items():
            found[cause] += seconds
    return found


@dataclass(frozen=True)
class Prices:
    """What the prices of units depend on.

    Attributes:
      wiring: the cluster at the rates that are reached.
      dtype: of matmuls.
      axes: cause -> the devices among which its collectives run.
      remat: what the backward pass computes again.
      overlap_tensor: collectives of tensor parallelism run beside matmuls.
    """

    wiring: Wiring
    dtype: str
    axes: dict[Cause, AxisLinks]
    remat: str
    overlap_tensor: bool

    def forward(self, unit: Unit) -> Seconds:
        """Of the forward pass."""
        found = added([])
        for kernel in unit.kernels:
            found[kernel.cause] += self._forward_s(kernel)
        self._exchange(found, unit.forward, found[Cause.MATMUL])
        return found

    def backward(self, unit: Unit) -> Seconds:
        """Of the backward pass, with what is computed again under ``RECOMPUTE``."""
        found = added([])
        for kernel in unit.kernels:
            found[kernel.cause] += self._backward_s(kernel)
        self._exchange(found, unit.backward, found[Cause.MATMUL])
        found[Cause.RECOMPUTE] += self._again_s(unit)
        return found

    def _again_s(self, unit: Unit) -> float:
        if unit.last or self.remat == "none":
            return 0.0
        if self.remat == "full":
            return sum(self.forward(unit).values())
        return sum(self._forward_s(kernel) for kernel in unit.kernels if kernel.core)

    def _exchange(self, found: Seconds, exchanges: tuple[Exchange, ...], matmul_s: float) -> None:
        """Add the collectives, or what of them is not hidden.

        Beside matmuls, a collective of n devices goes in n chunks, each while the next is multiplied, so that at least
        one chunk is exposed (Transformer Engine's overlap of all-gathers and reduce-scatters).
        """
        for exchange in exchanges:
            axis = self.axes[exchange.cause]
            seconds = self.wiring.seconds(exchange.kind, axis, exchange.nbytes)
            if self.overlap_tensor and exchange.cause is Cause.TENSOR:
                seconds = max(seconds / axis.size, seconds - matmul_s / len(exchanges))
            found[exchange.cause] += seconds

    def _forward_s(self, kernel: Kernel) -> float:
        return self._kernel_s(kernel.flops, kernel.read_bytes, kernel.write_bytes, 1)

    def _backward_s(self, kernel: Kernel) -> float:
        launches = kernel.back_launches
        return self._kernel_s(kernel.back_flops, kernel.back_read_bytes, kernel.back_write_bytes, launches)

    def _kernel_s(self, flops: float, read: float, write: float, launches: int) -> float:
        """Seconds of ``launches`` equal kernels.

        The roofline, but for one thing: on a GPU the blocks of a matmul multiply first and write their results then,
        and blocks that start together write together, so that writing adds to multiplying. Hence matmuls with a short
        inner dim are slow: their share of the peak is k / (k + k0), k0 = item x peak / (2 x memory bandwidth).
        """
        device, each = self.device, 1 / launches
        if is_tpu(device) or not flops:
            return launches * compute_s(device, self.dtype, flops * each, (read + write) * each)
        return launches * compute_s(device, self.dtype, flops * each, read * each) + write / device.bytes_per_s

    @property
    def device(self) -> Device:
        """At the rates that are reached."""
        return self.wiring.cluster.device


def kept_bytes(unit: Unit, remat: str) -> float:
    """What a unit keeps of one micro-batch from its forward to its backward pass."""
    if unit.last:
        return 0.0
    if remat == "full":
        return unit.input_bytes if unit.starts else 0.0
    return sum(kernel.kept_bytes for kernel in unit.kernels if remat == "none" or not kernel.core)


def working_bytes(unit: Unit, remat: str) -> float:
    """What is there only while a unit's backward pass runs: what was computed again, and the logits."""
    if unit.last:
        return sum(kernel.kept_bytes for kernel in unit.kernels)
    again = (kernel for kernel in unit.kernels if remat == "full" or (remat == "selective" and kernel.core))
    return sum(kernel.kept_bytes for kernel in again)
