"""Runs as planned: the collectives and the memory of the compiled program against the plan.

    python benchmarks/runs_as_planned.py                      # everything, about half an hour on two cores
    python benchmarks/runs_as_planned.py --quick              # every model and strategy, one mesh each
    python benchmarks/runs_as_planned.py --models gpt,moe --meshes 2x4 --strategies auto

Every toy model in float32 on 8 virtual CPU devices. Of each kind of collective: executions and bytes per device and
step, planned and in XLA's optimised HLO (a collective over a tuple counts once per element). They agree if counts are
equal and bytes are within 1%. Of memory: the predicted peak of one device over XLA's arguments + outputs - aliased +
temporaries. It passes if every run agrees, the median of |ratio - 1| is within 10% and the worst within 30%; runs
predicted more than 3% below are listed. Results are written after each run; `--resume` keeps those that are there.
"""

import argparse
import itertools
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

from _common import RESULTS, grid_arguments, read_result, sources_digest, stamp, virtual_devices, write_result

from autopar import Cluster, Options
from autopar.api.executable import Executable
from autopar.api.planning import plan_traced
from autopar.models import MODELS, get
from autopar.trace import Traced, trace

MEDIAN, WORST, UNDER = 0.10, 0.30, 0.03
DEVICES = 8
MESHES = ("8", "2x4", "2x2x2")
STRATEGIES = ("auto", "data", "fsdp", "megatron", "expert")
MIP_GAP = 0.02
"""A plan near the optimum is as good to be checked as the optimum."""

Row = dict[str, Any]
Key = tuple[str, str, str]  # model, mesh, strategy


def main() -> int:
    """Run what the command line asks for; 1 if a bound breaks."""
    args = grid_arguments(
        __doc__,
        RESULTS / "runs_as_planned.json",
        quick="one mesh for each model and strategy",
        models=MODELS,
        meshes=MESHES,
        strategies=STRATEGIES,
    )
    virtual_devices(DEVICES)
    kept = (read_result(args.out) or {}).get("rows", []) if args.resume else []
    rows: dict[Key, Row] = {_key(row): row for row in kept if not row.get("error")}
    asked = list(itertools.product(args.models, args.meshes, args.strategies))
    if args.quick:
        asked = [key for key in asked if _quick(key, args)]
    todo = [key for key in asked if key not in rows]
    print(f"{len(asked)} runs, {len(asked) - len(todo)} of them done already\n\n{_HEADER}", flush=True)
    begin, code = time.perf_counter(), sources_digest()
    for model, keys in itertools.groupby(todo, key=lambda key: key[0]):
        for row in _model_rows(model, list(keys)):
            rows[_key(row)] = row | {"sources": code}
            print(_text(row), flush=True)
            write_result(args.out, {"stamp": stamp(), "rows": [rows[key] for key in sorted(rows)]})
    print(f"\n{time.perf_counter() - begin:.0f} s\n")
    return _summary([rows[key] for key in asked])


def _model_rows(model: str, keys: list[Key]) -> Iterator[Row]:
    """A model is traced once; strategies that mean the same plan are compiled once."""
    recipe = get(model)
    traced = trace(recipe.step, recipe.abstract(), {}, donate_argnums=(0,))
    known: dict[Any, Row] = {}
    for _, mesh, strategy in keys:
        row: Row = {"model": model, "mesh": mesh, "strategy": strategy}
        try:
            yield row | _measured(traced, mesh, strategy, known)
        except Exception as error:  # a run that breaks is a row too
            traceback.print_exc()
            yield row | {"error": f"{type(error).__name__}: {error}"}


def _measured(traced: Traced, mesh: str, strategy: str, known: dict[Any, Row]) -> Row:
    options = Options(mesh=tuple(map(int, mesh.split("x"))), strategy=strategy, mip_gap=MIP_GAP, time_limit_s=60.0)
    begin = time.perf_counter()
    plan = plan_traced(traced, Cluster.parse(f"cpu:{DEVICES}"), options)
    plan_s = time.perf_counter() - begin
    same = (mesh, repr(plan.ops), repr(plan.layouts), repr(plan.moves), repr(plan.remade))
    if same not in known:
        begin = time.perf_counter()
        found = Executable(traced, plan).audit
        known[same] = {
            "compile_s": round(time.perf_counter() - begin, 3),
            "collectives": {
                row.kind: {
                    "planned": [row.planned_count, row.planned_bytes],
                    "compiled": [row.compiled_count, row.compiled_bytes],
                    "agrees": row.agrees,
                }
                for row in found.rows
            },
            "agrees": found.agrees,
            "planned_peak_bytes": found.planned_peak_bytes,
            "compiled_peak_bytes": found.compiled_peak_bytes,
            "peak_ratio": round(found.peak_ratio, 4),
        }
    return {"plan_s": round(plan_s, 3)} | known[same]


