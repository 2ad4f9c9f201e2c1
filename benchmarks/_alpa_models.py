"""The three training steps by which Alpa's own tests measure its planner, in plain flax and optax.

Sizes and structure follow Alpa's `tests/shard_parallel` (test_mlp.py, test_bert.py, test_moe.py) and the layers of
`alpa/model` that they use: float32, Adam, mean squared error, no dropout (Alpa tests deterministically). As there,
the output of the first layer norm is the residual of the second block (post-norm BERT).
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

TestCase = tuple[Callable[[Any, Any], Any], Any, Any]
"""A step (state, batch) -> state, and the shapes of both."""


class Mlp(nn.Module):
    """Dense layers with bias and relu between them."""

    layers: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.layers):
            x = nn.Dense(self.hidden)(x)
            if i < self.layers - 1:
                x = nn.relu(x)
        return x


class Attention(nn.Module):
    """BERT's self-attention block: projections with bias, residual, layer norm: [b, s, d] -> [b, s, d]."""

    hidden: int
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        width = self.hidden // self.heads
        q, k, v = (
            nn.Dense(self.hidden, name=name)(x).reshape(*x.shape[:2], self.heads, width)
            for name in ("query", "key", "value")
        )
        bias = jnp.where(mask > 0, 0.0, -1e10)[:, None, None, :]
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q / width**0.5, k) + bias, axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        return nn.LayerNorm(name="norm")(nn.Dense(self.hidden, name="out")(mixed) + x)


class Bert(nn.Module):
    """Encoder layers: attention and a feed-forward of 4 x hidden, each with residual and layer norm after."""

    layers: int
    hidden: int
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        for i in range(self.layers):
            x = Attention(self.hidden, self.heads, name=f"attention_{i}")(x, mask)
            y = nn.Dense(self.hidden, name=f"down_{i}")(nn.gelu(nn.Dense(4 * self.hidden, name=f"up_{i}")(x)))
            x = nn.LayerNorm(name=f"norm_{i}")(y + x)
        return x


class MoeLayer(nn.Module):
    """One attention block and one block of GShard's experts (top-2, by einsum): [b, s, d] -> [b, s, d]."""

    hidden: int
    heads: int
    experts: int
    group: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = Attention(self.hidden, self.heads, name="attention")(x, mask)
        init = nn.initializers.normal(0.02)
        router = self.param("router", init, (self.hidden, self.experts))
        up = self.param("up", init, (self.experts, self.hidden, 4 * self.hidden))
        down = self.param("down", init, (self.experts, 4 * self.hidden, self.hidden))
        tokens = x.reshape(-1, self.group, self.hidden)
        gates = jax.nn.softmax(jnp.einsum("gsm,me->gse", tokens, router), axis=-1)
        combine = top2(gates, capacity=2 * self.group // self.experts)
        slots = jnp.einsum("gsec,gsm->egcm", (combine > 0).astype(x.dtype), tokens)
        y = nn.relu(jnp.einsum("egcm,emh->egch", slots, up))
        y = jnp.einsum("egch,ehm->gecm", y, down)
        y = jnp.einsum("gsec,gecm->gsm", combine, y).reshape(x.shape)
        return nn.LayerNorm(name="norm")(y + x)


def top2(gates: jax.Array, capacity: int) -> jax.Array:
    """Combine weights [g, s, e, c] of the two best experts of each token, first come first served."""
    experts = gates.shape[-1]
    first = jax.nn.one_hot(jnp.argmax(gates, axis=-1), experts)
    second = jax.nn.one_hot(jnp.argmax(gates * (1 - first), axis=-1), experts)
    slot1 = jnp.cumsum(first, axis=1) - first
    slot2 = jnp.cumsum(second, axis=1) - second + first.sum(axis=1, keepdims=True)
    gate1, gate2 = (gates * first).sum(axis=-1), (gates * second).sum(axis=-1)

    def weights(gate: jax.Array, choice: jax.Array, slot: jax.Array) -> jax.Array:
        slots = jax.nn.one_hot((slot * choice).sum(axis=-1).astype(jnp.int32), capacity)
        return (gate / (gate1 + gate2))[:, :, None, None] * choice[:, :, :, None] * slots[:, :, None, :]

    return weights(gate1, first, slot1) + weights(gate2, second, slot2)


def mlp() -> TestCase:
    """6 dense layers of 32 with bias, batch 256."""
    x = jax.ShapeDtypeStruct((256, 32), jnp.float32)
    return _case(Mlp(6, 32), (x,), x)


def bert() -> TestCase:
    """2 encoder layers, hidden 128, 8 heads, batch 8, sequence 8."""
    return _case(Bert(2, 128, 8), *_tokens(8, 8, 128))


def moe() -> TestCase:
    """One attention and one expert block: batch 64, sequence 16, hidden 64, 16 heads, 16 experts, groups of 32."""
    return _case(MoeLayer(64, 16, 16, 32), *_tokens(64, 16, 64))


def _tokens(batch: int, sequence: int, hidden: int) -> tuple[tuple[Any, ...], Any]:
    x = jax.ShapeDtypeStruct((batch, sequence, hidden), jnp.float32)
    return (x, jax.ShapeDtypeStruct((batch, sequence), jnp.int32)), x


def _case(model: nn.Module, inputs: tuple[Any, ...], label: Any) -> TestCase:
    tx = optax.adam(1e-2)

    def init(*inputs: Any) -> Any:
        params = model.init(jax.random.key(0), *inputs)
        return params, tx.init(params)

    def step(state: Any, batch: Any) -> Any:
        params, opt_state = state
        grads = jax.grad(lambda p: jnp.mean((model.apply(p, *batch["inputs"]) - batch["label"]) ** 2))(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step, jax.eval_shape(init, *inputs), {"inputs": inputs, "label": label}
