"""One decorator: a training step for one device runs on eight.

python examples/01_shard_a_step.py
"""

import jax
import jax.numpy as jnp
import optax

import autopar

tx = optax.adamw(1e-2)


@autopar.parallelize(cluster="cpu:8", donate_argnums=0)
def train_step(state, x, y):
    def loss_fn(params):
        return jnp.mean((jax.nn.relu(x @ params["w1"]) @ params["w2"] - y) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(state["params"])
    updates, opt = tx.update(grads, state["opt"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, loss


def main():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"w1": jax.random.normal(keys[0], (64, 256)) / 8, "w2": jax.random.normal(keys[1], (256, 8)) / 16}
    state = {"params": params, "opt": tx.init(params)}
    x = jax.random.normal(keys[2], (128, 64))
    y = jnp.sin(x[:, :8])
    for i in range(50):
        state, loss = train_step(state, x, y)  # the first call plans and compiles
        if i % 10 == 9:
            print(f"step {i + 1}: loss {loss:.4f}")
    print(f"w1 lies as {state['params']['w1'].sharding.spec} on a mesh of {dict(train_step.executable.mesh.shape)}")
    print(f"compiled as planned: {train_step.executable.audit.agrees}")


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main()
