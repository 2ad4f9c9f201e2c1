"""Fast: seconds to plan large models, with construction and solving apart, and the memory that planning takes.

    python benchmarks/planning_speed.py                    # everything, some minutes on two cores
    python benchmarks/planning_speed.py --only gpt-39b,llama-8b

Each step is traced once, in a process of its own, and its graph written to a file. Each plan is made in a fresh
process that reads the file: wall time and CPU time are those of `plan_step` alone, and the peak memory is that of
the whole planning process, Python and its imports included, the trace not (its own is shown beside it).
The bounds are on wall time, for two idle cores: the load average is printed, for on a machine that has other work
wall time says little and CPU time is what the planner took.
The depths are planned without a memory limit: 96 of these layers do not fit into 64 devices. Solving is one thread
unless the solver forks its own.
"""

import argparse
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

from _common import RESULTS, read_result, stamp, virtual_devices, write_result

from autopar import Cluster, Options
from autopar.models import get
from autopar.planner import plan_step
from autopar.trace import trace

GROWTH = 1.5
"""How much longer the solver may take for 96 layers than for 12."""
DEPTHS = (12, 24, 48, 96)

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What to plan, and its bounds.

    Attributes:
        name: for `--only` and the table.
        model, preset, sizes: for `autopar.models.get`.
        cluster, mesh: where; no mesh tries all factorisations into up to 3 axes.
        infinite: plan without a memory limit.
        wall_s, gap, rss_bytes: the most that is allowed.
    """

    name: str
    model: str
    preset: str
    sizes: tuple[tuple[str, int], ...]
    cluster: str
    mesh: tuple[int, ...] | None
    infinite: bool = False
    wall_s: float = inf
    gap: float = inf
    rss_bytes: float = inf


GIB = 2.0**30
_GPT = Case("gpt-39b", "gpt", "39b", (("batch_size", 64),), "h100:8x8", (8, 8), wall_s=10, gap=0.01)
_LLAMA = Case(
    "llama-8b",
    "llama",
    "8b",
    (("batch_size", 64), ("sequence", 2048)),
    "h100:16x8",
    (16, 8),
    wall_s=8,
    rss_bytes=2 * GIB,
)
CASES: tuple[Case, ...] = (
    _GPT,
    replace(_GPT, name="gpt-39b-no-limit", infinite=True),
    _LLAMA,
    replace(_LLAMA, name="llama-8b-no-limit", infinite=True),
    *(
        replace(_GPT, name=f"gpt-depth-{n}", sizes=(("batch_size", 64), ("layers", n)), infinite=True, wall_s=inf)
        for n in DEPTHS
    ),
    replace(_GPT, name="gpt-39b-all-meshes", mesh=None, wall_s=40, gap=inf),
)


def main() -> int:
    """Run what the command line asks for; 1 if a bound breaks."""
    args = _arguments()
    if args.trace or args.plan:
        return _child(args)
    content: dict[str, Any] = read_result(args.out) or {}
    rows: dict[str, Row] = content.get("rows", {})
    print(_HEADER)
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if args.only and case.name not in args.only:
                continue
            try:
                rows[case.name] = measure(case, Path(folder))
            except subprocess.CalledProcessError as error:  # its own words are on stderr
                rows[case.name] = {"name": case.name, "breaks": [f"exit status {error.returncode}"]}
            print(_line(rows[case.name]), flush=True)
            write_result(args.out, {"stamp": stamp(), "rows": rows})
    ends = [rows.get(f"gpt-depth-{n}", {}) for n in (DEPTHS[0], DEPTHS[-1])]
    depths = [row["solve_s"] for row in ends if "solve_s" in row]
    failed = [row["name"] for row in rows.values() if row["breaks"]]
    if len(depths) == 2:
        growth = depths[1] / depths[0]
        print(f"\nsolving {DEPTHS[-1]} layers takes {growth:.2f} times as long as {DEPTHS[0]} (bound {GROWTH})")
        write_result(args.out, {"stamp": stamp(), "rows": rows, "growth": growth})
        failed += ["growth"] * (growth >= GROWTH)
    print(f"broken bounds: {', '.join(failed) or 'none'}")
    return int(bool(failed))


def measure(case: Case, folder: Path) -> Row:
    """Trace and plan in processes of their own."""
    file = folder / ("-".join([case.model, case.preset, *(f"{k}{v}" for k, v in case.sizes)]) + ".pickle")
    traced = _run("--trace", case, file) if not file.exists() else json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps(traced))
    row = {**asdict(case), **traced, **_run("--plan", case, file)}
    bounds = (("wall_s", "plan_s"), ("gap", "found_gap"), ("rss_bytes", "peak_rss_bytes"))
    row["breaks"] = [bound for bound, found in bounds if row[found] > row[bound]]
    return {k: None if v == inf else v for k, v in row.items()}


def _run(what: str, case: Case, file: Path) -> Row:
    command = [sys.executable, __file__, what, str(file), "--only", case.name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _child(args: argparse.Namespace) -> int:
    case = next(c for c in CASES if [c.name] == args.only)
    print(json.dumps(_trace(case, args.trace) if args.trace else _plan(case, args.plan)))
    return 0


def _trace(case: Case, file: Path) -> Row:
    virtual_devices(1)
    recipe = get(case.model, preset=case.preset, **dict(case.sizes))
    begin = time.perf_counter()
    step = trace(recipe.step, recipe.abstract(), {}, donate_argnums=(0,)).step
    trace_s = time.perf_counter() - begin
    file.write_bytes(pickle.dumps(step))
    ops = sum(1 for _ in step.graph.walk())
    return {"parameters": recipe.parameter_count(), "ops": ops, "trace_s": trace_s, "trace_rss_bytes": _peak_rss()}


def _plan(case: Case, file: Path) -> Row:
    step = pickle.loads(file.read_bytes())
    cluster = Cluster.parse(case.cluster)
    options = Options(mesh=case.mesh, mip_gap=5e-3, memory_bytes=inf if case.infinite else None)
    before = _peak_rss()
    load, begin, cpu = os.getloadavg()[0], time.perf_counter(), time.process_time()
    plan = plan_step(step, cluster, options, lambda text: print(f"  {text}", file=sys.stderr))
    certificate = plan.certificate
    return {
        "plan_s": time.perf_counter() - begin,
        "cpu_s": time.process_time() - cpu,
        "load": load,
        "build_s": certificate.build_s,
        "solve_s": certificate.solve_s,
        "found_gap": certificate.gap,
        "status": certificate.status,
        "variables": certificate.variables,
        "constraints": certificate.constraints,
        "tied": certificate.tied,
        "pruned": certificate.pruned,
        "found_mesh": plan.mesh_shape,
        "meshes": 1 + len(plan.runners_up),
        "step_s": plan.step_s,
        "peak_bytes": plan.peak_bytes,
        "rss_before_bytes": before,
        "peak_rss_bytes": _peak_rss(),
    }


def _peak_rss() -> int:
    """Peak resident memory of this process, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