def _quick(key: Key, args: argparse.Namespace) -> bool:
    """One mesh for each model and strategy, every mesh in turn."""
    model, mesh, strategy = key
    return mesh == args.meshes[(args.models.index(model) + args.strategies.index(strategy)) % len(args.meshes)]


_HEADER = (
    f"{'model':<13}{'mesh':<7}{'strategy':<10}{'collectives: planned / compiled':<66}"
    f"{'peak MB: planned':>17}{'XLA':>8}{'ratio':>8}"
)
_SHORT = {
    "all-gather": "gather",
    "all-reduce": "reduce",
    "all-to-all": "to-all",
    "reduce-scatter": "scatter",
    "collective-permute": "permute",
}


def _text(row: Row) -> str:
    head = f"{row['model']:<13}{row['mesh']:<7}{row['strategy']:<10}"
    if row.get("error"):
        return head + row["error"].split("\n")[0]
    kinds = ", ".join(_kind(kind, x) for kind, x in row["collectives"].items())
    planned, compiled = row["planned_peak_bytes"] / 1e6, row["compiled_peak_bytes"] / 1e6
    line = f"{head}{kinds:<66}{planned:>17.3f}{compiled:>8.3f}{row['peak_ratio']:>8.3f}"
    return line + ("" if row["agrees"] else "  DIFFERS") + ("  under" if row["peak_ratio"] < 1 - UNDER else "")


def _kind(kind: str, found: dict[str, Any]) -> str:
    (planned, planned_bytes), (compiled, compiled_bytes) = found["planned"], found["compiled"]
    if found["agrees"]:
        return f"{_SHORT.get(kind, kind)} {planned}"
    return f"{_SHORT.get(kind, kind)} {planned} ({planned_bytes} B) / {compiled} ({compiled_bytes} B)"


def _summary(rows: list[Row]) -> int:
    good = [row for row in rows if not row.get("error")]
    print(f"{'model':<13}{'runs':>6}{'as planned':>12}{'median |ratio-1|':>18}{'lowest':>9}{'highest':>9}")
    for model, group in itertools.groupby(good, key=lambda row: row["model"]):
        found = list(group)
        print(f"{model:<13}{len(found):>6}{sum(row['agrees'] for row in found):>12}{_spread(found)}")
    print(f"{'all':<13}{len(good):>6}{sum(row['agrees'] for row in good):>12}{_spread(good)}\n")
    under = [row for row in good if row["peak_ratio"] < 1 - UNDER]
    print(f"{len(under)} runs predicted more than {UNDER:.0%} below:")
    for row in sorted(under, key=lambda row: row["peak_ratio"]):
        print(f"  {row['model']} {row['mesh']} {row['strategy']}: {row['peak_ratio']:.3f}")
    errors = [abs(row["peak_ratio"] - 1) for row in good]
    checks = {
        "every run compiles": len(good) == len(rows),
        "collectives run as planned": all(row["agrees"] for row in good),
        f"median peak within {MEDIAN:.0%}": statistics.median(errors or [1.0]) <= MEDIAN,
        f"worst peak within {WORST:.0%}": max(errors, default=1.0) <= WORST,
    }
    print()
    for what, holds in checks.items():
        print(f"{'holds' if holds else 'BROKEN'}: {what}")
    return int(not all(checks.values()))


def _spread(rows: list[Row]) -> str:
    ratios = [row["peak_ratio"] for row in rows] or [float("nan")]
    return f"{statistics.median(abs(r - 1) for r in ratios):>18.3f}{min(ratios):>9.3f}{max(ratios):>9.3f}"


def _key(row: Row) -> Key:
    return row["model"], row["mesh"], row["strategy"]


if __name__ == "__main__":
    sys.exit(main())
