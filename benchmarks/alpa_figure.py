"""Figure 7 of Alpa (Zheng et al., OSDI 2022): GPT from 350M to 39B on 1 to 64 V100s, planned in four ways.

    python benchmarks/alpa_figure.py                       # all, half an hour
    python benchmarks/alpa_figure.py --models gpt-2.6b     # one; the rows of the others are kept
    python benchmarks/alpa_figure.py --models              # none: table and figure of the rows that there are

1,024 sequences of 1,024 tokens per step in float16, 8 devices of 16 GB per host, 25 Gbit/s between hosts. Four curves,
and the plans that Alpa found, all predicted by one cost model:

    manual      stages of equally many layers, tensor and data parallelism inside them as Megatron-LM has it: the six
                configurations of a grid (powers of two) that `autopar.predict` holds for the fastest
    inter-op    stages of one device each
    intra-op    one stage on all devices
    auto        stages and the sharding of each, together
    alpa        the stages, meshes and micro-batches that Alpa found (`published/alpa_gpt_plans.csv`)

Everything may be computed again, as in the figure. Every way may choose the number of micro-batches among those of the
model, but for `alpa`, which has its own. PFLOP/s count as Alpa does. Beside each prediction stands what Alpa measured.
Fails unless `auto` is predicted at least as fast as everything else, for every model. Draws
`docs/images/alpa_figure.png`.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _common import RESULTS, ROOT, read_result, sources_digest, stamp, write_result
from _published import alpa_flops, grid, hosts, ranked, rows
from _staging import AUTO, BATCH, INTRA_OP, inter_op, planned, shape, traced_step
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from autopar import Options
from autopar.lower import StagedStep
from autopar.prediction import Parallel, Sizes
from autopar.sizing import sizes_of
from autopar.sweep.plots import COLOURS, STYLE

OUT = RESULTS / "alpa_figure.json"
PICTURE = ROOT / "docs" / "images" / "alpa_figure.png"
CURVES = {"manual": "megatron", "inter-op": "inter_op_only", "intra-op": "intra_op_only", "auto": "alpa"}
PLANS = (*CURVES, "alpa")
MANUAL = 6  # configurations of the grid
MICROBATCHES = {
    "gpt-350m": (128, 256, 512),
    "gpt-2.6b": (128, 256, 512),
    "gpt-15b": (128, 256, 512),
    "gpt-39b": (512, 1024),
}
FIGURE = {row["model"].split()[0]: row for row in rows("alpa_gpt_fig7")}
FOUND = {row["model"]: row for row in rows("alpa_gpt_plans")}


@dataclass(frozen=True)
class Asked:
    """One plan to be made.

    Attributes:
        plan: which of `PLANS` it stands for.
        microbatches: their number.
        options: of the planner.
        layers: of each stage; None if they are searched for.
        devices: of each of these stages.
    """

    plan: str
    microbatches: int
    options: Options
    layers: tuple[int, ...] | None = None
    devices: tuple[int, ...] = ()


def main() -> int:
    """Run what the command line asks for; 1 if a bound breaks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="*", choices=MICROBATCHES, default=list(MICROBATCHES))
    parser.add_argument("--plans", nargs="*", choices=PLANS, default=list(PLANS))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--verbose", action="store_true", help="print each search as it goes")
    args = parser.parse_args()
    kept = [
        row
        for row in (read_result(args.out) or {}).get("rows", [])
        if row["model"] not in args.models or row["plan"] not in args.plans
    ]
    for model in args.models:
        kept += _rows(model, args, kept)
    draw(kept, PICTURE)
    return _verdict(kept)


