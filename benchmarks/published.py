"""Every row of the published tables in `benchmarks/published/`, predicted.

    python benchmarks/published.py                       # all, half a minute
    python benchmarks/published.py --tables gpipe        # some

Prints predicted against published, the median and worst error of each table, and the one constant of each device with
the two rows that it was fitted on; these are not counted among the predicted. Fails if the bounds break:

    all predicted rows      median of absolute errors 10%, worst 25%
    GPipe on TPUs           32 micro-batches within 8%; with 1 and 4, throughput grows with partitions and with
                            micro-batches as published, and the transformer's rows are in the published order
    Alpa on V100            who runs out of memory
    constants               equal to what the rows give, to three digits
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from _common import RESULTS, stamp, write_result
from _published import FITTED_ON, TABLES, Run

from autopar.prediction import FITTED

MEDIAN, WORST, GPIPE = 0.10, 0.25, 0.08


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


def main() -> int:
    """Run what the command line asks for; 1 if a bound breaks."""
    names = [table.__name__ for table in TABLES]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tables", nargs="+", choices=names, default=names)
    args = parser.parse_args()
    began = time.time()
    results = predict([run for table in TABLES if table.__name__ in args.tables for run in table()])
    for name in args.tables:
        _print(name, [result for result in results if result.run.table == name])
    constants = fitted_constants()
    print("\nThe constant of each device: the share of its data sheet's rates that is reached")
    for device, share in constants.items():
        print(f"  {device:10s} {share:.3f}, fitted on {' and '.join(' '.join(key) for key in FITTED_ON[device])}")
    broken = [*broken_bounds(results), *broken_constants(constants)]
    errors = [abs(result.error) for result in results if _counts(result)]
    print(f"\nall: {len(errors)} predicted, median {statistics.median(errors):.1%}, worst {max(errors):.1%}")
    print(f"predicted in {time.time() - began:.0f} s")
    for line in swapped(results):
        print(f"not claimed: {line}")
    for line in broken:
        print(f"BROKEN: {line}")
    if args.tables == names:
        write_result(RESULTS / "published.json", _content(results, constants))
    return 1 if broken else 0


def predict(runs: Iterable[Run]) -> list[Result]:
    """Every run at its device's constant."""
    fitted = {key for keys in FITTED_ON.values() for key in keys}
    return [Result(run, *run.predict(None), run.key in fitted) for run in runs]


def fitted_constants() -> dict[str, float]:
    """Per device, the geometric mean of what makes each of its two rows exact."""
    runs = {run.key: run for table in TABLES for run in table()}
    return {
        device: math.exp(statistics.fmean(math.log(_exact(runs[key])) for key in keys))
        for device, keys in FITTED_ON.items()
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
    counted = [result for result in results if _counts(result)]
    found = []
    if counted and (median := statistics.median(abs(result.error) for result in counted)) > MEDIAN:
        found.append(f"the median error is {median:.1%}, over {MEDIAN:.0%}")
    found += [f"{_name(r)} is off by {r.error:+.1%}" for r in counted if abs(r.error) > WORST]
    found += [f"{_name(r)} is off by {r.error:+.1%}" for r in counted if _tpu_pipeline(r) and abs(r.error) > GPIPE]
    for result in results:
        if result.run.kind == "fits" and result.predicted != result.run.published:
            found.append(f"{_name(result)}: fits is {bool(result.predicted)}, published {bool(result.run.published)}")
    for name, points in _points(results).items():
        for one, other in _pairs(points):
            apart = one[0] != other[0] and one[1] != other[1] and not name.startswith("transformer")
            if not apart and _is_swapped(points, one, other):
                found.append(f"gpipe {name}: rows {one} and {other} are in the other order")
    return found


def swapped(results: Sequence[Result]) -> list[str]:
    """Pairs of rows with 1 and 4 micro-batches that differ in both and are not in the published order."""
    return [
        f"gpipe {name}: the rows (partitions, micro-batches) {one} and {other} are in the other order"
        for name, points in _points(results).items()
        for one, other in _pairs(points)
        if _is_swapped(points, one, other)
    ]


Where = tuple[int, int]
Points = dict[Where, tuple[float, float]]


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


def _counts(result: Result) -> bool:
    return result.run.kind == "value" and not result.fitted


def _tpu_pipeline(result: Result) -> bool:
    return result.run.table == "gpipe" and result.run.device == "tpu-v3"


def _name(result: Result) -> str:
    return f"{result.run.table}: {result.run.row}, {result.run.column}"


def _print(name: str, results: Sequence[Result]) -> None:
    print(f"\n{name}\n  {'row':32s} {'figure':14s} {'published':>10s} {'predicted':>10s} {'error':>7s}")
    for result in results:
        run, note = result.run, "fitted" if result.fitted else result.how
        if run.kind == "fits":
            shown = [("no", "yes")[round(value)] for value in (run.published, result.predicted)]
            print(f"  {run.row:32s} {run.column:14s} {shown[0]:>10s} {shown[1]:>10s}")
            continue
        note = note or {"order": "order alone", "memory": "not bounded"}.get(run.kind, "")
        figures = f"{run.published:10.4g} {result.predicted:10.4g} {result.error:+7.1%}"
        print(f"  {run.row:32s} {run.column:14s} {figures}  {note}")
    errors = [abs(result.error) for result in results if _counts(result)]
    if errors:
        print(f"  {len(errors)} predicted, median {statistics.median(errors):.1%}, worst {max(errors):.1%}")


def _content(results: Sequence[Result], constants: dict[str, float]) -> dict[str, object]:
    errors = [abs(result.error) for result in results if _counts(result)]
    return {
        **stamp(),
        "date": time.strftime("%Y-%m-%d"),
        "constants": {
            device: {"share": round(share, 4), "fitted_on": [" ".join(key) for key in FITTED_ON[device]]}
            for device, share in constants.items()
        },
        "median": statistics.median(errors),
        "worst": max(errors),
        "rows": [
            {
                "table": result.run.table,
                "row": result.run.row,
                "figure": result.run.column,
                "device": result.run.device,
                "kind": "fitted" if result.fitted else result.run.kind,
                "published": result.run.published,
                "predicted": round(result.predicted, 5),
                "error": round(result.error, 4),
                "how": result.how,
            }
            for result in results
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
