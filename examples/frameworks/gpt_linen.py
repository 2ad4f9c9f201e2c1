"""A small GPT in Flax Linen, parallelised: `python examples/frameworks/gpt_linen.py`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState

import autopar

BATCH, SEQUENCE, VOCAB, HIDDEN, HEADS, LAYERS = 16, 32, 256, 64, 8, 2
normal = nn.initializers.normal(0.02)
DTYPE = float  # float32, or float64 where JAX is told to use it


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(epsilon=1e-5, param_dtype=DTYPE)(x)
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        attention = nn.MultiHeadDotProductAttention(HEADS, use_bias=False, kernel_init=normal, param_dtype=DTYPE)
        x = x + attention(y, mask=mask)
        y = nn.LayerNorm(epsilon=1e-5, param_dtype=DTYPE)(x)
        y = nn.gelu(nn.Dense(4 * HIDDEN, kernel_init=normal, param_dtype=DTYPE)(y))
        return x + nn.Dense(HIDDEN, kernel_init=normal, param_dtype=DTYPE)(y)


class GPT(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(VOCAB, HIDDEN, embedding_init=normal, param_dtype=DTYPE)
        x = embed(tokens) + self.param("positions", normal, (SEQUENCE, HIDDEN), DTYPE)
        for _ in range(LAYERS):
            x = Layer()(x)
        return embed.attend(nn.LayerNorm(epsilon=1e-5, param_dtype=DTYPE)(x))


def step(state, batch):
    def loss_fn(params):
        logits = state.apply_fn({"params": params}, batch["tokens"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), {"loss": loss}


def make(seed=0):
    model = GPT()
    text = np.random.default_rng(seed).integers(0, VOCAB, (BATCH, SEQUENCE + 1), dtype=np.int32)
    batch = {"tokens": text[:, :-1], "targets": text[:, 1:]}
    params = model.init(jax.random.key(seed), batch["tokens"])["params"]
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx), step, batch


def main():
    state, step, batch = make()
    step = autopar.parallelize(step, cluster="cpu:8")
    for i in range(20):
        state, metrics = step(state, batch)
        print(i, float(metrics["loss"]))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main()
