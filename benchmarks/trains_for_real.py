"""Training for real on eight virtual devices: the loss falls to a stated value on data that is never trained on.

    python benchmarks/trains_for_real.py                 # all, some minutes each on two cores
    python benchmarks/trains_for_real.py moe

Each model is planned for 8 devices and trained by the loop of `autopar train`; after the last step it is evaluated on
batches that it has not seen. A run passes if the metric reaches what is stated and the compiled program is the planned
one.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
from _common import RESULTS, stamp, virtual_devices, write_result

from autopar import Options, compile
from autopar.cli.training import Asked, train
from autopar.models import get
from autopar.models.data.choose import data_for
from autopar.report.words import sentence

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What is trained, and what must come of it.

    Attributes:
        steps: how many.
        metric: of the evaluation.
        stated: what it must reach: at most so much, or at least if `higher`.
        higher: whether more is better.
        preset: of the model.
        sizes: what is changed of it.
        mesh: of the devices; None tries every shape of at most two axes.
    """

    steps: int
    metric: str
    stated: float
    higher: bool = False
    preset: str = "toy"
    sizes: dict[str, Any] = field(default_factory=dict)
    mesh: tuple[int, ...] | None = None

    def reached(self, value: float) -> bool:
        """Whether a value is as good as stated."""
        return value >= self.stated if self.higher else value <= self.stated


CASES = {
    "moe": Case(
        300,
        "cross_entropy",
        2.4,
        sizes={"batch_size": 32, "sequence": 64, "group": 64, "learning_rate": 3e-3, "schedule": "cosine",
               "warmup_steps": 20, "total_steps": 300},
    ),
    "gpt": Case(
        300, "loss", 2.45, sizes={"batch_size": 32, "sequence": 64, "learning_rate": 3e-3, "schedule": "cosine",
                                 "warmup_steps": 20, "total_steps": 300},
    ),
    "convnet": Case(
        300, "accuracy", 0.95, higher=True,
        sizes={"batch_size": 64, "learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 20, "total_steps": 300},
    ),
    # All of Conformer-S, on utterances of up to a second in an alphabet of 15 sounds: 470 seconds of CPU altogether.
    "conformer": Case(
        160, "loss", 0.4, preset="s", mesh=(8,),
        sizes={"frames": 24, "classes": 16, "batch_size": 16, "dtype": "float32", "learning_rate": 1e-3,
               "schedule": "cosine", "warmup_steps": 20, "total_steps": 160},
    ),
}  # fmt: skip


def main() -> int:
    """Train what the command line names; 1 if something is not reached."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(CASES))
    args = parser.parse_args()
    if unknown := [name for name in args.models if name not in CASES]:
        parser.error(f"unknown {', '.join(unknown)}; there are: {', '.join(CASES)}")
    virtual_devices(8)
    rows = []
    for name in args.models or CASES:
        rows.append(_trained(name, CASES[name]))
        print(_line(rows[-1]), flush=True)
        if not args.models:
            write_result(RESULTS / "trains_for_real.json", {"stamp": stamp(), "rows": rows})
    return 0 if all(row["reached"] and row["runs_as_planned"] for row in rows) else 1


def _trained(name: str, case: Case) -> Row:
    recipe = get(name, case.preset, **case.sizes)
    data, state = data_for(recipe), recipe.init(jax.random.key(0))
    begin = time.perf_counter()
    step = compile(recipe.step, state, data.train(0), cluster="cpu:8", donate_argnums=0,
                   options=Options(mesh=case.mesh, max_axes=2, time_limit_s=60))  # fmt: skip
    plan_s = time.perf_counter() - begin
    print(f"{name}: {data.about}; {sentence(step.plan)}", flush=True)
    shown = _every(case.steps // 5)
    done = train(step, state, recipe, data, Asked(case.steps, 0, case.steps, 8), shown, lambda row: None)
    (metrics,) = done.evaluations.values()
    return {
        "model": name,
        "data": data.about,
        "steps": case.steps,
        "first_loss": done.losses[0],
        "last_loss": sum(done.losses[-10:]) / 10,
        "metric": case.metric,
        "stated": case.stated,
        "found": metrics[case.metric],
        "reached": case.reached(metrics[case.metric]),
        "plan_s": round(plan_s, 1),
        "train_s": round(time.perf_counter() - begin - plan_s, 1),
        "runs_as_planned": step.audit.agrees,
        "words": sentence(step.plan),
    }


def _every(steps: int) -> Callable[[int, float, float], None]:
    def show(number: int, loss: float, rate: float) -> None:
        if number % steps == 0:
            print(f"  step {number}: loss {loss:.3f}, {rate:,.0f} per second", flush=True)

    return show


def _line(row: Row) -> str:
    verdict = "reached" if row["reached"] else "NOT REACHED"
    planned = "as planned" if row["runs_as_planned"] else "NOT AS PLANNED"
    return (
        f"{row['model']}: loss {row['first_loss']:.3f} -> {row['last_loss']:.3f} in {row['steps']} steps, "
        f"{row['train_s']:.0f} s after {row['plan_s']:.0f} s of planning; {row['metric']} {row['found']:.3f} on what "
        f"it was not trained on, stated {row['stated']:g}: {verdict}; {planned}"
    )


if __name__ == "__main__":
    sys.exit(main())
