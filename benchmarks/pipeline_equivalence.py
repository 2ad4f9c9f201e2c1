"""Same numbers from pipelines: models, stages, micro-batches, schedules and tensor parallelism against plain `jax.jit`.

    python benchmarks/pipeline_equivalence.py                       # everything in one process, hours on two cores
    python benchmarks/pipeline_equivalence.py --quick               # every model, stages, schedule; fewer of the rest
    python benchmarks/pipeline_equivalence.py --models gpt-4 --stages 2 --microbatches 4 --schedules 1f1b --tensor 1
    python benchmarks/pipeline_equivalence.py --runtimes ray --quick

Each model (see `_steps.py`) takes 3 steps in float64, dropout included. The error of a run is the largest, over every
leaf of the state and of the metrics, of max|a - b| / max|b|; integers and random keys must be equal. It passes at 1e-9.
`tensor` is the number of devices of each stage; with 2, stages are planned with the strategy `megatron`. `interleaved`
puts two stages on each worker. A model that couples its batch (batch normalisation) must be refused in more than one
micro-batch; with one it must be exact. One with fewer units than stages (two scanned layers in four) must be refused.
Results are written after each run; `--resume` keeps those that are there.
"""

import dataclasses
import itertools
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
from _common import RESULTS, grid_arguments, run_grid, virtual_devices
from _steps import STEPS, TrainingStep, reference, relative_errors, run

from autopar import Cluster, CouplingError, OptionError, Options
from autopar.api.planning import plan_traced
from autopar.api.staged import StagedExecutable
from autopar.trace import Traced, trace

LIMIT = 1e-9
DEVICES = 8
COUPLED = ("convnet", "conformer")
MOST_STAGES = {"gpt-scan": 3}

Row = dict[str, Any]
Key = tuple[str, str, str, str, str, str]  # model, stages, tensor, micro-batches, schedule, runtime


def main() -> int:
    """Run what the command line asks for; 1 if a run fails."""
    args = grid_arguments(
        __doc__,
        RESULTS / "pipeline_equivalence.json",
        quick="one number of micro-batches and devices for each model, stages and schedule",
        models=STEPS,
        stages=("2", "4"),
        tensor=("1", "2"),
        microbatches=("1", "4", "8"),
        schedules=("1f1b", "gpipe", "zb-h1", "interleaved"),
        runtimes=("local", "ray"),
    )
    virtual_devices(DEVICES, x64=True, optimize=False)
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())  # schedules share programs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    grid = (args.models, args.stages, args.tensor, args.microbatches, args.schedules, args.runtimes)
    asked = [key for key in itertools.product(*grid) if not args.quick or _quick(key, grid)]
    return _summary(run_grid(args, asked, _key, _model_rows, (_HEADER, _line), LIMIT))


def _model_rows(model: str, keys: list[Key]) -> Iterator[Row]:
    training = STEPS[model]()
    expected = reference(training)
    traced = trace(training.step, (training.state, training.batch(0)), donate_argnums=0)
    plans: dict[tuple[str, ...], Any] = {}
    for key in keys:
        row: Row = dict(zip(_COLUMNS, key, strict=True))
        try:
            yield row | _measured(traced, training, expected, key, plans)
        except CouplingError as error:
            must = model in COUPLED and key[3] != "1"
            yield row | ({"refused": str(error)} if must else {"error": f"CouplingError: {error}"})
        except OptionError as error:
            must = int(key[1]) > MOST_STAGES.get(model, DEVICES)
            yield row | ({"refused": str(error)} if must else {"error": f"OptionError: {error}"})
        except Exception as error:  # a run that breaks is a row too
            traceback.print_exc()
            yield row | {"error": f"{type(error).__name__}: {error}"}


def _measured(traced: Traced, training: TrainingStep, expected: Any, key: Key, plans: dict[Any, Any]) -> Row:
    _, stages, tensor, microbatches, schedule, runtime = key
    several = 2 if schedule == "interleaved" else 1
    begin = time.perf_counter()
    which = (stages, tensor, microbatches, "interleaved" if several > 1 else "1f1b")
    if which not in plans:
        options = Options(
            stages=int(stages),
            microbatches=int(microbatches),
            schedule=which[3],
            stages_per_worker=several,
            strategy="megatron" if tensor == "2" else "auto",
        )
        plans[which] = plan_traced(traced, Cluster.parse(f"cpu:{int(stages) * int(tensor) // several}"), options)
    plan = dataclasses.replace(plans[which], schedule=schedule)
    plan_s = time.perf_counter() - begin
    executable = StagedExecutable(traced, plan, runtime=runtime)
    compile_s = time.perf_counter() - begin - plan_s
    try:
        errors = relative_errors(run(executable, training), expected)
    finally:
        executable.close()
    worst = max(errors, key=lambda path: errors[path])
    return {
        "max_rel_error": errors[worst],
        "worst_leaf": worst,
        "leaves": len(errors),
        "plan_s": round(plan_s, 3),
        "compile_s": round(compile_s, 3),
    }


def _quick(key: Key, grid: tuple[tuple[str, ...], ...]) -> bool:
    """One number of micro-batches and devices for each model, stages, schedule and runtime, each in turn."""
    turn = sum(list(grid[k]).index(key[k]) for k in (0, 1, 4))
    return key[2] == grid[2][turn % len(grid[2])] and key[3] == grid[3][turn % len(grid[3])]


_COLUMNS = ("model", "stages", "tensor", "microbatches", "schedule", "runtime")
_HEADER = (
    f"{'model':<18}{'stages':>6}{'tensor':>7}{'micro-batches':>14}  {'schedule':<12}{'runtime':<8}{'max rel err':>12}"
    f"{'plan s':>8}{'compile s':>11}"
)


def _key(row: Row) -> Key:
    return tuple(row[name] for name in _COLUMNS)  # type: ignore[return-value]


def _passes(row: Row) -> bool:
    return "refused" in row or (not row.get("error") and row["max_rel_error"] <= LIMIT)


def _line(row: Row) -> str:
    head = f"{row['model']:<18}{row['stages']:>6}{row['tensor']:>7}{row['microbatches']:>14}  "
    head += f"{row['schedule']:<12}{row['runtime']:<8}"
    if "refused" in row:
        return head + "  refused: " + ("it has too few units" if "units" in row["refused"] else "it couples its batch")
    if row.get("error"):
        return head + "  " + row["error"].split("\n")[0]
    fails = "" if _passes(row) else f"  FAILS: {row['worst_leaf']}"
    return f"{head}{row['max_rel_error']:>12.1e}{row['plan_s']:>8.1f}{row['compile_s']:>11.1f}{fails}"


def _summary(rows: list[Row]) -> int:
    print(f"{'model':<18}{'runs':>6}{'pass':>6}{'refused':>9}{'worst rel err':>15}")
    for model, group in itertools.groupby(rows, key=lambda row: row["model"]):
        found = list(group)
        worst = max((row["max_rel_error"] for row in found if "max_rel_error" in row), default=float("nan"))
        refused = sum("refused" in row for row in found)
        print(f"{model:<18}{len(found):>6}{sum(map(_passes, found)):>6}{refused:>9}{worst:>15.1e}")
    failed = [row for row in rows if not _passes(row)]
    print(f"\n{len(rows) - len(failed)} of {len(rows)} runs pass (limit {LIMIT:g})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
