"""Training a model of the zoo under a plan."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from autopar.api import Executable
from autopar.models import Recipe
from autopar.models.text import VOCAB, load_text

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


def train(step: Executable, state: Any, data: Data, steps: int, show: Show) -> list[float]:
    """Run steps and return their losses; the first is not timed, as it moves the state to its place."""
    losses: list[float] = []
    begin = time.perf_counter()
    for i in range(steps):
        state, metrics = step(state, data.batch(i))
        losses.append(float(jax.device_get(metrics["loss"])))
        if i == 0:
            begin = time.perf_counter()
        spent_s = time.perf_counter() - begin
        show(i + 1, losses[-1], i * data.per_step / spent_s if i else 0.0)
    return losses
