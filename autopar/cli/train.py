"""Training a model of the zoo under a plan."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from autopar.api import Executable, StagedExecutable
from autopar.models import Recipe
from autopar.models.data.text import VOCAB, load_text
from autopar.units import seconds_text

Show = Callable[[int, float, float], None]


@dataclass(frozen=True)
class Data:
    """Batches to train on.

    Attributes:
      batch: seed -> batch.
      about: what they are, for people.
      unit: what is counted: ``tokens`` or ``examples``.
      per_step: how many of them one step takes.
    """

    batch: Callable[[int], Any]
    about: str
    unit: str
    per_step: int


def data_for(recipe: Recipe) -> Data:
    """Real text where the model predicts the next token, else the recipe's own batches."""
    spec, size = recipe.batch_spec, recipe.config.batch_size
    if not isinstance(spec, dict) or set(spec) != {"tokens", "targets"}:
        return Data(recipe.batch, "synthetic batches", "examples", size)
    sequence = spec["tokens"].shape[1]
    if getattr(recipe.config, "vocab", 0) < VOCAB:
        return Data(recipe.batch, f"random tokens (bytes need a vocabulary of {VOCAB})", "tokens", size * sequence)
    text = load_text()
    about = f"the standard library's sources, {len(text.train) / 1e6:.1f} MB of bytes"
    return Data(lambda seed: text.batch(seed, size, sequence), about, "tokens", size * sequence)


def train(step: Executable | StagedExecutable, state: Any, data: Data, steps: int, show: Show) -> list[float]:
    """Run steps and return their losses; the first is not timed, as it moves the state to its place.

    The last step of a pipeline is measured, for its timeline.
    """
    losses: list[float] = []
    begin = time.perf_counter()
    for i in range(steps):
        call = step.timed if isinstance(step, StagedExecutable) and i == steps - 1 else step
        state, metrics = call(state, data.batch(i))
        losses.append(float(np.asarray(metrics["loss"])))
        if i == 0:
            begin = time.perf_counter()
        spent_s = time.perf_counter() - begin
        show(i + 1, losses[-1], i * data.per_step / spent_s if i else 0.0)
    return losses


def bubbles(step: StagedExecutable) -> str:
    """A line: the share of the last step for which workers waited, and of the predicted one."""
    spans, plan = step.timeline, step.plan
    whole_s = max(span.end_s for span in spans)
    workers = len({span.worker for span in spans})
    busy_s = sum(span.end_s - span.start_s for span in spans)
    measured = f"{1 - busy_s / (workers * whole_s):.0%} of {seconds_text(whole_s)}"
    predicted = f"{plan.idle_s / plan.step_s:.0%} of {seconds_text(plan.step_s)}"
    return f"bubble {measured} measured in the last step, {predicted} predicted"
