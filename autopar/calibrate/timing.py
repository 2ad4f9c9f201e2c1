"""Times that can be trusted: warmed up, repeated, and of many repetitions inside one program."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

_MOST = 4096  # repetitions in one program
_RUNS = 50
_SHORTEST_S = 1e-8


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure.

    Attributes:
      repeats: runs of each program, at least.
      run_s: about how long one run takes; short ones are run more often.
      limit_s: work that takes longer than this is not made larger.
    """

    repeats: int = 9
    run_s: float = 0.01
    limit_s: float = 0.02


QUICK = Effort(5, 0.004, 0.004)


def typical_s(call: Callable[[], Any], effort: Effort) -> float:
    """Seconds of a call, until what it returns is computed; it is called once before.

    The lower quartile of many: other processes of a machine make a call slower, and nothing makes it faster.
    """
    jax.block_until_ready(call())
    found: list[float] = []
    while len(found) < effort.repeats or (sum(found) < effort.repeats * effort.run_s and len(found) < _RUNS):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - begin)
    return sorted(found)[len(found) // 4]


def repeated_s(
    make: Callable[[int], Callable[[], Any]], effort: Effort, *, guess_s: float, call_s: float | None, most: int = _MOST
) -> float:
    """Seconds of one repetition inside a program.

    Args:
      make: a call of a program that does something so many times, one after the other.
      effort: how long to measure.
      guess_s: about what one takes; where it was far too high, a longer program is measured.
      call_s: of calling a program that does next to nothing, which does not count; None to find it out with two
        repetitions.
      most: repetitions at most.
    """
    least, idle_s = (0, call_s) if call_s is not None else (2, math.nan)
    for _ in range(3):
        times = min(max(math.ceil(effort.run_s / guess_s), least + 2), most)
        call = make(times)
        if call_s is None:  # at the same time, as on a machine with other work nothing stays as it was
            idle_s = min(typical_s(make(2), effort) for _ in range(2))
        seconds = (typical_s(call, effort) - idle_s) / (times - least)
        if seconds * times > max(effort.run_s / 4, idle_s) or (times == most and seconds > 0):
            break
        guess_s = max(seconds, 1e-7)
    return max(seconds, _SHORTEST_S)


def line(amounts: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """The line ``(latency_s, s_per_amount)`` nearest to measurements: least squares of relative errors, no negative.

    >>> latency_s, s_per_byte = line([1e3, 1e4, 1e6], [1.001e-4, 1.01e-4, 2e-4])
    >>> round(latency_s, 9), round(s_per_byte, 15)
    (0.0001, 1e-10)
    """
    x, y = np.asarray(amounts, float), np.asarray(seconds, float)
    terms = np.stack([1 / y, x / y], axis=1)
    latency_s, slope = np.linalg.lstsq(terms, np.ones_like(y), rcond=None)[0]
    if slope < 0 or len(x) == 1:
        return float((1 / y).sum() / (1 / y**2).sum()), 0.0
    if latency_s < 0:
        return 0.0, float((x / y).sum() / ((x / y) ** 2).sum())
    return float(latency_s), float(slope)


def rising(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Points whose seconds do not fall: a fall is noise, and its pair takes the mean of both.

    >>> rising([(1, 1.0), (2, 3.0), (4, 2.0), (8, 4.0)])
    ((1.0, 1.0), (2.0, 2.5), (4.0, 2.5), (8.0, 4.0))
    """
    blocks: list[list[float]] = []  # mean, count
    for _, seconds in sorted(points):
        blocks.append([seconds, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, count = blocks.pop()
            before = blocks[-1]
            blocks[-1] = [(before[0] * before[1] + mean * count) / (before[1] + count), before[1] + count]
    means = [mean for mean, count in blocks for _ in range(int(count))]
    return tuple((float(amount), float(mean)) for (amount, _), mean in zip(sorted(points), means, strict=True))
