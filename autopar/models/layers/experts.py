"""A feed-forward layer made of experts, with any of the routers; plain JAX.

Names of dims: g groups, s routed items of a group, e experts, c slots of an expert for a group, d hidden, f width of
an expert. Items are tokens, or whole examples where the router goes by task or image.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from autopar.models.layers import plain as L
from autopar.models.layers.router_spec import RouterSpec
from autopar.models.layers.routers import ROUTERS, balanced


@dataclass(frozen=True, kw_only=True)
class Experts(RouterSpec):
    """A router and the experts it sends tokens to.

    Attributes:
        ffn: width f of an expert.
        gated: whether an expert multiplies its activations by a second projection (Shazeer 2020).
        shared: experts that every token is sent to beside the routed ones, with weight one (DeepSeekMoE).
    """

    ffn: int
    gated: bool = False
    shared: int = 0

    def idle_parameters(self, hidden: int) -> int:
        """Scalars of one layer's experts that a token is not sent to."""
        return (self.experts - self.choices) * (3 if self.gated else 2) * hidden * self.ffn


class MoEAux(NamedTuple):
    """What a layer says beside its output: `Routing.losses` and `Routing.load`."""

    losses: dict[str, jax.Array]
    load: jax.Array


def moe_init(key: jax.Array, hidden: int, spec: Experts, dtype: np.dtype, out_std: float) -> L.Params:
    """A router [d, e], and e experts of two matrices, or three if gated; shared experts lie side by side in one."""
    keys = jax.random.split(key, 5)
    inside, outside = (spec.experts, hidden, spec.ffn), (spec.experts, spec.ffn, hidden)
    p: L.Params = {
        "router": L.normal(keys[0], (hidden, spec.experts), dtype, hidden**-0.5),
        "w1": L.normal(keys[1], inside, dtype),
        "w2": L.normal(keys[2], outside, dtype, out_std),
    }
    if spec.gated:
        p["gate"] = L.normal(keys[3], inside, dtype)
    if spec.shared:
        p["shared"] = _shared_init(keys[4], hidden, spec, dtype, out_std)
    return p


def _shared_init(key: jax.Array, hidden: int, spec: Experts, dtype: np.dtype, out_std: float) -> L.Params:
    k1, k2, k3 = jax.random.split(key, 3)
    width = spec.shared * spec.ffn
    p = {"w1": L.normal(k1, (hidden, width), dtype), "w2": L.normal(k2, (width, hidden), dtype, out_std)}
    return {**p, "gate": L.normal(k3, (hidden, width), dtype)} if spec.gated else p


def moe_layer(
    p: L.Params,
    x: jax.Array,
    spec: Experts,
    *,
    task: jax.Array | None = None,
    bias: jax.Array | None = None,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu,
) -> tuple[jax.Array, MoEAux]:
    """Routed feed-forward.

    Args:
        p: what `moe_init` returns.
        x: [b, n, d], n tokens in each of b examples.
        spec: the router and its experts; `group` must divide b n, and be a multiple of n where examples are routed.
        task: [b, d], what routes each example (routers "task" and "image" only).
        bias: [e], the balancing bias (router "sigmoid" only).
        activation: of the experts.

    Returns:
        [b, n, d], zero for tokens that no expert had a slot for (and no expert is shared); losses and load.
    """
    sequence, hidden = x.shape[1:]
    item = (sequence, hidden) if spec.by_example else (hidden,)
    items = x.reshape(-1, spec.group * hidden // math.prod(item), *item)
    asking = items if task is None else task.reshape(*items.shape[:2], -1)
    logits = jnp.einsum("gsd,de->gse", asking.astype(p["router"].dtype), p["router"])
    combine, dispatch, losses, load = ROUTERS[spec.router](logits, spec, bias)
    p = {name: jax.tree.map(lambda w: w.astype(x.dtype), p[name]) for name in p if name != "router"}
    slots = jnp.einsum("gsec,gs...->egc...", dispatch.astype(x.dtype), items)
    inner = activation(jnp.einsum("e...d,edf->e...f", slots, p["w1"]))
    if spec.gated:
        inner = inner * jnp.einsum("e...d,edf->e...f", slots, p["gate"])
    out = jnp.einsum("e...f,efd->e...d", inner, p["w2"])
    y = jnp.einsum("gsec,egc...->gs...", combine.astype(x.dtype), out).reshape(x.shape)
    if spec.shared:
        y = y + _shared(p["shared"], x, activation)
    return y, MoEAux(losses, load)


def _shared(p: L.Params, x: jax.Array, activation: Callable[[jax.Array], jax.Array]) -> jax.Array:
    inner = activation(x @ p["w1"])
    return (inner * (x @ p["gate"]) if "gate" in p else inner) @ p["w2"]


def router_loss(layers: Sequence[MoEAux], spec: RouterSpec) -> tuple[jax.Array | float, dict[str, jax.Array]]:
    """What routing adds to the model's loss.

    Args:
        layers: what each of the model's routed layers says.
        spec: says the weights.

    Returns:
        The weighted sum of the losses, zero where there are none; and each of them, a mean over layers.
    """
    weights = {"aux_loss": spec.aux_weight, "z_loss": spec.z_weight}
    names = layers[0].losses if layers else ()
    means = {name: jnp.stack([aux.losses[name] for aux in layers]).mean() for name in names}
    return sum((weights[name] * mean for name, mean in means.items()), start=0.0), means


def first_biases(layers: int, spec: RouterSpec, dtype: np.dtype) -> list[jax.Array] | None:
    """The balancing bias [e] of each routed layer, which is state; None if the router has none."""
    return [jnp.zeros((spec.experts,), dtype) for _ in range(layers)] if spec.has_bias else None


def next_biases(biases: list[jax.Array] | None, layers: Sequence[MoEAux], spec: RouterSpec) -> list[jax.Array] | None:
    """The biases after a step, moved by the loads of its whole batch."""
    if biases is None:
        return None
    return [balanced(bias, aux.load, spec) for bias, aux in zip(biases, layers, strict=True)]
