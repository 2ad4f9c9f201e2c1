"""Schedules by name."""

from __future__ import annotations

import functools
from collections.abc import Callable

from autopar.errors import OptionError, nearest
from autopar.schedule.orders import gpipe, inference, interleaved, one_f_one_b, zb_h1
from autopar.schedule.task import Schedule

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "zb-h1": zb_h1,
    "inference": inference,
}

CHUNKED = frozenset({"interleaved"})  # a worker may hold several stages, so their makers ask for the number of workers


@functools.lru_cache(maxsize=16, typed=True)  # the readers of a plan ask one by one, and it may be long
def make_schedule(name: str, stages: int, microbatches: int, workers: int | None = None) -> Schedule:
    """The schedule called ``name``.

    Args:
      name: a key of ``SCHEDULES``.
      stages: number of stages, 1 or more.
      microbatches: number of micro-batches, 1 or more.
      workers: number of workers. ``interleaved`` needs it; the others have as many as stages.

    Raises:
      OptionError: the name is unknown, a count is not a positive integer, or the stages do not fit the workers.

    >>> make_schedule("interleaved", stages=8, microbatches=4, workers=4).worker_of
    (0, 1, 2, 3, 0, 1, 2, 3)
    """
    if name not in SCHEDULES:
        raise OptionError(f"unknown schedule {name!r}: {nearest(str(name), SCHEDULES)}")
    if name in CHUNKED:
        if workers is None:
            raise OptionError(
                f"schedule {name!r} puts several of the {stages} stages on a worker; say on how many workers"
            )
        return SCHEDULES[name](stages, microbatches, workers)
    if workers not in (None, stages):
        raise OptionError(
            f"schedule {name!r} puts one stage on each worker; {stages} stages and {workers} workers were asked for. "
            f"Take as many stages as workers, or 'interleaved' for several stages on each"
        )
    return SCHEDULES[name](stages, microbatches)