def _rows(model: str, args: argparse.Namespace, others: Sequence[dict]) -> list[dict[str, Any]]:
    """Plan a model in every way, and write the results after each."""
    sizes, _ = sizes_of(model.replace("-", ":"), dtype="float16")
    devices = int(FIGURE[model]["devices"])
    cluster = hosts("v100-16gb", devices)
    traced, trace_s = traced_step("gpt", model.removeprefix("gpt-"))
    print(f"\n{model} on {cluster.name}: traced in {trace_s:.1f} s", flush=True)
    print(f"{'plan':<9}{'micro-batches':>14}{'step s':>9}{'PFLOP/s':>9}{'GiB':>7}{'plan s':>8}{'CPU s':>7}  stages")
    found, code = [], sources_digest()
    for asked in _asked(model, sizes, devices):
        if asked.plan not in args.plans:
            continue
        staged = StagedStep(traced, asked.microbatches)
        cut = _cut(staged, sizes, asked)
        row = planned(staged, cluster.name, asked.options, cut=cut, verbose=args.verbose)
        rate = {"pflops": alpa_flops(sizes, BATCH) / row["step_s"] / 1e15} if "step_s" in row else {}
        found.append({"model": model, "devices": devices, "plan": asked.plan, **row, **rate, "sources": code})
        print(_line(found[-1]), flush=True)
        write_result(args.out, {"stamp": stamp(), "rows": [*others, *found]})
    return found


def _asked(model: str, sizes: Sizes, devices: int) -> Iterator[Asked]:
    for _, one in ranked(sizes, hosts("v100-16gb", devices), _grid(model, devices))[:MANUAL]:
        yield _manual(sizes, one)
    for plan, options in (("inter-op", inter_op(devices)), ("intra-op", INTRA_OP), ("auto", AUTO)):
        for microbatches in MICROBATCHES[model]:
            yield Asked(plan, microbatches, options)
    yield _alpa(FOUND[model])


def _grid(model: str, devices: int) -> list[Parallel]:
    return [one for one in grid(devices, "even") if _count(one) in MICROBATCHES[model]]


def _count(one: Parallel) -> int:
    """Micro-batches of a step."""
    return BATCH // one.data // one.microbatch_size


