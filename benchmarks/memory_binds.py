"""Memory binds: a shrinking budget moves GPT from data parallel over ZeRO to fully sharded plans.

    python benchmarks/memory_binds.py

A GPT of 14 million parameters in float32 on 2 hosts of 4 V100s, one mesh axis, the device's memory made smaller from
plan to plan. Of each plan: the share of the parameters, of the optimizer state and of the batch that one device holds
(1 is replicated, 1/8 fully split), and the share of the gradients' bytes that is reduce-scattered.
The predicted step time never falls as the budget shrinks, every plan fits its budget, the first plan is data
parallel and the last fully sharded, and below the least feasible budget the error says what is missing.

The model is small on purpose. Sharding the optimizer state costs one latency more (a reduce-scatter and an all-gather
in place of an all-reduce) and saves update work, so on arrays of many megabytes it is faster whatever the memory:
GPT-350M on one host of A100s starts there, and only the way from ZeRO to fully sharded is left to see
(`--preset 350m --cluster a100-80gb:8 --batch 8` shows that, and its first claim does not hold there).
"""

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

from _common import RESULTS, stamp, virtual_devices, write_result

from autopar import Cluster, InfeasibleError, Options
from autopar.ir import Step
from autopar.models import get
from autopar.plan import Argument, PlanFacts
from autopar.planner import plan_step
from autopar.trace import trace
from autopar.units import GIB

MESH = (8,)
SMALL = {"hidden": 512, "layers": 4, "heads": 8, "sequence": 128, "vocab": 2048, "dtype": "float32"}
WHOLE = 1_000_000
"""More classes than the step has: followers are folded exactly."""
FRACTIONS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.69, 0.685, 0.68, 0.675, 0.67, 0.6, 0.5)
"""Budgets, as shares of the peak of the plan without a limit."""
GAP = 1e-3

Row = dict[str, Any]


def main() -> int:
    """Plan with each budget; 1 if a claim breaks."""
    args = _arguments()
    virtual_devices(1)
    sizes = SMALL if args.preset == "small" else {}
    recipe = get("gpt", preset="350m", batch_size=args.batch, **sizes)
    step = trace(recipe.step, recipe.abstract(), {}, donate_argnums=(0,)).step
    print(f"GPT, {recipe.parameter_count() / 1e6:.0f}M parameters, batch {args.batch}, on {args.cluster}\n\n{_HEADER}")
    free = _plan(step, float("inf"), args)
    rows: list[Row] = [_row(free, None)]
    error = ""
    print(_line(rows[-1]), flush=True)
    for fraction in FRACTIONS:
        budget = fraction * free.peak_bytes
        try:
            rows.append(_row(_plan(step, budget, args), budget))
        except InfeasibleError as found:
            error = str(found)
            print(f"{budget / GIB:>9.2f}  {error}")
            break
        print(_line(rows[-1]), flush=True)
    broken = [text for holds, text in _claims(rows, error) if not holds]
    print(f"\nbroken: {'; '.join(broken) or 'none'}")
    content = {"stamp": stamp(), "model": recipe.name, "sizes": sizes, "batch": args.batch}
    content |= {"cluster": args.cluster, "mesh": MESH}
    write_result(args.out, {**content, "rows": rows, "error": error, "broken": broken})
    return int(bool(broken))


def _claims(rows: list[Row], error: str) -> list[tuple[bool, str]]:
    first, last = rows[0], rows[-1]
    times = [row["step_s"] for row in rows]
    return [
        # Each plan is within GAP of its optimum, so a smaller budget may find a time smaller by that much.
        (all(b >= a * (1 - 2 * GAP) for a, b in itertools.pairwise(times)), "step time is not monotone"),
        (all(row["peak_bytes"] <= (row["budget_bytes"] or float("inf")) for row in rows), "a plan exceeds its budget"),
        (first["parameters"] > 0.9 and first["optimizer"] > 0.9, "without a limit it is not data parallel"),
        (any(row["parameters"] > 0.9 and row["optimizer"] < 0.5 for row in rows), "no plan is like ZeRO-1 or 2"),
        (last["parameters"] < 0.2 and last["optimizer"] < 0.2, "the tightest plan is not fully sharded"),
        ("short" in error and "does not fit" in error, "no clear error below the least feasible budget"),
    ]


