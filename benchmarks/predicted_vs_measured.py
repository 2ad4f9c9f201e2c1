"""Choosing by prediction is choosing by measurement: predicted step times beside measured ones, after calibration.

    python benchmarks/predicted_vs_measured.py                # calibrate, plan, run: some ten minutes on two cores
    python benchmarks/predicted_vs_measured.py --quick        # fewer models, a quick calibration
    python benchmarks/predicted_vs_measured.py --profile p.json

The devices are 8 virtual ones of this machine, calibrated in this process. The models are those of equivalence (see
`_steps.py`), in float64, on 1 to 8 devices, by several strategies, meshes, stages and schedules. All plans are compiled
first and then run in turns, some steps each, round after round, as other work on the machine comes and goes; the
fastest round of each counts. It passes if the rank correlation (Spearman) of prediction and measurement is 0.9 or more.
That of the uncalibrated prediction stands beside it, and what choosing by prediction costs: how much slower than the
fastest plan of each model the one is that was predicted to be the fastest.
"""

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
from _common import RESULTS, stamp, virtual_devices, write_result
from _steps import STEPS, TrainingStep

DEVICES = 8
LIMIT = 0.9
ROUNDS, STEPS_OF_A_ROUND = 9, 4
virtual_devices(DEVICES, x64=True)

from autopar import Cluster, Options
from autopar.api.executable import Executable
from autopar.api.planning import plan_traced
from autopar.api.staged import StagedExecutable
from autopar.calibrate import calibrate
from autopar.mesh import Profile, load_profile
from autopar.trace import Traced, trace

ONE: tuple[tuple[int, dict[str, Any]], ...] = (
    (1, {}),
    (2, {"strategy": "data"}),
    (4, {"strategy": "auto"}),
    (8, {"strategy": "data", "mesh": (8,)}),
    (8, {"strategy": "megatron", "mesh": (2, 4)}),
)
"""Devices and options of plans without stages."""
PIPELINES: tuple[tuple[int, dict[str, Any]], ...] = (
    (2, {"stages": 2, "microbatches": 4}),
    (4, {"stages": 4, "microbatches": 4}),
    (4, {"stages": 2, "microbatches": 8, "schedule": "gpipe"}),
    (8, {"stages": 4, "microbatches": 8, "strategy": "megatron"}),
)
MORE = (8, {"strategy": "fsdp", "mesh": (8,), "microbatches": 2}), (8, {"stages": 2, "microbatches": 4})
ASKED: dict[str, tuple[tuple[int, dict[str, Any]], ...]] = {
    "mlp": (*ONE, *PIPELINES[:1]),
    "gpt": ONE,
    "moe": (*ONE[:3], (8, {"strategy": "expert", "mesh": (8,)})),
    "convnet": (*ONE[:2], ONE[3]),
    "gpt-4": (*ONE, *PIPELINES, *MORE),
    "conformer-layer": (*ONE[:2], ONE[3], *PIPELINES[:2]),
    "gpt-scan-4": (*ONE[:2], ONE[4], *PIPELINES[:1]),
}
QUICK = ("mlp", "gpt-4")

Row = dict[str, Any]