def _manual(sizes: Sizes, one: Parallel) -> Asked:
    """A configuration of the grid as a plan: Megatron's layouts on a mesh of data by tensor parallelism."""
    mesh = tuple(n for n in (one.data, one.tensor) if n > 1) or (1,)
    options = Options(mesh=mesh, strategy="megatron" if one.tensor > 1 else "data", max_stages=one.pipeline)
    layers = (sizes.layers // one.pipeline,) * one.pipeline
    return Asked("manual", _count(one), options, layers, (one.data * one.tensor,) * one.pipeline)


def _alpa(row: dict[str, str]) -> Asked:
    """A plan that Alpa found. The sharding inside its meshes is chosen by the planner here, as it was by Alpa's."""
    layers = tuple(map(int, row["layers_per_stage"].split()))
    meshes = [tuple(map(int, mesh.split("x"))) for mesh in row["mesh_per_stage"].split()]
    devices = tuple(a * b for a, b in meshes)
    one_mesh = tuple(n for n in meshes[0] if n > 1) or (1,)  # of one axis, they are what the devices say
    options = Options(mesh=one_mesh if len(set(meshes)) == 1 else None, max_stages=len(layers))
    return Asked("alpa", int(row["microbatches"]), options, layers, devices)


def _cut(staged: StagedStep, sizes: Sizes, asked: Asked) -> list[tuple[int, int]] | None:
    """Units and devices of each stage: where the planner can cut nearest to the ends of these layers."""
    if asked.layers is None:
        return None
    done = list(itertools.accumulate((unit.flops for unit in staged.units), initial=0.0))
    head = 2 * BATCH * sizes.sequence * sizes.hidden * sizes.vocab
    layer = (done[-1] - head) / sizes.layers
    ends = list(itertools.accumulate(asked.layers))[:-1]
    stops = [min(range(len(done)), key=lambda k, at=end * layer: abs(done[k] - at)) for end in ends]
    stops.append(len(staged.units))
    return [(b - a, n) for a, b, n in zip([0, *stops], stops, asked.devices, strict=False)]


def _line(row: dict[str, Any]) -> str:
    head = f"{row['plan']:<9}{row['microbatches']:>14}"
    taken = f"{row['plan_s']:>8.1f}{row['plan_cpu_s']:>7.1f}"
    if "refused" in row:
        return f"{head}{'':>25}{taken}  {shape(row, 90)}"
    return f"{head}{row['step_s']:>9.2f}{row['pflops']:>9.3f}{row['peak_gib']:>7.2f}{taken}  {shape(row)}"


def best(rows: Sequence[dict[str, Any]], model: str, plan: str) -> dict[str, Any] | None:
    """The fastest row of a plan; None if none fits."""
    found = [row for row in rows if (row["model"], row["plan"]) == (model, plan) and "step_s" in row]
    return min(found, key=lambda row: row["step_s"], default=None)


def _verdict(rows: Sequence[dict[str, Any]]) -> int:
    """Print the figure in numbers; 1 if something is predicted faster than `auto`."""
    models = [model for model in MICROBATCHES if any(row["model"] == model for row in rows)]
    print("\nPFLOP/s, predicted (what Alpa measured)")
    print(f"{'model':<10}{'devices':>8}" + "".join(f"{plan:>17}" for plan in PLANS))
    slower = []
    for model in models:
        found = {plan: best(rows, model, plan) for plan in PLANS}
        words = []
        for plan in PLANS:
            row = found[plan]
            asked = any((each["model"], each["plan"]) == (model, plan) for each in rows)
            ours = f"{row['pflops']:.3f}" if row else "no fit" if asked else "not planned"
            column = CURVES.get(plan)
            words.append(f"{ours} ({float(FIGURE[model][f'{column}_pflops']):.3f})" if column else ours)
        print(f"{model:<10}{FIGURE[model]['devices']:>8}" + "".join(f"{word:>17}" for word in words))
        auto_s = found["auto"]["step_s"] if found["auto"] else float("inf")
        slower += [f"{model}: {plan}" for plan, row in found.items() if row and row["step_s"] < auto_s]
    for which in slower:
        print(f"{which} IS PREDICTED FASTER THAN AUTO")
    return int(bool(slower))


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the four curves, predicted and as Alpa measured them."""
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 4), layout="constrained")
        figure.suptitle("GPT, one model per number of V100s: Alpa's figure 7")
        ours, theirs = figure.subplots(1, 2, sharey=True)
        for axes, title in ((ours, "predicted by autopar, planned anew"), (theirs, "measured by Alpa, OSDI 2022")):
            axes.set_title(title, fontsize=9, loc="left")
        for colour, (curve, column) in zip(COLOURS, CURVES.items(), strict=False):
            found = [row for model in MICROBATCHES if (row := best(rows, model, curve)) is not None]
            _curve(ours, [(row["devices"], row["pflops"]) for row in found], "o-", colour, curve)
            measured = [(int(row["devices"]), float(row[f"{column}_pflops"])) for row in FIGURE.values()]
            _curve(theirs, measured, "o-", colour, curve)
        alpa = [row for model in MICROBATCHES if (row := best(rows, model, "alpa")) is not None]
        _curve(ours, [(row["devices"], row["pflops"]) for row in alpa], "x", "black", "Alpa's plans")
        ours.set(ylabel="TFLOP/s per device", ylim=(0, None))
        ours.legend(frameon=False, loc="lower left")
        sizes = [(int(row["devices"]), model.removeprefix("gpt-").upper()) for model, row in FIGURE.items()]
        for axes in (ours, theirs):
            axes.set(xscale="log", xlabel="devices, and the model planned for them")
            axes.set_xticks([n for n, _ in sizes], [f"{n}\n{name}" for n, name in sizes], minor=False)
            axes.minorticks_off()
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=100)


def _curve(axes: Axes, points: Sequence[tuple[int, float]], style: str, colour: str, label: str) -> None:
    """PFLOP/s of so many devices, drawn per device."""
    rates = [1e3 * rate / n for n, rate in points]
    axes.plot([n for n, _ in points], rates, style, color=colour, label=label)


if __name__ == "__main__":
    sys.exit(main())
