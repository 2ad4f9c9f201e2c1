"""Optimal: the program against exhaustive search, and its communication against Alpa's planner.

    python benchmarks/optimal.py                # both parts, some minutes on two cores
    python benchmarks/optimal.py --part alpa    # or: --part exhaustive

Exhaustive: on small random graphs the predicted step time equals the least over every combination of strategies
and layouts, found by enumeration that shares nothing with the program (`tests/planner/graphs.py`).

Alpa: the three steps of `_alpa_models.py` on 4 devices with latency 1 s, 1 byte/s and free compute. The bound is
what Alpa's planner achieves under that cost. When compute is free, repeating all of it everywhere needs no
communication, so a planner without further rules answers 0: that is printed, and means nothing. Alpa always divides
a matrix product among the devices, and `Options(divide_work=True)` is that rule: its figure is held to the bound.
Followers are folded exactly (`group_above`), for these steps are small enough to search whole.
Alpa prices an all-to-all over n devices n/2 times as high as this cluster does. What the plan would cost at that
price, which it was not made for, is printed beside it.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator
from math import inf, isclose
from pathlib import Path
from typing import Any

import _alpa_models
from _common import RESULTS, ROOT, read_result, stamp, virtual_devices, write_result

from autopar import Cluster, Options
from autopar.plan import PlanFacts
from autopar.planner import plan_step
from autopar.trace import trace

sys.path.insert(0, str(ROOT))  # the oracle of the tests
from tests.planner.graphs import exhaustive, random_step

CLUSTERS = {
    "balanced": Cluster.uniform(4, 1e3, 1e3, 0.5, 1e2),
    "latency": Cluster.uniform(2, 1e2, 1e3, 10.0, 1e3),
    "free compute": Cluster.uniform(4, inf, inf, 1.0, 1.0),
}
# cluster, mesh, first seed, number of graphs, ops of the k-th graph
GRAPHS: tuple[tuple[str, tuple[int, ...], int, int, Callable[[int], int]], ...] = (
    ("balanced", (4,), 10_000, 120, lambda k: 2 + k % 4),
    ("balanced", (2, 2), 11_000, 60, lambda k: 2 + k % 2),
    ("latency", (2,), 12_000, 60, lambda k: 2 + k % 5),
)
WHOLE = 1_000_000
"""More classes than any of these steps has: nothing is grouped."""
ALPA_S = {"mlp": 38_139, "bert": 344_071, "moe": 893_965}

Row = dict[str, Any]


def main() -> int:
    """Run what the command line asks for; 1 if a bound breaks."""
    args = _arguments()
    virtual_devices(1)
    content: dict[str, Any] = read_result(args.out) or {}
    failed = False
    for part, rows_of in (("alpa", alpa_rows), ("exhaustive", exhaustive_rows)):
        if args.part in (part, "all"):
            rows = content[part] = []
            for row in rows_of():
                rows.append(row)
                write_result(args.out, content | {"stamp": stamp()})
            failed |= not all(row["passes"] for row in rows)
    return int(failed)


def alpa_rows() -> Iterator[Row]:
    """Communication of the three steps, with and without the rule that work is divided."""
    print(f"{'step':<6}{'bound s':>10}{'divided s':>12}{'as Alpa prices':>16}{'undivided s':>13}{'mesh':>6}{'gap':>8}")
    cluster = CLUSTERS["free compute"]
    for name, bound_s in ALPA_S.items():
        step, state, batch = getattr(_alpa_models, name)()
        traced = trace(step, (state, batch), {}, donate_argnums=(0,)).step
        begin = time.perf_counter()
        free = plan_step(traced, cluster, Options(mip_gap=0.0, group_above=WHOLE))
        divided = plan_step(traced, cluster, Options(mip_gap=0.0, group_above=WHOLE, divide_work=True))
        alpa_s = priced_as_alpa_s(divided)
        row = {
            "step": name,
            "bound_s": bound_s,
            "divided_s": divided.communication_s,
            "divided_alpa_price_s": alpa_s,
            "undivided_s": free.communication_s,
            "mesh": divided.mesh_shape,
            "gap": divided.gap,
            "status": divided.certificate.status,
            "folding": divided.certificate.folding,
            "plan_s": round(time.perf_counter() - begin, 2),
            "collectives": [f"{c.count} x {c.kind} {c.bytes} B, {c.where}, {c.cause}" for c in divided.collectives],
            "passes": divided.communication_s <= bound_s,
        }
        shape = "x".join(map(str, divided.mesh_shape))
        print(
            f"{name:<6}{bound_s:>10,}{divided.communication_s:>12,.0f}{alpa_s:>16,.0f}{free.communication_s:>13,.0f}"
            f"{shape:>6}{divided.gap:>8.2%}{_verdict(row)}",
            flush=True,
        )
        yield row


def priced_as_alpa_s(plan: PlanFacts) -> float:
    """Communication with Alpa's penalty on all-to-all: n/2 times the bytes, over n devices (its `all_to_all_cost`)."""
    size = {axis.name: axis.size for axis in plan.mesh}
    total = plan.communication_s
    for c in plan.collectives:
        if c.kind == "all-to-all":
            devices = max(size[a] for a in c.axes)
            total += (max(devices / 2, 1) - 1) * max(c.seconds - c.count, 0)  # a latency of 1 s each is not scaled
    return total


def exhaustive_rows() -> Iterator[Row]:
    """One row for each family of random graphs."""
    print(f"\n{'cluster':<14}{'mesh':<7}{'graphs':>7}{'equal':>7}{'worst difference':>18}{'nonzero':>9}{'seconds':>9}")
    for name, mesh, seed, count, ops in GRAPHS:
        begin = time.perf_counter()
        cluster = CLUSTERS[name]
        found = []
        for k in range(count):
            step = random_step(random.Random(seed + k), ops(k))
            best_s = exhaustive(step, cluster, cluster.mesh(mesh))
            plan = plan_step(step, cluster, Options(mesh=mesh, mip_gap=0.0))
            found.append((seed + k, best_s, plan.step_s, plan.certificate.bound_s))
        equal = [isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) and c <= a * (1 + 1e-6) + 1e-9 for _, a, b, c in found]
        row = {
            "cluster": name,
            "mesh": mesh,
            "graphs": count,
            "equal": sum(equal),
            "worst_difference": max(abs(a - b) / max(a, 1e-9) for _, a, b, _ in found),
            "nonzero": sum(a > 1e-9 for _, a, _, _ in found),
            "seconds": round(time.perf_counter() - begin, 1),
            "seed_best_planned_bound_s": found,
            "passes": all(equal),
        }
        print(
            f"{name:<14}{'x'.join(map(str, mesh)):<7}{count:>7}{row['equal']:>7}{row['worst_difference']:>18.1e}"
            f"{row['nonzero']:>9}{row['seconds']:>9}{_verdict(row)}",
            flush=True,
        )
        yield row


def _verdict(row: Row) -> str:
    return "" if row["passes"] else "  FAILS"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=("all", "alpa", "exhaustive"), default="all")
    parser.add_argument("--out", type=Path, default=RESULTS / "optimal.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
