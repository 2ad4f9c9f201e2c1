"""Every family of the zoo, planned and trained on 8 devices, whole and in stages, beside plain `jax.jit` on one.

    python benchmarks/model_coverage.py                   # every family and variant, about half an hour on two cores
    python benchmarks/model_coverage.py moe conformer     # some, beside the other rows of the result file
    python benchmarks/model_coverage.py --stages 1,2

Each model (its toy preset, and variants of it) is traced and must have no opaque primitive; it is planned by `auto` for
8 devices, as one program, and as a pipeline of 2 and of 4 stages with 4 micro-batches; it takes 3 steps in float64,
dropout included. The error of a run is the largest, over every leaf of the state and of the metrics, of
max|a - b| / max|b|; integers and random keys must be equal. It passes at 1e-9. A model that couples its batch (batch
normalisation) must be refused in micro-batches, and is run in one. Step times are of eight virtual devices on this
machine's cores: beside a prediction for eight devices of their own they say nothing but the order of magnitude.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
from _common import RESULTS, read_result, sources_digest, stamp, virtual_devices, write_result
from _steps import TrainingStep, reference, relative_errors, run

from autopar import Cluster, CouplingError, Options
from autopar.api.executable import Executable
from autopar.api.planning import plan_traced
from autopar.api.staged import StagedExecutable
from autopar.models import MODELS, get
from autopar.report.words import sentence
from autopar.trace import Traced, trace

LIMIT = 1e-9
DEVICES = 8
MICROBATCHES = 4
VARIANTS: dict[str, dict[str, Any]] = {
    "moe/expert-choice": {"router": "expert-choice"},
    "moe/sigmoid": {"router": "sigmoid", "shared_experts": 1},
    "gshard/task": {"router": "task"},
    "conformer/batchnorm": {"norm": "batch"},
    "conformer/aed": {"head": "aed"},
    "conformer/causal": {"causal": True, "left_context": 4},
    "legonn/frozen": {"frozen": "decoder"},
    "legonn/beam": {"ingestor": "beam"},
    "amoebanet/b": {"genotype": "b"},
}
"""What a family's options change in kind, not only in size: "family/what" -> sizes."""

Row = dict[str, Any]


def main() -> int:
    """Run the models that the command line names; 1 if one fails."""
    known = (*MODELS, *VARIANTS)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(known))
    parser.add_argument("--stages", default="1,2,4", help="numbers of stages, 1 is one program [default: 1,2,4]")
    args = parser.parse_args()
    if unknown := [name for name in args.models if name not in known]:
        parser.error(f"unknown {', '.join(unknown)}; there are: {', '.join(known)}")
    virtual_devices(DEVICES, x64=True, optimize=False)
    out, code = RESULTS / "model_coverage.json", sources_digest()
    kept = {(row["model"], row["stages"]): row for row in (read_result(out) or {}).get("rows", []) if args.models}
    rows: list[Row] = []
    print(_HEADER)
    for name in args.models or known:
        for row in _rows(name, [int(n) for n in args.stages.split(",")]):
            rows.append(row | {"sources": code})
            print(_line(row), flush=True)
            kept[row["model"], row["stages"]] = rows[-1]
            write_result(out, {"stamp": stamp(), "limit": LIMIT, "rows": list(kept.values())})
    failed = [row for row in rows if not _passes(row)]
    print(f"\n{len(rows) - len(failed)} of {len(rows)} runs pass (limit {LIMIT:g})")
    for row in failed:
        print(_line(row))
    return 1 if failed else 0


