"""A small GPT in plain JAX, parallelised: `python examples/frameworks/gpt_plain.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import autopar

BATCH, SEQUENCE, VOCAB, HIDDEN, HEADS, LAYERS = 16, 32, 256, 64, 8, 2
tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def init(key):
    keys = iter(jax.random.split(key, 2 + 6 * LAYERS))
    normal = lambda *shape: 0.02 * jax.random.normal(next(keys), shape)  # noqa: E731
    norm = lambda: {"scale": jnp.ones(HIDDEN), "bias": jnp.zeros(HIDDEN)}  # noqa: E731
    layer = lambda: {  # noqa: E731
        "norm1": norm(),
        "query": normal(HIDDEN, HEADS, HIDDEN // HEADS),
        "key": normal(HIDDEN, HEADS, HIDDEN // HEADS),
        "value": normal(HIDDEN, HEADS, HIDDEN // HEADS),
        "out": normal(HEADS, HIDDEN // HEADS, HIDDEN),
        "norm2": norm(),
        "up": {"kernel": normal(HIDDEN, 4 * HIDDEN), "bias": jnp.zeros(4 * HIDDEN)},
        "down": {"kernel": normal(4 * HIDDEN, HIDDEN), "bias": jnp.zeros(HIDDEN)},
    }
    layers = [layer() for _ in range(LAYERS)]
    return {"tokens": normal(VOCAB, HIDDEN), "positions": normal(SEQUENCE, HIDDEN), "layers": layers, "norm": norm()}


def layer_norm(p, x):
    return jax.nn.standardize(x, epsilon=1e-5) * p["scale"] + p["bias"]


def attention(p, x):
    q, k, v = (jnp.einsum("bsd,dhk->bshk", x, p[name]) for name in ("query", "key", "value"))
    scores = jnp.einsum("bshk,bthk->bhst", q, k) / (HIDDEN // HEADS) ** 0.5
    causal = jnp.tril(jnp.ones((SEQUENCE, SEQUENCE), bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
    return jnp.einsum("bshk,hkd->bsd", jnp.einsum("bhst,bthk->bshk", weights, v), p["out"])


def gpt(p, tokens):
    x = p["tokens"][tokens] + p["positions"]
    for layer in p["layers"]:
        x = x + attention(layer, layer_norm(layer["norm1"], x))
        y = jax.nn.gelu(layer_norm(layer["norm2"], x) @ layer["up"]["kernel"] + layer["up"]["bias"])
        x = x + y @ layer["down"]["kernel"] + layer["down"]["bias"]
    return layer_norm(p["norm"], x) @ p["tokens"].T


def step(state, batch):
    def loss_fn(params):
        logits = gpt(params, batch["tokens"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state["params"])
    updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}, {"loss": loss}


def make(seed=0):
    params = init(jax.random.key(seed))
    text = np.random.default_rng(seed).integers(0, VOCAB, (BATCH, SEQUENCE + 1), dtype=np.int32)
    return {"params": params, "opt_state": tx.init(params)}, step, {"tokens": text[:, :-1], "targets": text[:, 1:]}


def main():
    state, step, batch = make()
    step = autopar.parallelize(step, cluster="cpu:8")
    for i in range(20):
        state, metrics = step(state, batch)
        print(i, float(metrics["loss"]))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main()
