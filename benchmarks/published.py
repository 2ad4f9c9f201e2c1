"""Every row of the published tables in `benchmarks/published/`, predicted.

    python benchmarks/published.py                       # all, half a minute
    python benchmarks/published.py --tables gpipe        # some

Prints predicted against published, the median and worst error of each table, and the one constant of each device with
the two rows that it was fitted on; these are not counted among the predicted. Fails if the bounds break:

    all predicted rows      median of absolute errors 10%, worst 25%
    GPipe                   on TPUs 32 micro-batches within 8%; with 1 and 4, every two rows are in the published order,
                            but for pairs of AmoebaNet that were published in both (see contested)
    Alpa on V100            who runs out of memory
    constants               equal to what the rows give, to three digits
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

from _common import RESULTS, stamp, write_result
from _published import FITTED_ON, TABLES
from _published_bounds import (
    Result,
    broken_bounds,
    broken_constants,
    contested,
    counts,
    fitted_constants,
    predict,
)


def main() -> int:
    """Run what the command line asks for; 1 if a bound breaks."""
    names = [table.__name__ for table in TABLES]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tables", nargs="+", choices=names, default=names)
    args = parser.parse_args()
    began = time.time()
    results = predict([run for table in TABLES if table.__name__ in args.tables for run in table()], FITTED_ON)
    for name in args.tables:
        _print(name, [result for result in results if result.run.table == name])
    constants = fitted_constants((run for table in TABLES for run in table()), FITTED_ON)
    print("\nThe constant of each device: the share of its data sheet's rates that is reached")
    for device, share in constants.items():
        print(f"  {device:10s} {share:.3f}, fitted on {' and '.join(' '.join(key) for key in FITTED_ON[device])}")
    broken = [*broken_bounds(results), *broken_constants(constants)]
    errors = [abs(result.error) for result in results if counts(result)]
    print(f"\nall: {len(errors)} predicted, median {statistics.median(errors):.1%}, worst {max(errors):.1%}")
    print(f"predicted in {time.time() - began:.0f} s")
    for line in contested(results):
        print(f"measured in both orders: {line}")
    for line in broken:
        print(f"BROKEN: {line}")
    if args.tables == names:
        write_result(RESULTS / "published.json", _content(results, constants))
    return 1 if broken else 0


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
    errors = [abs(result.error) for result in results if counts(result)]
    if errors:
        print(f"  {len(errors)} predicted, median {statistics.median(errors):.1%}, worst {max(errors):.1%}")


def _content(results: Sequence[Result], constants: dict[str, float]) -> dict[str, object]:
    errors = [abs(result.error) for result in results if counts(result)]
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
