"""What the benchmarks of both levels share: a model of the zoo as its paper trains it, planned in stages, as a row."""

import time
from collections.abc import Sequence
from typing import Any

from autopar import Cluster, InfeasibleError, OptionError, Options
from autopar.lower import StagedStep
from autopar.models import get
from autopar.planner import plan_stages
from autopar.trace import Traced, trace

Row = dict[str, Any]

BATCH = 1024  # sequences, of 1,024 tokens
AUTO = Options(max_stages=16)
INTRA_OP = Options(stages=1)


def inter_op(devices: int) -> Options:
    """Stages of one device each."""
    return Options(max_stages=devices, mesh=(1,))


def traced_step(family: str, preset: str, optimizer: str = "adamw") -> tuple[Traced, float]:
    """The step of a model in float16 (a V100 has no other fast type), and the seconds that tracing took."""
    begin = time.perf_counter()
    recipe = get(family, preset, batch_size=BATCH, dtype="float16", optimizer=optimizer)
    return trace(recipe.step, recipe.abstract(), donate_argnums=0), time.perf_counter() - begin


def planned(
    staged: StagedStep,
    cluster: str,
    options: Options,
    *,
    cut: Sequence[tuple[int, int]] | None = None,
    verbose: bool = False,
) -> Row:
    """Plan a step in stages: what came of it, and where the time went.

    Args:
        staged: the step in its micro-batches.
        cluster: its name.
        options: of the plan.
        cut: units and devices of each stage, if they are not to be searched for.
        verbose: print the search as it goes.

    Returns:
        Predicted seconds and memory, and the stages; or why it was refused. Seconds of planning, wall and CPU.
    """
    begin, cpu = time.perf_counter(), time.process_time()
    said: list[tuple[float, str]] = []

    def say(line: str) -> None:
        said.append((round(time.perf_counter() - begin, 1), line))
        if verbose:
            print(f"    {said[-1][0]:6.1f} s  {line}", flush=True)

    row: Row = {"microbatches": staged.microbatches}
    try:
        facts = plan_stages(staged, Cluster.parse(cluster), options, say, cut=cut)
    except (InfeasibleError, OptionError) as error:
        row |= {"refused": str(error)}
    else:
        row |= {
            "step_s": facts.step_s,
            "bound_s": facts.pipeline_bound_s,
            "peak_gib": facts.peak_bytes / 2**30,
            "schedule": facts.schedule,
            "stages": [
                {"units": list(s.units), "mesh": list(s.plan.mesh_shape), "remat": list(s.remat)} for s in facts.stages
            ],
        }
    taken = {"plan_s": round(time.perf_counter() - begin, 2), "plan_cpu_s": round(time.process_time() - cpu, 2)}
    return row | taken | {"progress": said}


def shape(row: Row, most: int = 10**6) -> str:
    """The stages of a row in words, runs of like ones once: units, mesh, and how many units compute again."""
    if "refused" in row:
        return str(row["refused"]).split(". ")[0][:most]
    words = [
        f"{s['units'][1] - s['units'][0]} on {'x'.join(map(str, s['mesh']))}{_again(s['remat'])}" for s in row["stages"]
    ]
    return f"{row['schedule']}: {', '.join(words)}"


def _again(remat: list[str]) -> str:
    """How many units compute again, in full (``r``) or attention only (``a``)."""
    counts = {letter: remat.count(word) for letter, word in (("r", "full"), ("a", "attention"))}
    return "".join(f" {count}{letter}" for letter, count in counts.items() if count)
