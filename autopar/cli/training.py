"""The loop: steps under a plan, their metrics as they come, evaluation between them, throughput at the end."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from autopar.api import Executable, StagedExecutable
from autopar.api.handles import Handle
from autopar.mesh import Cluster
from autopar.models import Recipe
from autopar.models.data.choose import Data
from autopar.units import seconds_text

Metrics = dict[str, float]
BATCHES_PER_SEED = 2**20
"""Batches are numbered from here on by the seed of the run, so that no two runs see the same ones."""


@dataclass(frozen=True)
class Asked:
    """How to train.

    Attributes:
      steps: how many.
      seed: of the batches.
      eval_every: evaluate after every so many steps, and after the last; 0 is never.
      eval_batches: batches of one evaluation.
    """

    steps: int
    seed: int = 0
    eval_every: int = 0
    eval_batches: int = 4


@dataclass
class Trained:
    """What training left.

    Attributes:
      losses: of each step.
      step_s: seconds between the losses of one step and the next, without the first, which moves the state to its
        place, and without evaluations.
      evaluations: step -> metrics on batches that are never trained on.
    """

    losses: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    evaluations: dict[int, Metrics] = field(default_factory=dict)


def train(
    step: Executable | StagedExecutable,
    state: Any,
    recipe: Recipe,
    data: Data,
    asked: Asked,
    show: Callable[[int, float, float], None],
    record: Callable[[dict[str, Any]], None],
) -> Trained:
    """Run steps, one ahead of the metrics that are read.

    Args:
      step: what to run.
      state: the first state.
      recipe: what is trained.
      data: its batches.
      asked: how many, and what between.
      show: called with (steps done, loss, units per second).
      record: called with a row for each step and each evaluation.

    Returns:
      Losses, times, evaluations.
    """
    meter = _Meter(recipe, _peak_flops_per_s(step, recipe), show, record)
    evaluate = _evaluation(step, recipe, data, asked.eval_batches)
    unread: tuple[tuple[int, Any], ...] = ()
    for number in range(1, asked.steps + 1):
        batch = data.train(asked.seed * BATCHES_PER_SEED + number - 1)
        last = number == asked.steps
        state, metrics = (_measured(step) if last else step)(state, batch)
        for found in unread:
            meter.read(*found)
        unread = ((number, metrics),)
        due = asked.eval_every and (last or not number % asked.eval_every)
        if due or last or number == 1:
            meter.read(number, metrics)
            unread = ()
        if due:
            meter.evaluated(number, evaluate(state))
    return meter.trained


class _Meter:
    """Reads the metrics of steps as they come, and the time between them."""

    def __init__(
        self,
        recipe: Recipe,
        peak_flops_per_s: float,
        show: Callable[[int, float, float], None],
        record: Callable[[dict[str, Any]], None],
    ) -> None:
        self.trained = Trained()
        self._recipe, self._flops, self._peak = recipe, recipe.flops(), peak_flops_per_s
        self._show, self._record = show, record
        self._since_s: float | None = None

    def read(self, number: int, metrics: Mapping[str, Any]) -> None:
        """Wait for a step's metrics."""
        row: dict[str, Any] = {"step": number, **_numbers(metrics)}
        now_s, since_s = time.perf_counter(), self._since_s
        self._since_s, trained, recipe = now_s, self.trained, self._recipe
        trained.losses.append(row["loss"])
        if since_s is not None:
            spent_s = now_s - since_s
            trained.step_s.append(spent_s)
            row |= {"step_s": spent_s, f"{recipe.unit}_per_s": recipe.units / spent_s}
            row["mfu"] = self._flops / spent_s / self._peak
        self._show(number, row["loss"], recipe.units / statistics.median(trained.step_s) if trained.step_s else 0.0)
        self._record(row)

    def evaluated(self, number: int, metrics: Metrics) -> None:
        """Note an evaluation; its time is no step's."""
        self.trained.evaluations[number] = metrics
        self._record({"step": number, "evaluation": metrics})
        self._since_s = time.perf_counter()


def _measured(step: Executable | StagedExecutable) -> Callable[..., Any]:
    """The last step of a pipeline is measured, for its timeline."""
    return step.timed if isinstance(step, StagedExecutable) else step


def _evaluation(
    step: Executable | StagedExecutable, recipe: Recipe, data: Data, batches: int
) -> Callable[[Any], Metrics]:
    """Metrics of a state, the mean over some batches.

    A state that lies on one mesh is evaluated where it lies; one that lies on stages is fetched to one device.
    """
    jitted = jax.jit(recipe.evaluate)

    def evaluate(state: Any) -> Metrics:
        if isinstance(step, StagedExecutable):
            state = jax.tree.map(lambda x: x.fetch() if isinstance(x, Handle) else x, state)
        found = [jax.device_get(jitted(state, data.evaluation(i))) for i in range(batches)]
        means = [_numbers(metrics) for metrics in found]
        return {name: statistics.fmean(x[name] for x in means) for name in means[0]}

    return evaluate


def _numbers(metrics: Mapping[str, Any]) -> Metrics:
    """Metrics as numbers; of an array its mean."""
    return {name: float(np.mean(np.asarray(x, dtype=np.float64))) for name, x in metrics.items()}


def _peak_flops_per_s(step: Executable | StagedExecutable, recipe: Recipe) -> float:
    """Peak of all devices of the plan in the dtype that the model computes in."""
    islands = Cluster.from_dict(step.plan.cluster).islands
    return sum(island.devices * island.device.peak(recipe.config.dtype) for island in islands)


def summary(step: Executable | StagedExecutable, recipe: Recipe, trained: Trained) -> Iterator[str]:
    """What came of it, line by line."""
    losses, steps = trained.losses, len(trained.losses)
    yield f"loss {losses[0]:.4f} at step 1, {losses[-1]:.4f} at step {steps}"
    for number, metrics in list(trained.evaluations.items())[-1:]:
        words = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        yield f"on batches never trained on, after step {number}: {words}"
    if trained.step_s:
        yield _throughput(step, recipe, statistics.median(trained.step_s))


def _throughput(step: Executable | StagedExecutable, recipe: Recipe, step_s: float) -> str:
    peak = _peak_flops_per_s(step, recipe)
    speed = f"{recipe.units / step_s:,.4g} {recipe.unit}/s, {seconds_text(step_s)} per step (median)"
    cluster = Cluster.from_dict(step.plan.cluster).name
    share = recipe.flops() / step_s / peak
    return f"{speed}; MFU {share:.2%} of {cluster}'s {peak / 1e12:,.3g} TFLOP/s in {recipe.config.dtype}"


def bubbles(step: StagedExecutable) -> str:
    """A line: the share of the last step for which workers waited, and of the predicted one."""
    spans, plan = step.timeline, step.plan
    whole_s = max(span.end_s for span in spans)
    workers = len({span.worker for span in spans})
    busy_s = sum(span.end_s - span.start_s for span in spans)
    measured = f"{1 - busy_s / (workers * whole_s):.0%} of {seconds_text(whole_s)}"
    predicted = f"{plan.idle_s / plan.step_s:.0%} of {seconds_text(plan.step_s)}"
    return f"bubble {measured} measured in the last step, {predicted} predicted"
