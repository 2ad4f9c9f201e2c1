"""What is claimed of the predictions of published rows, and whether it holds. Used by `published.py` and by tests."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autopar.prediction import FITTED

if TYPE_CHECKING:
    from benchmarks._published import Run

MEDIAN, WORST, GPIPE = 0.10, 0.25, 0.08
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Result:
    """A run with its prediction."""

    run: Run
    predicted: float
    how: str
    fitted: bool

    @property
    def error(self) -> float:
        """Relative, signed."""
        return self.predicted / self.run.published - 1 if self.run.published else self.predicted


def predict(runs: Iterable[Run], fitted_on: Mapping[str, tuple[Key, ...]]) -> list[Result]:
    """Every run at its device's constant."""
    fitted = {key for keys in fitted_on.values() for key in keys}
    return [Result(run, *run.predict(None), run.key in fitted) for run in runs]


def fitted_constants(runs: Iterable[Run], fitted_on: Mapping[str, tuple[Key, ...]]) -> dict[str, float]:
    """Per device, the geometric mean of what makes each of its two rows exact."""
    known = {run.key: run for run in runs}
    return {
        device: math.exp(statistics.fmean(math.log(_exact(known[key])) for key in keys))
        for device, keys in fitted_on.items()
    }


def _exact(run: Run) -> float:
    """The constant at which a row is exact: throughput is nearly proportional to it, so a few corrections do."""
    share = 0.7
    for _ in range(6):
        ratio = run.predict(share)[0] / run.published
        share = min(1.0, share * (ratio if run.column == "step_s" else 1 / ratio))
    return share


def broken_constants(constants: dict[str, float]) -> list[str]:
    """Constants that are not what their rows give."""
    return [
        f"{name} has the constant {FITTED[name].share}, and its rows give {share:.3f}"
        for device, share in constants.items()
        for name in FITTED
        if name.startswith(device) and abs(FITTED[name].share - share) > 0.001
    ]


def broken_bounds(results: Sequence[Result]) -> list[str]:
    """What does not hold, in words."""
    counted = [result for result in results if counts(result)]
    found = []
    if counted and (median := statistics.median(abs(result.error) for result in counted)) > MEDIAN:
        found.append(f"the median error is {median:.1%}, over {MEDIAN:.0%}")
    found += [f"{_name(r)} is off by {r.error:+.1%}" for r in counted if abs(r.error) > WORST]
    found += [f"{_name(r)} is off by {r.error:+.1%}" for r in counted if _tpu_pipeline(r) and abs(r.error) > GPIPE]
    for result in results:
        if result.run.kind == "fits" and result.predicted != result.run.published:
            found.append(f"{_name(result)}: fits is {bool(result.predicted)}, published {bool(result.run.published)}")
    disputed = _contested(results)
    for name, one, other in _swapped(_points(results)):
        if (name, one, other) not in disputed:
            found.append(f"gpipe {name}: rows {one} and {other} are in the other order")
    return found


def contested(results: Sequence[Result]) -> list[str]:
    """Pairs of rows with 1 and 4 micro-batches that two published measurements order differently, and we as the second.

    The first is Huang et al.'s on TPUs, whose batches are not known; the second the reproduction of the same experiment
    with the same model by torchgpipe, whose batches and partitions are.
    """
    points, pairs = _points(results), _contested(results)
    found = []
    for name, one, other in _swapped(points):
        if (name, one, other) in pairs:
            (first, ours), (second, others) = points[name][one], points[name][other]
            again = " and ".join(f"{points[_AGAIN][where][0]:.2f}" for where in (one, other))
            found.append(
                f"gpipe {name}: rows (partitions, micro-batches) {one} and {other}: {first:.2f} and {second:.2f}, "
                f"measured again {again}, predicted {ours:.2f} and {others:.2f}"
            )
    return found


Where = tuple[int, int]
Points = dict[Where, tuple[float, float]]
Pair = tuple[str, Where, Where]
_MEASURED, _AGAIN = "AmoebaNet-D", "torchgpipe"


def _contested(results: Sequence[Result]) -> set[Pair]:
    """Pairs of rows of AmoebaNet-D whose published order is another where they were measured again."""
    points = _points(results)
    if _MEASURED not in points or _AGAIN not in points:
        return set()
    measured, again = points[_MEASURED], points[_AGAIN]
    return {
        (_MEASURED, one, other)
        for one, other in _pairs(measured)
        if (measured[one][0] < measured[other][0]) != (again[one][0] < again[other][0])
    }


def _swapped(points: dict[str, Points]) -> list[Pair]:
    return [
        (name, one, other)
        for name, rows in points.items()
        for one, other in _pairs(rows)
        if _is_swapped(rows, one, other)
    ]


def _is_swapped(points: Points, one: Where, other: Where) -> bool:
    return (points[one][0] < points[other][0]) != (points[one][1] < points[other][1])


def _points(results: Sequence[Result]) -> dict[str, Points]:
    """Model -> (partitions, micro-batches) -> (published, predicted), of 1 and 4 micro-batches; the first row is 1."""
    found: dict[str, Points] = {}
    for result in results:
        if result.run.kind == "order":
            name, _, where = result.run.row.partition(", ")
            partitions, many = map(int, where.split(" x "))
            points = found.setdefault(name, {(2, 1): (1.0, 1.0)})
            points[partitions, many] = (result.run.published, result.predicted)
    return found


def _pairs(points: Points) -> list[tuple[Where, Where]]:
    keys = sorted(points)
    return [(a, b) for i, a in enumerate(keys) for b in keys[i + 1 :]]


def counts(result: Result) -> bool:
    return result.run.kind == "value" and not result.fitted


def _tpu_pipeline(result: Result) -> bool:
    return result.run.table == "gpipe" and result.run.device == "tpu-v3"


def _name(result: Result) -> str:
    return f"{result.run.table}: {result.run.row}, {result.run.column}"
