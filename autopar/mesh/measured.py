"""What was measured on devices, as the cost model reads it: seconds of work by its size, of collectives by a line."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from autopar.errors import ClusterError

Curve = tuple[tuple[float, float], ...]
"""Seconds by amount (FLOP or bytes): points with both increasing, the smallest first."""

TRANSFER = "transfer"
"""The kind of a :class:`CollectiveLine` that is no collective: from one stage's devices to another's."""


class CollectiveLine(NamedTuple):
    """What a collective takes on links of one level.

    Attributes:
      kind: XLA's name, ``all-reduce``; or :data:`TRANSFER`.
      size: number of children that it joins; 0 for any.
      latency_s, s_per_byte: seconds are ``latency_s + s_per_byte * bytes``, bytes per device of the larger of operand
        and result.
    """

    kind: str
    size: int
    latency_s: float
    s_per_byte: float


@dataclass(frozen=True, slots=True)
class Rates:
    """What work takes on one device while all devices of the cluster do the same.

    Attributes:
      devices: how many were at work when it was measured.
      matmul: per dtype, seconds of a matmul by its FLOP, without starting its kernel.
      vector: per dtype, seconds of other arithmetic by its FLOP, likewise: elementwise functions and sums.
      memory: seconds of an elementwise kernel by the bytes that it reads and writes, without starting it.
      dispatch_s: to call a compiled program on all devices of the cluster.
      argument_s: more of it for each argument and result.
    """

    devices: int
    matmul: tuple[tuple[str, Curve], ...]
    vector: tuple[tuple[str, Curve], ...]
    memory: Curve
    dispatch_s: float = 0.0
    argument_s: float = 0.0

    def __post_init__(self):
        if self.devices < 1:
            raise ClusterError(f"rates were measured with {self.devices} devices at work; it must be 1 or more")
        if not self.matmul or not self.vector:
            raise ClusterError("measured rates name no dtype of matmuls, or of other arithmetic")
        for what, by_dtype in (("matmul", self.matmul), ("vector", self.vector), ("memory", (("", self.memory),))):
            for dtype, curve in by_dtype:
                check_curve(f"{what} {dtype}", curve)
        for what, seconds in (("dispatch_s", self.dispatch_s), ("argument_s", self.argument_s)):
            if not 0 <= seconds < math.inf:
                raise ClusterError(f"measured rates have {what} = {seconds}; it must be 0 or more")

    def curve(self, dtypes: Sequence[str], *, matmul: bool) -> Curve:
        """That of the first of these dtypes that was measured; else that of the slowest dtype."""
        known = dict(self.matmul if matmul else self.vector)
        found = next((known[dtype] for dtype in dtypes if dtype in known), None)
        return found or max(known.values(), key=lambda curve: curve[-1][1] / curve[-1][0])

    def call_s(self, arguments: int) -> float:
        """Seconds to call a program with so many arguments and results."""
        return self.dispatch_s + arguments * self.argument_s


def check_curve(what: str, curve: Curve) -> None:
    """Refuse a curve that does not rise.

    Raises:
      ClusterError: it is empty, or amounts or seconds are not positive, or fall.
    """
    rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in itertools.pairwise(curve))
    if not curve or not rising or not all(0 < x < math.inf for point in curve for x in point):
        raise ClusterError(
            f"the seconds measured of {what} are {curve}; they must be points (amount, seconds), at least one, both "
            "positive and rising"
        )


@functools.lru_cache(maxsize=1_000)
def _logarithms(curve: Curve) -> tuple[list[float], list[float]]:
    return [math.log(amount) for amount, _ in curve], [math.log(seconds) for _, seconds in curve]


def seconds_at(curve: Curve, amount: float) -> float:
    """Seconds of an amount of work: straight between points in the logarithms of both, at the rate of the ends beyond.

    >>> seconds_at(((1.0, 1.0), (100.0, 10.0)), 10.0), seconds_at(((1.0, 1.0), (100.0, 10.0)), 1000.0)
    (3.1622776601683795, 100.0)
    """
    if amount <= 0:
        return 0.0
    if amount <= curve[0][0]:
        return curve[0][1] * (amount / curve[0][0])
    if amount >= curve[-1][0]:
        return curve[-1][1] * (amount / curve[-1][0])
    amounts, seconds = _logarithms(curve)
    x = math.log(amount)
    i = bisect.bisect_right(amounts, x)
    part = (x - amounts[i - 1]) / (amounts[i] - amounts[i - 1])
    return math.exp(seconds[i - 1] + part * (seconds[i] - seconds[i - 1]))


def line_for(lines: Sequence[CollectiveLine], kind: str, size: int) -> CollectiveLine | None:
    """The line of a kind and size; between sizes that were measured on the straight line, beyond them of the nearest.

    >>> lines = [CollectiveLine("all-reduce", 2, 1.0, 0.0), CollectiveLine("all-reduce", 4, 3.0, 0.0)]
    >>> line_for(lines, "all-reduce", 3).latency_s, line_for(lines, "all-gather", 2)
    (2.0, None)
    """
    mine = sorted((line for line in lines if line.kind == kind), key=lambda line: line.size)
    if not mine:
        return None
    above = next((line for line in mine if line.size >= size), mine[-1])
    below = next((line for line in reversed(mine) if line.size <= size), mine[0])
    part = (size - below.size) / (above.size - below.size) if above.size != below.size else 0.0
    latency_s = below.latency_s + part * (above.latency_s - below.latency_s)
    s_per_byte = below.s_per_byte + part * (above.s_per_byte - below.s_per_byte)
    return CollectiveLine(kind, size, latency_s, s_per_byte)


def rates_to_dict(rates: Rates) -> dict[str, Any]:
    """JSON-able facts."""
    return {
        "devices": rates.devices,
        "matmul": {dtype: [list(point) for point in curve] for dtype, curve in rates.matmul},
        "vector": {dtype: [list(point) for point in curve] for dtype, curve in rates.vector},
        "memory": [list(point) for point in rates.memory],
        "dispatch_s": rates.dispatch_s,
        "argument_s": rates.argument_s,
    }


def rates_from_dict(data: Mapping[str, Any]) -> Rates:
    """The inverse of :func:`rates_to_dict`.

    Raises:
      KeyError, TypeError, ValueError, ClusterError: it is malformed.
    """

    def curve(points: Any) -> Curve:
        return tuple((float(amount), float(seconds)) for amount, seconds in points)

    return Rates(
        int(data["devices"]),
        tuple((dtype, curve(points)) for dtype, points in data["matmul"].items()),
        tuple((dtype, curve(points)) for dtype, points in data["vector"].items()),
        curve(data["memory"]),
        float(data["dispatch_s"]),
        float(data["argument_s"]),
    )