def main() -> int:
    """Run everything; 1 if the correlation is too low."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{' and '.join(QUICK)} only, a quick calibration")
    parser.add_argument("--profile", type=Path, help="of this machine, instead of calibrating")
    parser.add_argument("--out", type=Path, default=RESULTS / "predicted_vs_measured.json")
    args = parser.parse_args()
    begin = time.perf_counter()
    if args.profile:
        profile = load_profile(args.profile)
    else:
        profile = calibrate(quick=args.quick, progress=lambda text: print(text, flush=True))
        print(f"calibrated in {time.perf_counter() - begin:.0f} s\n", flush=True)
    rows, runs = [], []
    for model in QUICK if args.quick else ASKED:
        training = STEPS[model]()
        traced = trace(training.step, (training.state, training.batch(0)), donate_argnums=0)
        for devices, options in ASKED[model]:
            row, run = _planned(model, traced, training, devices, options, profile)
            print(f"planned {_name(row)}", flush=True)
            rows.append(row)
            runs.append(run)
    _measure(rows, runs)
    return _report(rows, profile, args.out, time.perf_counter() - begin)


class _Run:
    """A compiled plan and its state."""

    def __init__(self, executable: Any, training: TrainingStep) -> None:
        self._step, self._batch = executable, training.batch(0)
        self._state = jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, training.state)
        self.round_s()  # loads the state, warms up

    def round_s(self) -> float:
        """Seconds per step of a few steps, each until it is computed."""
        begin = time.perf_counter()
        for _ in range(STEPS_OF_A_ROUND):
            self._state, metrics = self._step(self._state, self._batch)
            jax.block_until_ready(metrics)
        if not isinstance(self._step, StagedExecutable):
            jax.block_until_ready(self._state)
        return (time.perf_counter() - begin) / STEPS_OF_A_ROUND


def _planned(
    model: str, traced: Traced, training: TrainingStep, devices: int, options: dict[str, Any], profile: Profile
) -> tuple[Row, _Run]:
    cluster = Cluster.parse(f"cpu:{devices}")
    plan = plan_traced(traced, cluster.with_profile(profile), Options(**options))
    executable = StagedExecutable(traced, plan) if plan.stages else Executable(traced, plan)
    row = {
        "model": model,
        "devices": devices,
        "options": options,
        "mesh": [list(stage.plan.mesh_shape) for stage in plan.stages] or list(plan.mesh_shape),
        "predicted_s": plan.step_s,
        "compute_s": plan.compute_s,
        "communication_s": plan.communication_s,
        "idle_s": plan.idle_s,
        "collectives": sum(c.count for c in plan.collectives),
        "uncalibrated_s": plan_traced(traced, cluster, Options(**options)).step_s,
    }
    return row, _Run(executable, training)


def _measure(rows: list[Row], runs: list[_Run]) -> None:
    """All plans in turns; the fastest round of each counts, the median stands beside it."""
    found: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for seconds, run in zip(found, runs, strict=True):
            seconds.append(run.round_s())
    for row, seconds in zip(rows, found, strict=True):
        row |= {"measured_s": min(seconds), "median_s": statistics.median(seconds)}


def ranks(values: list[float]) -> list[float]:
    """The rank of each value; equal ones share the mean of theirs."""
    ordered = sorted(values)
    return [ordered.index(v) + (ordered.count(v) - 1) / 2 for v in values]


def spearman(a: list[float], b: list[float]) -> float:
    """Rank correlation: that of the ranks."""
    return statistics.correlation(ranks(a), ranks(b))


def _lost(rows: list[Row]) -> float:
    """How much slower than the fastest plan the one is that was predicted to be."""
    chosen = min(rows, key=lambda row: row["predicted_s"])
    return chosen["measured_s"] / min(row["measured_s"] for row in rows) - 1


def _name(row: Row) -> str:
    words = " ".join(f"{'x'.join(map(str, v)) if isinstance(v, tuple) else v}" for v in row["options"].values())
    return f"{row['model']:<16}{row['devices']:>2}  {words:<20}"


def _report(rows: list[Row], profile: Profile, out: Path, wall_s: float) -> int:
    print(
        f"\n{'model':<16}{'devices, plan':<24}{'predicted ms':>14}{'measured ms':>13}{'ratio':>8}{'uncalibrated':>14}"
    )
    for row in rows:
        ratio = row["predicted_s"] / row["measured_s"]
        print(
            f"{_name(row)}{1e3 * row['predicted_s']:>14.2f}{1e3 * row['measured_s']:>13.2f}{ratio:>8.2f}"
            f"{1e3 * row['uncalibrated_s']:>14.2f}"
        )
    measured = [row["measured_s"] for row in rows]
    found = {key: spearman([row[f"{key}_s"] for row in rows], measured) for key in ("predicted", "uncalibrated")}
    print()
    for key, value in found.items():
        print(f"{len(rows)} plans, Spearman {value:.3f} of {key} and measured")
    lost = {model: _lost(list(some)) for model, some in itertools.groupby(rows, key=lambda row: row["model"])}
    print("slower than the fastest, if chosen by prediction:", ", ".join(f"{m} {v:.0%}" for m, v in lost.items()))
    about = {"about": dict(profile.about), "spearman": found, "chosen_slower_by": lost, "wall_s": round(wall_s)}
    write_result(out, {"stamp": stamp(), **about, "rows": rows})
    holds = found["predicted"] >= LIMIT
    print(f"{'holds' if holds else 'BROKEN'}: rank correlation of {LIMIT} or more after calibration")
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
