"""Seconds of one op's local work: the roofline.

    overhead + max(flops / (efficiency * peak(dtype)), bytes / memory bandwidth)

(Williams, Waterman and Patterson, "Roofline", CACM 2009.) Repeated work costs what it costs on every device:
there are no penalty constants. Of a device that was calibrated, both terms are seconds that were measured for work of
that size and kind, and what joins the kernel of its neighbours starts none.
"""

from __future__ import annotations

from autopar.mesh import Device


def compute_s(
    device: Device, dtype: str, flops: float, nbytes: float, *, starts: bool = True, matmul: bool = True
) -> float:
    """Seconds of one local op or fused group of ops.

    Args:
      device: where it runs.
      dtype: of the operands of its matmuls, which decides the peak; see :meth:`Device.peak`.
      flops: floating-point operations on this device.
      nbytes: bytes read and written in this device's memory.
      starts: whether it starts a kernel, rather than joining one; counts where that was measured.
      matmul: whether it is a matmul or convolution; counts likewise.

    Returns:
      Seconds; 0 if there is nothing to do.

    >>> compute_s(Device("d", {"float32": 1e12}, bytes_per_s=1e11, memory_bytes=1e9), "float32", 2e9, 1e8)
    0.002
    """
    if not flops and not nbytes:
        return 0.0
    overhead_s = device.overhead_s if starts or device.rates is None else 0.0
    return overhead_s + max(device.arithmetic_s(dtype, flops, matmul=matmul), device.memory_s(nbytes))
