"""How long an explanation takes beside the plan that it explains, and whether its numbers are those of plans.

    python benchmarks/explaining_speed.py

Per case: seconds for the plan, for building the program of the explanation, and for each alternative (a layout forced,
planned on the same mesh). `off` is the largest relative difference between the step of an alternative and that of an
independent plan with the layout as a hint; of large models, where that would take an hour, of two of them.
Fails if an alternative of a small model takes more than a few seconds, or one is off by more than what the plan's own
gap allows.
"""

import itertools
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

from _common import RESULTS, stamp, virtual_devices, write_result

import autopar
from autopar.models import get

OUT = RESULTS / "explaining_speed.json"
LIMIT_S = 5.0  # an alternative of a toy


@dataclass(frozen=True)
class Case:
    """A question about a model: of small ones every answer is checked by a plan of its own, else so many."""

    model: str
    preset: str
    cluster: str
    mesh: tuple[int, ...]
    name: str
    checked: int = 99
    sizes: tuple[tuple[str, Any], ...] = ()


CASES = (
    Case("mlp", "toy", "cpu:8", (8,), "params[1].w"),
    Case("mlp", "toy", "cpu:8", (2, 4), "params[1].w"),
    Case("gpt", "toy", "cpu:8", (8,), "wte"),
    Case("moe", "toy", "cpu:8", (8,), "moe.w1"),
    Case("gpt", "1.3b", "h100:2x8", (2, 8), "layers[*].mlp.w1", 2, (("batch_size", 64),)),
)


def measure(case: Case) -> dict[str, Any]:
    recipe = get(case.model, preset=case.preset, **dict(case.sizes))
    options = autopar.Options(mesh=case.mesh)

    def planned(**more: Any) -> autopar.Plan:
        chosen = autopar.Options(mesh=case.mesh, hint_costs=False, **more)
        return autopar.plan(recipe.step, *recipe.abstract(), cluster=case.cluster, options=chosen, donate_argnums=0)

    begin = time.perf_counter()
    plan = planned()
    plan_s = time.perf_counter() - begin
    begin = time.perf_counter()
    times = [begin]
    found = plan.explain(case.name, progress=lambda _: times.append(time.perf_counter()), options=options)
    explain_s = time.perf_counter() - begin
    each = [b - a for a, b in itertools.pairwise(times)]
    off = 0.0
    for a in [a for a in found.alternatives if a.figures is not None][: case.checked]:
        forced = planned(hints=[autopar.Hint.layout(case.name, a.words)])
        off = max(off, abs(a.figures.step_s / forced.step_s - 1))
    return {
        "model": f"{case.model} {case.preset}", "cluster": case.cluster, "mesh": list(case.mesh), "name": case.name,
        "plan_s": plan_s, "explain_s": explain_s, "first_s": each[0], "alternatives": len(each),
        "each_s": statistics.median(each[1:]), "most_s": max(each[1:]), "off": off, "chosen": list(found.chosen),
    }  # fmt: skip


def main() -> int:
    virtual_devices(8)
    rows, failed = [], False
    print(
        f"{'model':10} {'mesh':6} {'name':18} {'plan':>7} {'explain':>8} {'built':>7} {'each':>7} {'most':>7}   n off"
    )
    for case in CASES:
        row = measure(case)
        rows.append(row)
        mesh = "x".join(map(str, case.mesh))
        print(
            f"{row['model']:10} {mesh:6} {case.name:18} {row['plan_s']:6.1f}s {row['explain_s']:7.1f}s "
            f"{row['first_s']:6.1f}s {row['each_s']:6.2f}s {row['most_s']:6.2f}s {row['alternatives']:3} "
            f"{row['off']:.1e}",
            flush=True,
        )
        write_result(OUT, {"stamp": stamp(), "limit_s": LIMIT_S, "rows": rows})
        failed |= row["off"] > 5e-3 or (case.preset == "toy" and row["most_s"] > LIMIT_S)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
