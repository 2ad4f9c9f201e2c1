"""Same numbers: every model, mesh, strategy and backend against plain `jax.jit` on one device.

    python benchmarks/equivalence.py                          # everything, about an hour on two cores
    python benchmarks/equivalence.py --quick                  # every model, strategy and backend, one mesh each
    python benchmarks/equivalence.py --models gpt,moe --meshes 2x4 --strategies auto --backends shard_map

Each model (see `_steps.py`) takes 3 steps in float64, dropout included. The error of a run is the largest, over
every leaf of the state and of the metrics, of max|a - b| / max|b|; integers and random keys must be equal. It passes
at 1e-9. Results are written after each run; `--resume` keeps those that are there already.
"""

import argparse
import itertools
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

from _common import RESULTS, grid_arguments, run_grid, virtual_devices
from _steps import STEPS, TrainingStep, reference, relative_errors, run

from autopar import Cluster, Options
from autopar.api.executable import Executable
from autopar.api.planning import plan_traced
from autopar.trace import Traced, trace

LIMIT = 1e-9
DEVICES = 8
MESHES = ("8", "2x4", "2x2x2")
STRATEGIES = ("auto", "data", "fsdp", "megatron", "expert")
BACKENDS = ("shard_map", "gspmd")

Row = dict[str, Any]
Key = tuple[str, str, str, str]  # model, mesh, strategy, backend


def main() -> int:
    """Run what the command line asks for; 1 if a run fails."""
    args = grid_arguments(
        __doc__,
        RESULTS / "equivalence.json",
        quick="one mesh and backend for each model and strategy",
        models=STEPS,
        meshes=MESHES,
        strategies=STRATEGIES,
        backends=BACKENDS,
    )
    virtual_devices(DEVICES, x64=True, optimize=False)
    asked = list(itertools.product(args.models, args.meshes, args.strategies, args.backends))
    if args.quick:
        asked = [key for key in asked if _quick(key, args)]
    return _summary(run_grid(args, asked, _key, _model_rows, (_HEADER, _line), LIMIT))


def _model_rows(model: str, keys: list[Key]) -> Iterator[Row]:
    """A model is traced once, and planned once for each mesh and strategy."""
    training = STEPS[model]()
    expected = reference(training)
    traced = trace(training.step, (training.state, training.batch(0)), donate_argnums=0)
    for (mesh, strategy), group in itertools.groupby(keys, key=lambda key: key[1:3]):
        plan = None
        for _, _, _, backend in group:
            row: Row = {"model": model, "mesh": mesh, "strategy": strategy, "backend": backend}
            try:
                plan = plan or _planned(traced, mesh, strategy)
                yield row | _measured(traced, training, expected, backend, plan)
            except Exception as error:  # a run that breaks is a row too
                traceback.print_exc()
                yield row | {"error": f"{type(error).__name__}: {error}"}


def _planned(traced: Traced, mesh: str, strategy: str) -> Any:
    options = Options(mesh=tuple(map(int, mesh.split("x"))), strategy=strategy)
    begin = time.perf_counter()
    plan = plan_traced(traced, Cluster.parse(f"cpu:{DEVICES}"), options)
    return plan, time.perf_counter() - begin


def _measured(traced: Traced, training: TrainingStep, expected: Any, backend: str, planned: Any) -> Row:
    plan, plan_s = planned
    begin = time.perf_counter()
    executable = Executable(traced, plan, backend=backend)
    compile_s = time.perf_counter() - begin
    errors = relative_errors(run(executable, training), expected)
    worst = max(errors, key=lambda path: errors[path])
    return {
        "max_rel_error": errors[worst],
        "worst_leaf": worst,
        "leaves": len(errors),
        "plan_s": round(plan_s, 3),
        "compile_s": round(compile_s, 3),
        "solver_status": plan.certificate.status,
        "predicted_step_s": plan.step_s,
        # With constraints alone the collectives are XLA's own choice.
        "collectives_agree": executable.audit.agrees if backend == "shard_map" else None,
    }


def _quick(key: Key, args: argparse.Namespace) -> bool:
    """One mesh for each model and strategy, every mesh and backend in turn."""
    model, mesh, strategy, backend = key
    turn = args.models.index(model) + args.strategies.index(strategy)
    return mesh == args.meshes[turn % len(args.meshes)] and backend == args.backends[turn // 2 % len(args.backends)]


_HEADER = (
    f"{'model':<18}{'mesh':<7}{'strategy':<10}{'backend':<11}{'max rel err':>12}{'plan s':>8}{'compile s':>11}"
    "  collectives"
)


def _line(row: Row) -> str:
    head = f"{row['model']:<18}{row['mesh']:<7}{row['strategy']:<10}{row['backend']:<11}"
    if row.get("error"):
        return head + "  " + row["error"].split("\n")[0]
    agree = {True: "as planned", False: "differ", None: "XLA's own"}[row["collectives_agree"]]
    fails = "" if _passes(row) else f"  FAILS: {row['worst_leaf']}"
    return f"{head}{row['max_rel_error']:>12.1e}{row['plan_s']:>8.1f}{row['compile_s']:>11.1f}  {agree}{fails}"


def _summary(rows: list[Row]) -> int:
    print(f"{'model':<18}{'runs':>6}{'pass':>6}{'worst rel err':>15}{'collectives as planned':>24}")
    for model, group in itertools.groupby(rows, key=lambda row: row["model"]):
        found = list(group)
        good = [row for row in found if _passes(row)]
        worst = max((row["max_rel_error"] for row in found if not row.get("error")), default=float("nan"))
        exact = [row["collectives_agree"] for row in found if row.get("collectives_agree") is not None]
        print(f"{model:<18}{len(found):>6}{len(good):>6}{worst:>15.1e}{sum(exact):>18} of {len(exact)}")
    failed = [row for row in rows if not _passes(row)]
    print(f"\n{len(rows) - len(failed)} of {len(rows)} runs within {LIMIT:g}")
    for row in failed:
        print(_line(row))
    return 1 if failed else 0


def _passes(row: Row) -> bool:
    return not row.get("error") and row["max_rel_error"] <= LIMIT


def _key(row: Row) -> Key:
    return row["model"], row["mesh"], row["strategy"], row["backend"]


if __name__ == "__main__":
    sys.exit(main())