def _rows(name: str, stages: list[int]) -> Iterator[Row]:
    # A scan of few layers has too few units for four stages.
    sizes = {"layers": 4} if name.endswith("-scan") else VARIANTS.get(name, {})
    recipe = get(name.partition("/")[0], dtype="float64", **sizes)
    training = TrainingStep(recipe.step, recipe.init(jax.random.key(0)), recipe.batch)
    expected = reference(training)
    traced = trace(training.step, (training.state, training.batch(0)), donate_argnums=0)
    opaque = sorted({f"{op.primitive} at {op.where.line}" for op in traced.step.graph.walk() if op.opaque})
    for count in stages:
        row: Row = {"model": name, "stages": count, "opaque": opaque}
        try:
            yield row | _measured(traced, training, expected, count)
        except Exception as error:  # a run that breaks is a row too
            traceback.print_exc()
            yield row | {"error": f"{type(error).__name__}: {error}"}


def _measured(traced: Traced, training: TrainingStep, expected: Any, stages: int) -> Row:
    begin = time.perf_counter()
    cluster, microbatches = Cluster.parse(f"cpu:{DEVICES}"), MICROBATCHES
    if stages == 1:
        plan = plan_traced(traced, cluster, Options())
    else:
        try:
            plan = plan_traced(traced, cluster, Options(stages=stages, microbatches=microbatches))
        except CouplingError:
            microbatches = 1
            plan = plan_traced(traced, cluster, Options(stages=stages))
    plan_s = time.perf_counter() - begin
    executable = Executable(traced, plan) if stages == 1 else StagedExecutable(traced, plan)
    compile_s = time.perf_counter() - begin - plan_s
    try:
        errors = relative_errors(run(executable, training), expected)
        step_s = _step_s(executable, training)
        audits = [executable.audit] if stages == 1 else executable.audit.stages
        agrees, peak = executable.audit.agrees, max(a.compiled_peak_bytes for a in audits)
    finally:
        if stages > 1:
            executable.close()
    worst = max(errors, key=lambda path: errors[path])
    return {
        "microbatches": microbatches if stages > 1 else 1,
        "words": sentence(plan),
        "max_rel_error": errors[worst],
        "worst_leaf": worst,
        "leaves": len(errors),
        "plan_s": round(plan_s, 2),
        "compile_s": round(compile_s, 2),
        "predicted_step_s": plan.step_s,
        "measured_step_s": step_s,
        "predicted_peak_bytes": plan.peak_bytes,
        "compiled_peak_bytes": peak,
        "collectives_agree": agrees,
    }


def _step_s(executable: Any, training: TrainingStep) -> float:
    """The fastest of three steps; all programs have run before."""
    state = jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, training.state)
    found = []
    for i in range(4):
        begin = time.perf_counter()
        state, metrics = executable(state, training.batch(i))
        float(metrics["loss"])
        found.append(time.perf_counter() - begin)
    return min(found[1:])


_HEADER = (
    f"{'model':<22}{'stages':>6}{'plan s':>8}{'compile s':>11}{'max rel err':>13}{'step ms: predicted':>20}{'here':>7}"
    f"{'peak kB: predicted':>20}{'XLA':>8}  collectives"
)


def _line(row: Row) -> str:
    head = f"{row['model']:<22}{row['stages']:>6}"
    opaque = f"\n    OPAQUE: {', '.join(row['opaque'])}" if row["opaque"] else ""
    if row.get("error"):
        return head + "  " + row["error"].split("\n")[0] + opaque
    agree = "as planned" if row["collectives_agree"] else "DIFFER"
    fails = "" if row["max_rel_error"] <= LIMIT else f"  FAILS: {row['worst_leaf']}"
    return (
        f"{head}{row['plan_s']:>8.1f}{row['compile_s']:>11.1f}{row['max_rel_error']:>13.1e}"
        f"{row['predicted_step_s'] * 1e3:>20.2f}{row['measured_step_s'] * 1e3:>7.0f}"
        f"{row['predicted_peak_bytes'] / 1e3:>20.0f}{row['compiled_peak_bytes'] / 1e3:>8.0f}  {agree}{fails}{opaque}"
        f"\n    {row['words']}"
    )


def _passes(row: Row) -> bool:
    return not row.get("error") and not row["opaque"] and row["collectives_agree"] and row["max_rel_error"] <= LIMIT


if __name__ == "__main__":
    sys.exit(main())
