"""How models scale, predicted from one device to a thousand: the figures of the README.

    python benchmarks/scaling.py                    # all, some minutes
    python benchmarks/scaling.py --sweeps strong    # GPT-39B alone

    strong   GPT-39B, 1,024 sequences of 1,024 tokens in 64 micro-batches, on 8 to 1,024 H100: stages and the sharding
             of each, planned together for every size
    weak     GPT-1.3B, 64 sequences per host, on 8 to 64 H100, by `auto` and by FSDP alone
    real     the toy GPT on 1, 2, 4 and 8 virtual devices of this machine, which really runs: measured beside predicted

Each is a sweep (docs/sweeps.md): its rows go to `results/scaling/<name>/`, and one that was interrupted goes on there.
Prints the tables, draws `docs/images/scaling.png` from the first, and fails unless that took 5 minutes at most, trace
included, and planning time grows less than devices do. Wall time counts only if all rows were planned in one go.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import jax
from _common import RESULTS, ROOT, stamp, virtual_devices, write_result
from rich.console import Console

from autopar import Options, SweepResult, sweep
from autopar.cli.sweeping import clusters_of
from autopar.models import get
from autopar.report.text import print_page
from autopar.sweep import Case
from autopar.sweep.page import sweep_page
from autopar.sweep.plots import plot

LIMIT_S = 300.0
FOLDER = RESULTS / "scaling"
PICTURE = ROOT / "docs" / "images" / "scaling.png"


def strong(**asked: Any) -> SweepResult:
    recipe = get("gpt", "39b", dtype="bfloat16")
    targets = clusters_of("h100", "1,2,4,...,128", None, None)
    return sweep(
        recipe.step, *recipe.abstract(), clusters=targets, microbatches=[64], options=Options(max_stages=16),
        units=recipe.units, unit=recipe.unit, donate_argnums=0, **asked,
    )  # fmt: skip


def weak(**asked: Any) -> SweepResult:
    def case(cluster: Any) -> Case:
        recipe = get("gpt", "1.3b", dtype="bfloat16", batch_size=8 * cluster.devices)
        return Case(recipe.step, recipe.abstract(), recipe.units)

    targets = clusters_of("h100", "1,2,4,8", None, None)
    return sweep(
        case, clusters=targets, strategies=["auto", "fsdp"], options=Options(max_axes=2), unit="tokens", scaled=True,
        donate_argnums=0, **asked,
    )  # fmt: skip


def real(**asked: Any) -> SweepResult:
    recipe = get("gpt")
    args = recipe.init(jax.random.key(0)), recipe.batch(0)
    return sweep(
        recipe.step, *args, clusters=["cpu:1", "cpu:2", "cpu:4", "cpu:8"], strategies=["auto", "fsdp"],
        units=recipe.units, unit=recipe.unit, donate_argnums=0, run_steps=10, **asked,
    )  # fmt: skip


SWEEPS = {"strong": strong, "weak": weak, "real": real}


def main() -> int:
    """Run what the command line asks for; 1 if a bound breaks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    args = parser.parse_args()
    virtual_devices(8)
    broken, taken = 0, {}
    for name in args.sweeps:
        folder = FOLDER / name
        if not args.resume:
            shutil.rmtree(folder, ignore_errors=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        begin, cpu = time.perf_counter(), time.process_time()
        found = SWEEPS[name](out=folder, done=_say)
        wall_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
        taken[name] = {"wall_s": round(wall_s, 1), "cpu_s": round(cpu_s, 1), "load": round(os.getloadavg()[0], 1)}
        (folder / "sweep.jsonl").unlink()
        print_page(sweep_page(found), Console(highlight=False, width=110))
        print(f"\n{name}: {wall_s:.0f} s, {cpu_s:.0f} s of CPU, load average {taken[name]['load']}\n", flush=True)
        write_result(FOLDER / f"{name}.json", {"stamp": stamp(), "limit_s": LIMIT_S, **taken[name]})
        if name == "strong":
            _draw(found, PICTURE)
            broken += _verdict(found, wall_s)
    return int(broken > 0)


def _say(row: Any, done: int, of: int) -> None:
    step = f"{row.step_s:.4g} s" if row.status == "planned" else row.status
    print(
        f"  {done}/{of}  {row.cluster:<12} {row.strategy:<6} {step:<14} planned in {row.planning_s:.1f} s", flush=True
    )


def _draw(found: SweepResult, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    plot(found, path, "GPT-39B on H100, 1,024 sequences per step, predicted")


def _verdict(found: SweepResult, wall_s: float) -> int:
    """Whether the bounds hold: all in time, and planning grows less than devices."""
    planned = sorted(found.best(), key=lambda row: row.devices)
    first, last = planned[0], planned[-1]
    growth, devices = last.planning_s / first.planning_s, last.devices / first.devices
    print(f"planned in {wall_s:.0f} s (limit {LIMIT_S:g} s); from {first.devices} to {last.devices:,} devices planning")
    print(f"takes {growth:.2g} times as long for {devices:.0f} times the devices")
    return (wall_s > LIMIT_S) + (growth >= devices)


if __name__ == "__main__":
    sys.exit(main())
