"""An MLP-Mixer that classifies images, in Flax Linen, parallelised: `python examples/frameworks/mixer_linen.py`.

The style of Flax's ImageNet example: a `TrainState` of one's own, which also holds running statistics and the key that
dropout draws from.
"""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from flax.training import train_state

import autopar

BATCH, SIZE, PATCH, HIDDEN, LAYERS, CLASSES = 16, 32, 8, 64, 2, 16


class State(train_state.TrainState):
    batch_stats: Any
    dropout_key: jax.Array


class MLP(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        # No bias at the end: across tokens it would shift all channels of one alike, which no layer norm sees.
        return nn.Dense(x.shape[-1], use_bias=False)(nn.gelu(nn.Dense(self.width)(x)))


class Mixer(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(HIDDEN, (PATCH, PATCH), (PATCH, PATCH), use_bias=False, name="patches")(images)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = x.reshape(x.shape[0], -1, HIDDEN)
        for _ in range(LAYERS):
            x = x + MLP(2 * HIDDEN)(nn.LayerNorm()(x).swapaxes(1, 2)).swapaxes(1, 2)
            x = x + nn.Dropout(0.1, deterministic=not train)(MLP(4 * HIDDEN)(nn.LayerNorm()(x)))
        return nn.Dense(CLASSES)(nn.LayerNorm()(x).mean(axis=1))


def step(state, batch):
    def loss_fn(params):
        logits, changed = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            batch["image"],
            train=True,
            rngs={"dropout": jax.random.fold_in(state.dropout_key, state.step)},
            mutable=["batch_stats"],
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return loss, (logits, changed["batch_stats"])

    (loss, (logits, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    accuracy = (logits.argmax(-1) == batch["label"]).mean()
    return state.apply_gradients(grads=grads, batch_stats=stats), {"loss": loss, "accuracy": accuracy}


def make(seed=0):
    rng = np.random.default_rng(seed)
    batch = {"image": rng.standard_normal((BATCH, SIZE, SIZE, 3)), "label": rng.integers(0, CLASSES, BATCH)}
    batch = {"image": batch["image"].astype(np.float32), "label": batch["label"].astype(np.int32)}
    model = Mixer()
    variables = model.init(jax.random.key(seed), batch["image"], train=False)
    tx = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 5, 100))
    key = jax.random.key(seed + 1)
    return State.create(apply_fn=model.apply, tx=tx, dropout_key=key, **variables), step, batch


def main():
    state, step, batch = make()
    step = autopar.parallelize(step, cluster="cpu:8")
    for i in range(20):
        state, metrics = step(state, batch)
        print(i, float(metrics["loss"]), float(metrics["accuracy"]))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main()
