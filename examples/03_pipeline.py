"""Layers on different devices: where to cut, who gets how many devices, and what the wait costs.

python examples/03_pipeline.py
"""

import jax
import jax.numpy as jnp

import autopar

LAYERS, WIDTH = 8, 64


def train_step(layers, x, y):
    def loss_fn(layers):
        h = x
        for w in layers:
            h = h + jnp.tanh(h @ w)
        return jnp.mean((h - y) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(layers)
    return jax.tree.map(lambda w, g: w - 0.1 * g, layers, grads), loss


def main():
    keys = jax.random.split(jax.random.key(0), LAYERS + 1)
    layers = [jax.random.normal(key, (WIDTH, WIDTH)) / WIDTH for key in keys[1:]]
    x = jax.random.normal(keys[0], (256, WIDTH))
    # Devices that are slow beside their links, so that it pays to split even this.
    cluster = autopar.Cluster.uniform(4, 1e8, 1e9, 1e-7, 1e9)
    options = autopar.Options(microbatches=16, stages=4)
    step = autopar.compile(train_step, layers, x, jnp.sin(x), cluster=cluster, options=options, donate_argnums=0)
    for stage in step.plan.stages:
        print(f"units {stage.units[0]}-{stage.units[1] - 1} on devices {stage.devices[0]}-{stage.devices[1] - 1}")
    print(f"bubble: {step.plan.simulate().bubble:.0%} of the step")
    state = layers
    for i in range(20):
        state, loss = step(state, x, jnp.sin(x))
        if i % 5 == 4:
            print(f"step {i + 1}: loss {float(loss):.4f}")


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main()