def _plan(step: Step, budget: float, args: argparse.Namespace) -> PlanFacts:
    options = Options(mesh=MESH, memory_bytes=budget, mip_gap=GAP, group_above=WHOLE, time_limit_s=args.time_limit_s)
    return plan_step(step, Cluster.parse(args.cluster), options)


def _row(plan: PlanFacts, budget: float | None) -> Row:
    parameters = [a for a in plan.arguments if a.kind == "parameter"]
    optimizer = [a for a in plan.arguments if a.kind == "optimizer"]
    late = [c for c in plan.collectives if c.phase != "forward"]
    reduced = {k: sum(c.bytes * c.count for c in late if c.kind == k) for k in ("all-reduce", "reduce-scatter")}
    return {
        "budget_bytes": budget,
        "step_s": plan.step_s,
        "peak_bytes": plan.peak_bytes,
        "parameters": _held(parameters, plan),
        "optimizer": _held(optimizer, plan),
        "batch": _held([a for a in plan.arguments if a.kind == "batch"], plan),
        "gradients_scattered": reduced["reduce-scatter"] / max(1, sum(reduced.values())),
        "memory": dict(plan.memory),
        "collectives": _totals(plan),
        "gap": plan.gap,
        "status": plan.certificate.status,
    }


def _totals(plan: PlanFacts) -> dict[str, tuple[int, int]]:
    """Collective kind -> count and bytes per step."""
    found: dict[str, tuple[int, int]] = {}
    for c in plan.collectives:
        count, nbytes = found.get(c.kind, (0, 0))
        found[c.kind] = (count + c.count, nbytes + c.bytes * c.count)
    return found


def _held(arguments: list[Argument], plan: PlanFacts) -> float:
    """The share of all elements that one device holds."""
    whole = local = 0.0
    for a in arguments:
        size = float(_product(a.shape))
        whole += size
        local += size / _product(n for n, p in zip(plan.mesh_shape, a.layout, strict=True) if p >= 0)
    return local / max(whole, 1.0)


def _product(numbers: Any) -> int:
    total = 1
    for n in numbers:
        total *= n
    return total


def _style(row: Row) -> str:
    """What people call it."""
    if row["parameters"] < 0.2:
        return "fully sharded (ZeRO-3)"
    if row["parameters"] < 0.9:
        return "parameters partly sharded"
    if row["optimizer"] < 0.9:
        part = "" if row["optimizer"] < 0.2 else "partly "
        return f"optimizer state {part}sharded " + ("(ZeRO-2)" if row["gradients_scattered"] > 0.5 else "(ZeRO-1)")
    return "data parallel" if row["batch"] < 0.9 else "replicated state"


_HEADER = (
    f"{'budget GiB':>11}{'peak GiB':>10}{'step ms':>9}{'params':>8}{'optim.':>8}{'batch':>7}{'grads scattered':>17}"
    f"{'gap':>8}  plan"
)


def _line(row: Row) -> str:
    budget = "none" if row["budget_bytes"] is None else f"{row['budget_bytes'] / GIB:.2f}"
    return (
        f"{budget:>11}{row['peak_bytes'] / GIB:>10.2f}{row['step_s'] * 1e3:>9.2f}{row['parameters']:>8.2f}"
        f"{row['optimizer']:>8.2f}{row['batch']:>7.2f}{row['gradients_scattered']:>17.0%}{row['gap']:>8.2%}"
        f"  {_style(row)}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=("small", "350m"), default="small")
    parser.add_argument("--cluster", default="v100-16gb:2x4", help="8 devices (default v100-16gb:2x4)")
    parser.add_argument("--batch", type=int, default=64, help="global batch (default 64)")
    parser.add_argument("--time-limit-s", type=float, default=60, help="of one plan's solver (default 60)")
    parser.add_argument("--out", type=Path, default=RESULTS / "memory_binds.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
