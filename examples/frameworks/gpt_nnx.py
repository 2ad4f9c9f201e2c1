"""A small GPT in Flax NNX, parallelised: `python examples/frameworks/gpt_nnx.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import autopar

BATCH, SEQUENCE, VOCAB, HIDDEN, HEADS, LAYERS = 16, 32, 256, 64, 8, 2
normal = nnx.initializers.normal(0.02)
DTYPE = float  # float32, or float64 where JAX is told to use it


class Layer(nnx.Module):
    def __init__(self, rngs):
        options, heads = {"kernel_init": normal, "param_dtype": DTYPE, "rngs": rngs}, (HEADS, HIDDEN // HEADS)
        self.norm1 = nnx.LayerNorm(HIDDEN, epsilon=1e-5, param_dtype=DTYPE, rngs=rngs)
        self.qkv = nnx.List([nnx.LinearGeneral(HIDDEN, heads, use_bias=False, **options) for _ in range(3)])
        self.out = nnx.LinearGeneral(heads, HIDDEN, axis=(-2, -1), use_bias=False, **options)
        self.norm2 = nnx.LayerNorm(HIDDEN, epsilon=1e-5, param_dtype=DTYPE, rngs=rngs)
        self.up = nnx.Linear(HIDDEN, 4 * HIDDEN, **options)
        self.down = nnx.Linear(4 * HIDDEN, HIDDEN, **options)

    def __call__(self, x):
        y = self.norm1(x)
        q, k, v = (project(y) for project in self.qkv)
        scores = jnp.einsum("bshk,bthk->bhst", q, k) / (HIDDEN // HEADS) ** 0.5
        weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((SEQUENCE, SEQUENCE), bool)), scores, -1e9))
        x = x + self.out(jnp.einsum("bhst,bthk->bshk", weights, v))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class GPT(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCAB, HIDDEN, embedding_init=normal, param_dtype=DTYPE, rngs=rngs)
        self.positions = nnx.Param(normal(rngs.params(), (SEQUENCE, HIDDEN), DTYPE))
        self.layers = nnx.List([Layer(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(HIDDEN, epsilon=1e-5, param_dtype=DTYPE, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens) + self.positions[...]
        for layer in self.layers:
            x = layer(x)
        return self.embed.attend(self.norm(x))


def loss_fn(model, batch):
    logits = model(batch["tokens"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]).mean()


def make(seed=0):
    model = GPT(nnx.Rngs(seed))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    structure, state = nnx.split((model, nnx.Optimizer(model, tx, wrt=nnx.Param)))

    def step(state, batch):
        model, optimizer = nnx.merge(structure, state)
        loss, grads = nnx.value_and_grad(loss_fn)(model, batch)
        optimizer.update(model, grads)
        return nnx.state((model, optimizer)), {"loss": loss}

    text = np.random.default_rng(seed).integers(0, VOCAB, (BATCH, SEQUENCE + 1), dtype=np.int32)
    return state, step, {"tokens": text[:, :-1], "targets": text[:, 1:]}


def main():
    state, step, batch = make()
    step = autopar.parallelize(step, cluster="cpu:8")
    for i in range(20):
        state, metrics = step(state, batch)
        print(i, float(metrics["loss"]))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main()