_HEADER = (
    f"{'case':<20}{'ops':>8}{'mesh':>8}{'wall s':>8}{'cpu s':>7}{'load':>6}{'build s':>9}{'solve s':>9}"
    f"{'variables':>11}{'gap':>8}{'GiB':>6}{'trace s':>9}{'GiB':>6}  status"
)


def _line(row: Row) -> str:
    if "plan_s" not in row:
        return f"{row['name']:<20}  FAILS: {', '.join(row['breaks'])}"
    return (
        f"{row['name']:<20}{row['ops']:>8,}{'x'.join(map(str, row['found_mesh'])):>8}{row['plan_s']:>8.1f}"
        f"{row['cpu_s']:>7.1f}{row['load']:>6.1f}{row['build_s']:>9.2f}{row['solve_s']:>9.2f}{row['variables']:>11,}"
        f"{row['found_gap']:>8.2%}{row['peak_rss_bytes'] / GIB:>6.2f}{row['trace_s']:>9.1f}"
        f"{row['trace_rss_bytes'] / GIB:>6.2f}  {row['status']}"
        + (f"  FAILS: {', '.join(row['breaks'])}" if row["breaks"] else "")
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = ",".join(case.name for case in CASES)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help=names)
    parser.add_argument("--out", type=Path, default=RESULTS / "planning_speed.json")
    parser.add_argument("--trace", type=Path, help=argparse.SUPPRESS)  # what the child processes do
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.only) - {case.name for case in CASES}:
        parser.error(f"unknown cases {', '.join(sorted(unknown))}; there are: {names}")
    return args


if __name__ == "__main__":
    sys.exit(main())
