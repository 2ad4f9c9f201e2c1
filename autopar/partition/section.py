"""A part of a timed step that one group of devices computes: all of it, or a stage."""

from __future__ import annotations

from dataclasses import dataclass, field

from autopar.ir import Op


@dataclass(frozen=True)
class Section:
    """Which ops run, on what, and what leaves.

    A value is *whole* (one per step) or a *part* (one per micro-batch).

    Attributes:
      before, loop, after: ops, in execution order: once, for every micro-batch, once when those are done.
      whole: value ids that come in whole.
      parts: value ids that come in as parts.
      cut: whether ``parts`` are cut from whole arrays here; else they come one by one.
      summed, stacked: values of the loop that the ops after it, or whoever takes ``wholes_out``, read as a sum over
        all micro-batches, or put together from their parts.
      wholes_out: value ids that leave whole.
      parts_out: value ids that leave as parts.
    """

    before: tuple[Op, ...] = field(repr=False)
    loop: tuple[Op, ...] = field(repr=False)
    after: tuple[Op, ...] = field(repr=False)
    whole: tuple[int, ...]
    parts: tuple[int, ...]
    cut: bool
    summed: tuple[int, ...]
    stacked: tuple[int, ...]
    wholes_out: tuple[int, ...]
    parts_out: tuple[int, ...] = ()
