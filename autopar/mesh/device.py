"""One accelerator as the cost model sees it: rates, memory and launch overhead, each with its source."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autopar.errors import ClusterError
from autopar.mesh.measured import Rates, seconds_at


@dataclass(frozen=True)
class Device:
    """One device (what jax calls a device: a GPU, a TPU chip, or one core of a TPU v3 chip).

    Attributes:
      name: preset name or the user's own.
      flops_per_s: peak FLOP/s of large matmuls by dtype name. See :meth:`peak` for dtypes not named. Not to be
        changed after construction.
      bytes_per_s: bandwidth of the device's own memory.
      memory_bytes: its capacity.
      overhead_s: fixed time of one op: a kernel launch.
      efficiency: share of the peak that large matmuls reach, 0 < efficiency <= 1. The one empirical constant
        of the compute model.
      source: where the numbers come from.
      rates: what work takes as it was measured, in place of the rates above; None where nothing was.
    """

    name: str
    flops_per_s: Mapping[str, float] = field(hash=False)
    bytes_per_s: float
    memory_bytes: float
    overhead_s: float = 0.0
    source: str = "user"
    efficiency: float = 1.0
    rates: Rates | None = None

    def __post_init__(self):
        if not self.flops_per_s:
            raise ClusterError(f"device {self.name!r} has no FLOP/s; name at least one dtype, e.g. 'float32'")
        rates = {f"flops_per_s[{k!r}]": v for k, v in self.flops_per_s.items()}
        for what, amount in (*rates.items(), ("bytes_per_s", self.bytes_per_s), ("memory_bytes", self.memory_bytes)):
            if not amount > 0:  # also refuses nan
                raise ClusterError(f"device {self.name!r} has {what} = {amount}; it must be positive")
        if not 0 <= self.overhead_s < math.inf:
            raise ClusterError(f"device {self.name!r} has overhead_s = {self.overhead_s}; it must be 0 or more")
        if not 0 < self.efficiency <= 1:
            raise ClusterError(f"device {self.name!r} has efficiency = {self.efficiency}; it must be in (0, 1]")
        object.__setattr__(self, "flops_per_s", dict(self.flops_per_s))

    def arithmetic_s(self, dtype: str, flops: float, *, matmul: bool = True) -> float:
        """Seconds of arithmetic: as measured for its size and kind, or at ``efficiency`` of the peak.

        >>> Device("d", {"float32": 1e12}, 1e11, 1e9, efficiency=0.5).arithmetic_s("float32", 1e12)
        2.0
        """
        if self.rates is None:
            return flops / (self.efficiency * self.peak(dtype))
        return seconds_at(self.rates.curve((dtype, *_stand_ins(dtype)), matmul=matmul), flops)

    def memory_s(self, nbytes: float) -> float:
        """Seconds to read and write so many bytes of its memory.

        >>> Device("d", {"float32": 1e12}, 1e11, 1e9).memory_s(1e11)
        1.0
        """
        return nbytes / self.bytes_per_s if self.rates is None else seconds_at(self.rates.memory, nbytes)

    @property
    def reordered(self) -> bool:
        """Whether its compiler runs kernels in an order of its own: XLA's for CPUs, which drops barriers before."""
        return self.name == "cpu"

    def peak(self, dtype: str) -> float:
        """Peak FLOP/s of matmuls whose operands have ``dtype``, before ``efficiency``.

        - ``float32`` on a device with a ``tf32`` rate runs at that rate: jax's default matmul precision lets XLA
          round float32 operands to TF32 on such GPUs. (TPUs do the same with bfloat16; their presets say so in
          ``float32``.) Elementwise float32 work is bound by memory, so the choice does not matter there.
        - 16-bit floats stand in for each other if only one is named, 8-bit floats fall back on 16 bits.
        - Complex numbers count at the rate of their parts.
        - Anything else, integers included, runs at the slowest rate named: unknown is never free.

        >>> Device("d", {"float32": 1e12, "tf32": 4e12, "bfloat16": 8e12}, 1e12, 1e9).peak("float32")
        4000000000000.0
        """
        rates = self.flops_per_s
        for name in _stand_ins(dtype):
            if name in rates:
                return rates[name]
        return min(rates.values())


def _stand_ins(dtype: str) -> tuple[str, ...]:
    """Dtypes at whose rate matmuls of a dtype run, the best match first."""
    return _STAND_INS.get(dtype, (dtype,) if not dtype.startswith("float8") else _FLOAT8)


def least(devices: Sequence[Device]) -> Device:
    """What each of several devices is at least: the slowest rate, the smallest memory, the longest overhead.

    >>> slow, fast = Device("slow", {"float32": 1e12}, 1e11, 8e9), Device("fast", {"float32": 9e12}, 1e12, 4e9)
    >>> least([slow, fast]).peak("float32"), least([slow, fast]).memory_bytes
    (1000000000000.0, 4000000000.0)
    """
    if all(device == devices[0] for device in devices):
        return devices[0]
    named = [set(device.flops_per_s) for device in devices]
    dtypes = sorted(set.intersection(*named) or set.union(*named))
    return Device(
        "+".join(dict.fromkeys(device.name for device in devices)),
        {dtype: min(device.peak(dtype) for device in devices) for dtype in dtypes},
        min(device.bytes_per_s for device in devices),
        min(device.memory_bytes for device in devices),
        max(device.overhead_s for device in devices),
        "the least of several devices",
        min(device.efficiency for device in devices),
    )


_FLOAT8 = ("float8", "bfloat16", "float16")
_STAND_INS = {
    "float32": ("tf32", "float32"),
    "complex64": ("tf32", "float32"),
    "complex128": ("float64",),
    "bfloat16": ("bfloat16", "float16"),
    "float16": ("float16", "bfloat16"),
}
