"""A small GPT in Equinox, parallelised: `python examples/frameworks/gpt_equinox.py`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import autopar

BATCH, SEQUENCE, VOCAB, HIDDEN, HEADS, LAYERS = 16, 32, 256, 64, 8, 2
tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


class Layer(eqx.Module):
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.Sequential

    def __init__(self, key):
        k1, k2, k3 = jax.random.split(key, 3)
        self.norm = eqx.nn.LayerNorm(HIDDEN)
        self.attention = eqx.nn.MultiheadAttention(HEADS, HIDDEN, key=k1)
        up, down = eqx.nn.Linear(HIDDEN, 4 * HIDDEN, key=k2), eqx.nn.Linear(4 * HIDDEN, HIDDEN, key=k3)
        self.mlp = eqx.nn.Sequential([eqx.nn.LayerNorm(HIDDEN), up, eqx.nn.Lambda(jax.nn.gelu), down])

    def __call__(self, x):
        y = jax.vmap(self.norm)(x)
        x = x + self.attention(y, y, y, mask=jnp.tril(jnp.ones((SEQUENCE, SEQUENCE), bool)))
        return x + jax.vmap(self.mlp)(x)


class GPT(eqx.Module):
    tokens: jax.Array
    positions: jax.Array
    layers: list[Layer]
    norm: eqx.nn.LayerNorm

    def __init__(self, key):
        k1, k2, *keys = jax.random.split(key, 2 + LAYERS)
        self.tokens = 0.02 * jax.random.normal(k1, (VOCAB, HIDDEN))
        self.positions = 0.02 * jax.random.normal(k2, (SEQUENCE, HIDDEN))
        self.layers, self.norm = [Layer(k) for k in keys], eqx.nn.LayerNorm(HIDDEN)

    def __call__(self, tokens):
        x = self.tokens[tokens] + self.positions
        for layer in self.layers:
            x = layer(x)
        return jax.vmap(self.norm)(x) @ self.tokens.T


def make(seed=0):
    params, static = eqx.partition(GPT(jax.random.key(seed)), eqx.is_inexact_array)

    def loss_fn(params, batch):
        logits = jax.vmap(eqx.combine(params, static))(batch["tokens"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]).mean()

    def step(state, batch):
        params, opt_state = state
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (eqx.apply_updates(params, updates), opt_state), {"loss": loss}

    text = np.random.default_rng(seed).integers(0, VOCAB, (BATCH, SEQUENCE + 1), dtype=np.int32)
    return (params, tx.init(params)), step, {"tokens": text[:, :-1], "targets": text[:, 1:]}


def main():
    state, step, batch = make()
    step = autopar.parallelize(step, cluster="cpu:8")
    for i in range(20):
        state, metrics = step(state, batch)
        print(i, float(metrics["loss"]))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main()
