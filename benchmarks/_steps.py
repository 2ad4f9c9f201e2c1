"""The training steps that are compared with plain jax, at sizes that compile in seconds.

Every dim that one may want to split divides by 8.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from autopar.models import get

EXAMPLES = Path(__file__).parents[1] / "examples" / "frameworks"


@dataclass(frozen=True)
class TrainingStep:
    """A step and what to call it with.

    Attributes:
        step: (state, batch) -> (state, metrics).
        state: the first state.
        batch: number of the step -> its batch.
    """

    step: Callable[[Any, Any], tuple[Any, Any]]
    state: Any
    batch: Callable[[int], Any]


def _model(name: str, **sizes: Any) -> Callable[[], TrainingStep]:
    def build() -> TrainingStep:
        recipe = get(name, dtype="float64", **sizes)
        return TrainingStep(recipe.step, recipe.init(jax.random.key(0)), recipe.batch)

    return build


def _flavour(name: str, **sizes: int) -> Callable[[], TrainingStep]:
    """A step of `examples/`, with its sizes (constants of the module) replaced."""

    def build() -> TrainingStep:
        spec = importlib.util.spec_from_file_location(f"gpt_{name}", EXAMPLES / f"gpt_{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for constant, value in sizes.items():
            setattr(module, constant, value)
        state, step, first = module.make()
        vocab = sizes["VOCAB"]
        return TrainingStep(step, state, lambda i: {k: np.asarray((v + i) % vocab, v.dtype) for k, v in first.items()})

    return build


def _overflowing() -> TrainingStep:
    """A first scale that no gradient survives, so that the first step is skipped and the others are not."""
    training = _model("mlp", loss_scaling=True)()
    state = training.state
    scale = state.loss_scale._replace(scale=np.float64(np.inf))
    return dataclasses.replace(training, state=state._replace(loss_scale=scale))


_GPT = {"hidden": 32, "layers": 1, "heads": 8, "sequence": 16, "vocab": 64}
_DEEP = _GPT | {"layers": 4}
_SPEECH = {"hidden": 32, "frames": 8, "features": 8, "channels": 8, "classes": 8, "kernel": 3}
_PAIRS = {"hidden": 32, "layers": 2, "decoder_layers": 2, "heads": 8, "source": 16, "target": 8, "vocab": 64}
_FLAVOUR = {"BATCH": 16, "SEQUENCE": 16, "VOCAB": 64, "HIDDEN": 32, "LAYERS": 1}

STEPS: dict[str, Callable[[], TrainingStep]] = {
    "mlp": _model("mlp"),
    "gpt": _model("gpt", **_GPT),
    "bert": _model("bert", **_GPT),
    "moe": _model("moe", **(_GPT | {"layers": 2}), group=16, experts=8),  # every other layer is routed
    "convnet": _model("convnet", blocks=(1,), image=8, filters=8, classes=8),
    "conformer": _model("conformer", **_SPEECH, layers=1, norm="batch"),
    "gpt-scan": _model("gpt-scan", **(_GPT | {"layers": 2})),
    "gpt-plain": _flavour("plain", **_FLAVOUR),
    "gpt-linen": _flavour("linen", **_FLAVOUR),
    "gpt-nnx": _flavour("nnx", **_FLAVOUR),
    "gpt-equinox": _flavour("equinox", **_FLAVOUR),
    "mlp-adafactor": _model("mlp", optimizer="adafactor"),
    "gpt-adafactor": _model("gpt", **_GPT, optimizer="adafactor"),
    # Four layers and more, for pipelines.
    "gpt-4": _model("gpt", **_DEEP, dropout=0.0),
    "gpt-dropout": _model("gpt", **_DEEP),
    "gpt-scan-4": _model("gpt-scan", **_DEEP, dropout=0.0),
    "gpt-scan-dropout": _model("gpt-scan", **_DEEP),
    "moe-4": _model("moe", **_DEEP, group=16, experts=8),
    "conformer-layer": _model("conformer", **_SPEECH, layers=4, norm="layer"),
    "seq2seq": _model("seq2seq", **_PAIRS),
    "seq2seq-untied": _model("seq2seq", **_PAIRS, tied=False),
    "seq2seq-frozen": _model("seq2seq", **_PAIRS, tied=False, frozen="encoder"),
    "mlp-lossscale": _overflowing,
}  # fmt: skip


def run(step: Callable[[Any, Any], tuple[Any, Any]], training: TrainingStep, steps: int = 3) -> Any:
    """The state after some steps and the metrics of each, as numpy arrays."""
    # A copy, for the step may reuse the buffers it is given.
    state, metrics = jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, training.state), []
    for i in range(steps):
        state, found = step(state, training.batch(i))
        metrics.append(found)
    return jax.tree.map(_numbers, (state, metrics))


def reference(training: TrainingStep, steps: int = 3) -> Any:
    """What plain `jax.jit` computes on one device."""
    return run(jax.jit(training.step), training, steps)


def relative_errors(found: Any, expected: Any) -> dict[str, float]:
    """Per leaf, max|a - b| / max|b|. Integers, booleans and random keys must be equal, or the error is infinite."""
    if (a := jax.tree.structure(found)) != (b := jax.tree.structure(expected)):
        raise ValueError(f"the results differ in structure: {a} and {b}")
    leaves = zip(jax.tree.leaves(found), jax.tree_util.tree_leaves_with_path(expected), strict=True)
    return {jax.tree_util.keystr(path): _error(a, b) for a, (path, b) in leaves}


def _error(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return np.inf
    if not np.issubdtype(b.dtype, np.floating):
        return 0.0 if np.array_equal(a, b) else np.inf
    if not b.size:
        return 0.0
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return np.inf
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def _numbers(x: Any) -> np.ndarray:
    keyed = isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if keyed else x)
