"""Experts are one dim of an einsum; that they lie on different devices is a layout, which the planner finds.

python examples/04_mixture_of_experts.py
"""

import jax
import jax.numpy as jnp

import autopar
from autopar.report import sentence

GROUPS, TOKENS, HIDDEN, EXPERTS, WIDTH = 64, 256, 512, 8, 2048
CAPACITY = 2 * TOKENS // EXPERTS


def experts(p, x):
    scores = jax.nn.softmax(x @ p["router"])
    chosen = jax.nn.one_hot(scores.argmax(-1), EXPERTS)
    slot = ((jnp.cumsum(chosen, axis=1) - 1) * chosen).sum(-1).astype(int)
    places = chosen[..., None] * jax.nn.one_hot(slot, CAPACITY)[:, :, None, :]  # group, token, expert, slot
    sent = jnp.einsum("gsec,gsd->egcd", places, x)
    hidden = jax.nn.relu(jnp.einsum("egcd,edf->egcf", sent, p["w1"]))
    back = jnp.einsum("egcf,efd,gsec->gsd", hidden, p["w2"], places)
    return x + (scores * chosen).sum(-1, keepdims=True) * back


def train_step(p, x, y):
    loss, grads = jax.value_and_grad(lambda p: jnp.mean((experts(p, x) - y) ** 2))(p)
    return jax.tree.map(lambda a, g: a - 0.01 * g, p, grads), loss


def main():
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, "float32")  # noqa: E731
    params = {
        "router": shape(HIDDEN, EXPERTS),
        "w1": shape(EXPERTS, HIDDEN, WIDTH),
        "w2": shape(EXPERTS, WIDTH, HIDDEN),
    }
    batch = shape(GROUPS, TOKENS, HIDDEN), shape(GROUPS, TOKENS, HIDDEN)
    for strategy in ("auto", "data"):
        options = autopar.Options(strategy=strategy, mesh=(8,))
        plan = autopar.plan(train_step, params, *batch, cluster="h100:8", options=options, donate_argnums=0)
        print(f"{strategy:5} {plan.step_s * 1e3:.2f} ms, {plan.peak_bytes / 2**20:.0f} MiB: {sentence(plan)}")


if __name__ == "__main__":
    main()
