"""A small U-Net that removes noise, in Equinox with batch norm: `python examples/frameworks/unet_equinox.py`.

The style of Equinox's documentation: static fields, filtered transformations, running statistics in an `eqx.nn.State`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import autopar

BATCH, SIZE, CHANNELS = 16, 16, 8
tx = optax.adam(1e-2)


class Block(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm

    def __init__(self, inputs, outputs, stride, key):
        self.conv = eqx.nn.Conv2d(inputs, outputs, 3, stride, padding=1, use_bias=False, key=key)
        self.norm = eqx.nn.BatchNorm(outputs, axis_name="batch", mode="batch")

    def __call__(self, x, state):
        x, state = self.norm(self.conv(x), state)
        return jax.nn.relu(x), state


class UNet(eqx.Module):
    down: list[Block]
    up: list[eqx.nn.ConvTranspose2d]
    out: eqx.nn.Conv2d
    depth: int = eqx.field(static=True)

    def __init__(self, depth, key):
        keys, widths = iter(jax.random.split(key, 2 * depth + 2)), [CHANNELS * 2**i for i in range(depth + 1)]
        self.depth = depth
        self.down = [Block(1, CHANNELS, 1, next(keys))]
        self.down += [Block(widths[i], widths[i + 1], 2, next(keys)) for i in range(depth)]
        inputs = [2 * width for width in widths[1:-1]] + widths[-1:]
        self.up = [eqx.nn.ConvTranspose2d(inputs[i], widths[i], 2, 2, key=next(keys)) for i in range(depth)]
        self.out = eqx.nn.Conv2d(2 * CHANNELS, 1, 1, key=next(keys))

    def __call__(self, x, state):
        seen = []
        for block in self.down:
            x, state = block(x, state)
            seen.append(x)
        for i in reversed(range(self.depth)):
            x = jnp.concatenate([self.up[i](x), seen[i]])
        return self.out(x), state


@eqx.filter_value_and_grad(has_aux=True)
def loss_fn(model, state, batch):
    run = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    clean, state = run(batch["noisy"], state)
    return jnp.square(clean - batch["clean"]).mean(), state


def make(seed=0):
    model, state = eqx.nn.make_with_state(UNet)(2, jax.random.key(seed))
    arrays, static = eqx.partition(model, eqx.is_array)

    def step(carry, batch):
        arrays, state, opt_state = carry
        (loss, state), grads = loss_fn(eqx.combine(arrays, static), state, batch)
        updates, opt_state = tx.update(grads, opt_state, arrays)
        return (eqx.apply_updates(arrays, updates), state, opt_state), {"loss": loss}

    rng = np.random.default_rng(seed)
    clean = np.repeat(np.repeat(rng.standard_normal((BATCH, 1, 4, 4)), SIZE // 4, 2), SIZE // 4, 3)
    batch = {"noisy": clean + 0.5 * rng.standard_normal(clean.shape), "clean": clean}
    return (arrays, state, tx.init(arrays)), step, jax.tree.map(jnp.asarray, batch)


def main():
    carry, step, batch = make()
    step = autopar.parallelize(step, cluster="cpu:8")
    for i in range(20):
        carry, metrics = step(carry, batch)
        print(i, float(metrics["loss"]))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main()
