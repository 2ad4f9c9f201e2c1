"""Never worse: `auto` against the parallelisms people name, predicted on large clusters and compiled on 8 devices.

    python benchmarks/never_worse.py                                    # predicted, everything: half an hour
    python benchmarks/never_worse.py --models moe-10b --clusters a100-80gb:16
    python benchmarks/never_worse.py --compiled                         # collective bytes of the compiled toy models

Predicted: for each model and cluster, the step time of `auto` is at most that of the best of `data`, `fsdp`,
`megatron` and `expert`, each with its own best mesh. A baseline that does not fit into the device's memory says so.
The global batch is the model's own number times the devices (see `MODELS`): fixed here, not chosen by any planner.
Layers of transformers are rematerialised nowhere, so batches are small. Where nothing fits, not even `auto`, the
batch is halved until something does, and the row says which batch it was.

Compiled: the toy models on 8 virtual CPU devices. The collective bytes in the compiled HLO of `auto` are at most
those of the best baseline (the one that is predicted fastest), except where the plan shows why: it computes less, and
saves more time by that than the additional communication takes, or it fits where the baseline does not. Planned twice:
for `cpu:8`, where a third reason counts, that fewer collectives wait less (each has a latency), and for the same
devices without latency, where it does not.

Results are written after each plan; `--resume` keeps those that are there.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from _common import RESULTS, read_result, stamp, virtual_devices, write_result

from autopar import Cluster, InfeasibleError, Options
from autopar.api.executable import Executable
from autopar.api.planning import plan_traced
from autopar.ir import Step
from autopar.models import get
from autopar.planner import plan_step
from autopar.trace import trace

BASELINES = ("data", "fsdp", "megatron", "expert")
STRATEGIES = (*BASELINES, "auto")
CLUSTERS = ("v100-32gb:8", "a100-80gb:16", "h100:64", "tpu-v4:256")
DEVICES = 8
NO_LATENCY = Cluster.uniform(DEVICES, flops_per_s=1e10, bytes_per_s=5e9, link_latency_s=0.0, link_bytes_per_s=2e9)
"""The devices of `cpu:8`."""
TOYS = ("mlp", "gpt", "bert", "moe", "llama", "convnet", "conformer", "gpt-scan")
TOLERANCE = 1e-6

Row = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """A registry name, its preset and the examples per device of the global batch."""

    name: str
    preset: str
    per_device: float


MODELS = {
    "gpt-2.6b": Model("gpt", "2.6b", 1),
    "moe-10b": Model("moe", "10b", 1),
    "wide-resnet-1b": Model("wide-resnet", "1b", 8),
    "conformer-xxl": Model("conformer", "xxl", 1),
}


def main() -> int:
    """Run what the command line asks for; 1 if `auto` is worse than a baseline anywhere."""
    args = _arguments()
    virtual_devices(DEVICES)
    part = "compiled" if args.compiled else "predicted"
    content: dict[str, Any] = read_result(args.out) or {}
    rows: dict[str, Row] = dict(content.get(part, {})) if args.resume else {}

    def store(key: str, row: Row) -> None:
        rows[key] = row
        write_result(args.out, content | {"stamp": stamp(), part: rows})

    failed = compiled(args, rows, store) if args.compiled else predicted(args, rows, store)
    print(f"\nworse than a baseline: {', '.join(failed) or 'nowhere'}")
    return int(bool(failed))


def predicted(args: argparse.Namespace, rows: dict[str, Row], store: Any) -> list[str]:
    """Every model on every cluster. Returns the names of the pairs that break the bound."""
    print(f"{'model':<16}{'cluster':<14}{'batch':>6}  " + "".join(f"{s:>16}" for s in STRATEGIES) + "   auto / best")
    failed = []
    for name in args.models or MODELS:
        for cluster in args.clusters or CLUSTERS:
            key = f"{name} on {cluster}"
            row = rows.get(key) or {"plans": {}}
            for grown in pair_rows(name, Cluster.parse(cluster), row, args):
                store(key, row := grown)
            fitting = [p["step_s"] for s, p in row["plans"].items() if s != "auto" and p["step_s"] is not None]
            auto_s = row["plans"]["auto"]["step_s"]
            row["passes"] = auto_s is not None and all(auto_s <= s * (1 + TOLERANCE) for s in fitting)
            row["ratio"] = auto_s / min(fitting) if fitting and auto_s is not None else None
            store(key, row)
            ratio = f"{row['ratio']:.3f}" if row["ratio"] else "nothing else fits" if auto_s else "nothing fits"
            cells = "".join(f"{_cell(row['plans'][s]):>16}" for s in STRATEGIES)
            print(f"{name:<16}{cluster:<14}{row['batch']:>6}  {cells}   {ratio}{'' if row['passes'] else '  FAILS'}")
            sys.stdout.flush()
            if not row["passes"]:
                failed.append(key)
    return failed


def pair_rows(name: str, cluster: Cluster, row: Row, args: argparse.Namespace) -> Iterator[Row]:
    """The row of a model and a cluster, anew after each plan."""
    if len(row["plans"]) == len(STRATEGIES):
        return
    model = MODELS[name]
    batch = row.get("batch") or int(model.per_device * cluster.devices)
    while True:
        step = _traced(model, batch)
        auto = _plan(step, cluster, "auto", args)
        if auto["step_s"] is not None or batch <= 1:
            break
        batch //= 2
    row = {"batch": batch, "plans": {"auto": auto}}
    yield row
    for strategy in BASELINES:
        row["plans"][strategy] = _plan(step, cluster, strategy, args)
        yield row


def _traced(model: Model, batch: int) -> Step:
    recipe = get(model.name, preset=model.preset, batch_size=batch)
    return trace(recipe.step, recipe.abstract(), {}, donate_argnums=(0,)).step


def _plan(step: Step, cluster: Cluster, strategy: str, args: argparse.Namespace) -> Row:
    options = Options(strategy=strategy, max_axes=args.max_axes, time_limit_s=args.time_limit_s)
    begin = time.perf_counter()
    try:
        plan = plan_step(step, cluster, options, lambda text: print(f"    {strategy}: {text}", file=sys.stderr))
    except InfeasibleError as error:
        took = time.perf_counter() - begin
        return {"step_s": None, "why": str(error).split(". Largest")[0], "plan_s": round(took, 2)}
    return {
        "step_s": plan.step_s,
        "compute_s": plan.compute_s,
        "communication_s": plan.communication_s,
        "peak_bytes": plan.peak_bytes,
        "mesh": plan.mesh_shape,
        "gap": plan.gap,
        "status": plan.certificate.status,
        "collective_bytes": plan.collective_bytes,
        "plan_s": round(time.perf_counter() - begin, 2),
    }


def _cell(plan: Row) -> str:
    if plan["step_s"] is None:
        return "does not fit"
    return f"{plan['step_s'] * 1e3:,.1f} ms {'x'.join(map(str, plan['mesh']))}"


def compiled(args: argparse.Namespace, rows: dict[str, Row], store: Any) -> list[str]:
    """The toy models, compiled. Returns the names of those that break the bound without a reason."""
    print(f"{'model':<24}{'auto B':>12}{'baseline B':>12}  best baseline, and why if auto moves more")
    failed = []
    for toy, latency in itertools.product(args.models or TOYS, (True, False)):
        name = toy if latency else f"{toy}, no latency"
        row = rows.get(name) or _compiled(toy, args, latency=latency)
        store(name, row)
        print(
            f"{name:<24}{row['auto']['hlo_bytes']:>12,}{row['baseline']['hlo_bytes']:>12,}  {row['best']} {row['why']}"
            + ("" if row["passes"] else "  FAILS"),
            flush=True,
        )
        if not row["passes"]:
            failed.append(name)
    return failed


def _compiled(name: str, args: argparse.Namespace, *, latency: bool) -> Row:
    recipe = get(name, preset="toy")
    traced = trace(recipe.step, (jax.eval_shape(recipe.init, jax.random.key(0)), recipe.batch_spec), {},
                   donate_argnums=(0,))  # fmt: skip
    cluster = Cluster.parse(f"cpu:{DEVICES}") if latency else NO_LATENCY
    plans: dict[str, Any] = {}
    for strategy in STRATEGIES:
        options = Options(strategy=strategy, max_axes=args.max_axes, time_limit_s=args.time_limit_s)
        try:
            plans[strategy] = plan_traced(traced, cluster, options)
        except InfeasibleError:
            print(f"    {name}: {strategy} does not fit", file=sys.stderr)
    best = min((s for s in BASELINES if s in plans), key=lambda s: plans[s].step_s)
    auto, other = (_facts(traced, plans[s]) for s in ("auto", best))
    reasons = []
    if auto["hlo_bytes"] > other["hlo_bytes"]:
        if auto["compute_s"] < other["compute_s"]:
            saved, paid = other["compute_s"] - auto["compute_s"], auto["communication_s"] - other["communication_s"]
            if saved >= paid:
                more = f"{abs(paid) * 1e6:.1f} us {'more' if paid > 0 else 'less'}"
                reasons.append(f"computes {saved * 1e6:.1f} us less and communicates {more}")
        if auto["communication_s"] < other["communication_s"] and auto["hlo_count"] < other["hlo_count"] and latency:
            reasons.append(
                f"waits less: {auto['hlo_count']} collectives in {auto['communication_s'] * 1e6:.0f} us, "
                f"the baseline's {other['hlo_count']} in {other['communication_s'] * 1e6:.0f} us"
            )
        if auto["peak_bytes"] < other["peak_bytes"] and other["peak_bytes"] > cluster.device.memory_bytes:
            reasons.append("the baseline does not fit into memory")
    passes = auto["hlo_bytes"] <= other["hlo_bytes"] or bool(reasons)
    return {"auto": auto, "baseline": other, "best": best, "why": "; ".join(reasons), "passes": passes}


def _facts(traced: Any, plan: Any) -> Row:
    found = Executable(traced, plan).audit
    return {
        "hlo_bytes": sum(row.compiled_bytes for row in found.rows),
        "hlo_count": sum(row.compiled_count for row in found.rows),
        "planned_bytes": plan.collective_bytes,
        "step_s": plan.step_s,
        "compute_s": plan.compute_s,
        "communication_s": plan.communication_s,
        "peak_bytes": plan.peak_bytes,
        "mesh": plan.mesh_shape,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=lambda text: text.split(","), help=",".join(MODELS))
    parser.add_argument("--clusters", type=lambda text: text.split(","), help=",".join(CLUSTERS))
    parser.add_argument("--compiled", action="store_true", help="collective bytes of the compiled toy models")
    parser.add_argument("--max-axes", type=int, default=2, help="axes of the meshes that are tried (default 2)")
    parser.add_argument("--time-limit-s", type=float, default=60, help="of one plan's solver (default 60)")
    parser.add_argument("--resume", action="store_true", help="keep the results that are in the file")
    parser.add_argument("--out", type=Path, default=RESULTS / "never_worse.json")
    args = parser.parse_args()
    known = TOYS if args.compiled else tuple(MODELS)
    for word, words in ((args.models, known), (args.clusters, CLUSTERS)):
        if unknown := set(word or ()) - set(words):
            parser.error(f"unknown {', '.join(sorted(unknown))}; there are: {', '.join(words)}")
    return args


if __name__ == "__main__":
    sys.exit(main())
