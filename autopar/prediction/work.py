"""What one device does for one micro-batch: kernels and collectives, and what they keep. Plain data.

A model is a chain of units (embedding, attention, feed-forward, head), of which stages are cut. A unit is given as one
device sees it: what tensor or expert parallelism splits is divided already.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from autopar.sharding.layout import Collective


class Cause(enum.StrEnum):
    """What the seconds of a step are spent on."""

    MATMUL = "matmul"
    ATTENTION = "attention"
    MEMORY = "memory-bound"
    RECOMPUTE = "recompute"
    TENSOR = "tensor collectives"
    EXPERT = "expert collectives"
    DATA = "data collectives"
    UPDATE = "update"
    BUBBLE = "bubble"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of the forward pass, and what the backward pass does for it.

    Attributes:
      cause: ``MATMUL``, ``ATTENTION`` or ``MEMORY``.
      flops: operations, forward.
      read_bytes, write_bytes: in the device's memory, forward.
      back_flops, back_read_bytes, back_write_bytes: backward.
      back_launches: kernels of the backward pass.
      kept_bytes: what the forward pass leaves for the backward pass.
      core: part of the core of attention, which selective recomputation runs again.
    """

    cause: Cause
    flops: float = 0.0
    read_bytes: float = 0.0
    write_bytes: float = 0.0
    back_flops: float = 0.0
    back_read_bytes: float = 0.0
    back_write_bytes: float = 0.0
    back_launches: int = 1
    kept_bytes: float = 0.0
    core: bool = False


@dataclass(frozen=True, slots=True)
class Exchange:
    """One collective of a unit.

    Attributes:
      cause: ``TENSOR`` or ``EXPERT``, which says among which devices.
      kind: which collective.
      nbytes: of the larger of operand and result, per device.
    """

    cause: Cause
    kind: Collective
    nbytes: float


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of the model that stages are not cut in.

    Attributes:
      name: for people.
      kernels: of the forward pass, in order.
      forward, backward: collectives of the passes.
      parameters: on this device, the same on every replica.
      expert_parameters: on this device, of its own experts.
      starts: a layer starts here: stages are cut before it, and where the rest is computed again its input is kept.
      input_bytes: of that.
      last: the model ends here: it is not computed again, for its backward pass comes at once.
      output_bytes: what goes on to the next unit.
      useful_flops: of the forward pass, where its kernels do more (padding).
    """

    name: str
    kernels: tuple[Kernel, ...]
    forward: tuple[Exchange, ...] = ()
    backward: tuple[Exchange, ...] = ()
    parameters: float = 0.0
    expert_parameters: float = 0.0
    starts: bool = False
    input_bytes: float = 0.0
    last: bool = False
    output_bytes: float = 0.0
    useful_flops: float | None = None

    @property
    def flops(self) -> float:
        """Of the forward pass, by which stages are balanced on paper."""
        return sum(kernel.flops for kernel in self.kernels) if self.useful_flops is None else self.useful_flops


def matmul(
    rows: float,
    inner: float,
    columns: float,
    item: float,
    *,
    count: float = 1,
    read_item: float | None = None,
    gradient_bytes: float | None = None,
    kept: bool = True,
    cause: Cause = Cause.MATMUL,
    core: bool = False,
) -> Kernel:
    """``count`` products of [rows, inner] and [inner, columns] in one kernel; two kernels backward.

    Args:
      rows, inner, columns: sizes.
      item: bytes of a number.
      count: products in the batch.
      read_item: bytes of a number that is read, if it is stored in fewer.
      gradient_bytes: per number of the second operand, of writing its gradient: more than ``item`` where gradients of
        micro-batches are added up, which reads what there is.
      kept: whether the first operand waits for the backward pass.
      cause, core: as in :class:`Kernel`.

    >>> matmul(2, 3, 4, 2).flops
    48
    """
    read = item if read_item is None else read_item
    left, right, out = rows * inner * count, inner * columns * count, rows * columns * count
    flops = 2 * rows * inner * columns * count
    return Kernel(
        cause,
        flops,
        read * left + item * right,
        item * out,
        2 * flops,
        read * (2 * out + left + right),
        item * left + right * (item if gradient_bytes is None else gradient_bytes),
        2,
        read * left if kept else 0.0,
        core,
    )


def sweep(
    numbers: float, item: float, reads: float, writes: float, back: float, *, keeps: float = 0.0, core: bool = False
) -> Kernel:
    """A kernel bound by memory, which goes over values of ``numbers`` items each.

    Args:
      numbers: items of one value.
      item: bytes of an item.
      reads, writes: values read and written, forward.
      back: values read or written, backward.
      keeps: bytes that wait for the backward pass, per number.
      core: as in :class:`Kernel`.
    """
    nbytes = numbers * item
    return Kernel(
        Cause.MEMORY,
        read_bytes=nbytes * reads,
        write_bytes=nbytes * writes,
        back_read_bytes=nbytes * back,
        kept_bytes=numbers * keeps,
        core=core,
    )
