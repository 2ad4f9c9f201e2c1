"""Routers of mixtures of experts: which expert each token is sent to, and with what weight.

All in the einsum form of GShard (Lepikhin et al. 2020, section 3.2). Tokens come in groups; in each, an expert has a
few slots, and the ones that find theirs taken are dropped: the layer adds nothing to them. A group is split over
devices as a batch is, and slots are exchanged for experts between them.

Names of dims: g groups, s tokens of a group, e experts, c slots of an expert for a group. Routers are deterministic:
noise on the gates and the random second expert of the papers are left out. Experts are chosen in the dtype of the
logits, which should be at least float32: in bfloat16 near ties would be frequent.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from autopar.models.layers.router_spec import RouterSpec


class Routing(NamedTuple):
    """Where tokens go.

    Attributes:
        combine: [g, s, e, c] the weight of what a slot's expert makes of a token; zero where it is not.
        dispatch: [g, s, e, c] booleans, whether a token is in a slot.
        losses: scalars to be added to the model's loss, without their weights. "aux_loss" is one at perfect balance.
        load: [e] how many tokens chose each expert, in all groups, with those that found no slot.
    """

    combine: jax.Array
    dispatch: jax.Array
    losses: dict[str, jax.Array]
    load: jax.Array


# (logits [g, s, e], spec, balancing bias [e] or None) -> routing
Router = Callable[[jax.Array, RouterSpec, jax.Array | None], Routing]


def top2(logits: jax.Array, spec: RouterSpec, bias: jax.Array | None = None) -> Routing:
    """The two likeliest experts, their probabilities divided by the sum (GShard, algorithm 1).

    First come first served; a token's second choice queues behind the first choices of the whole group.
    """
    gates = jax.nn.softmax(logits, axis=-1)
    first = _likeliest(gates)
    second = _likeliest(jnp.where(first, -1.0, gates))
    slot = jnp.where(first, _earlier(first), _earlier(second) + first.sum(axis=1, keepdims=True))
    chosen = first | second
    weights = jnp.where(chosen, gates, 0.0)
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return _routing(chosen, weights, slot, spec, {"aux_loss": _balance(gates, first)})


def switch(logits: jax.Array, spec: RouterSpec, bias: jax.Array | None = None) -> Routing:
    """The likeliest expert, with its probability as weight (Switch Transformer, Fedus et al. 2021, section 2.1)."""
    gates = jax.nn.softmax(logits, axis=-1)
    chosen = _likeliest(gates)
    return _routing(chosen, gates, _earlier(chosen), spec, {"aux_loss": _balance(gates, chosen)})


def st_moe(logits: jax.Array, spec: RouterSpec, bias: jax.Array | None = None) -> Routing:
    """`top2` with a loss that keeps logits small (router z-loss; Zoph et al. 2022, equation 5)."""
    routing = top2(logits, spec)
    z_loss = jnp.square(jax.nn.logsumexp(logits, axis=-1)).mean()
    return routing._replace(losses={**routing.losses, "z_loss": z_loss})


def expert_choice(logits: jax.Array, spec: RouterSpec, bias: jax.Array | None = None) -> Routing:
    """Each expert takes the tokens that it is likeliest for (Zhou et al. 2022, section 3.2).

    Every slot is taken and no loss balances the load; a token may be taken by no expert or by many. Which tokens are
    taken depends on later ones: a decoder trained so sees a little of the future.
    """
    gates = jax.nn.softmax(logits, axis=-1)
    by_expert = jax.lax.stop_gradient(gates).swapaxes(1, 2)
    _, taken = jax.lax.top_k(by_expert, spec.capacity(logits.shape[1]))
    dispatch = jax.nn.one_hot(taken, logits.shape[1], axis=1, dtype=bool)
    load = dispatch.sum(axis=(0, 1, 3)).astype(logits.dtype)
    return Routing(jnp.where(dispatch, gates[..., None], 0.0), dispatch, {}, load)


def sigmoid(logits: jax.Array, spec: RouterSpec, bias: jax.Array | None = None) -> Routing:
    """The experts of highest affinity, a sigmoid, divided by their sum (DeepSeek-V3 2024, equations 12 to 16).

    The bias is added to affinities where experts are chosen, and only there: it balances the load without a loss (see
    `balanced`). With several `expert_groups`, as on several hosts, a token is sent to those whose best experts have
    the highest sum, and to no others. The paper drops no token: give a `capacity_factor` of experts / top_k for that.
    """
    affinity = jax.nn.sigmoid(logits)
    scores = jax.lax.stop_gradient(affinity if bias is None else affinity + bias)
    if spec.chosen_groups < spec.expert_groups:
        scores = jnp.where(_in_best_groups(scores, spec), scores, -jnp.inf)
    chosen = _highest(scores, spec.choices)
    weights = jnp.where(chosen, affinity, 0.0)
    weights = weights * (spec.scale / weights.sum(axis=-1, keepdims=True))
    return _routing(chosen, weights, _earlier(chosen), spec, {})


ROUTERS: dict[str, Router] = {
    "top2": top2,
    "switch": switch,
    "expert-choice": expert_choice,
    "st-moe": st_moe,
    "task": top2,  # of examples, each by its task (Kudugunta et al. 2021)
    "image": switch,  # of examples, each by what is known of it so far (Daxberger et al. 2023)
    "sigmoid": sigmoid,
}


def balanced(bias: jax.Array, load: jax.Array, spec: RouterSpec) -> jax.Array:
    """The bias after a step: down by a constant for each expert above the mean load, up for each below it.

    Args:
        bias: [e], of this step.
        load: [e], tokens of the whole batch that chose each expert.
        spec: says how fast.

    Returns:
        [e], for the next step (DeepSeek-V3 2024, section 2.1.2).
    """
    return bias - spec.bias_speed * jnp.sign(load - load.mean())


def _routing(
    chosen: jax.Array, weights: jax.Array, slot: jax.Array, spec: RouterSpec, losses: dict[str, jax.Array]
) -> Routing:
    """Puts each token that chose an expert into a slot of it: all of [g, s, e], slots numbered by arrival."""
    slots = jnp.arange(spec.capacity(chosen.shape[1]), dtype=slot.dtype)
    # No slot has a number from the capacity on: those tokens are dropped.
    dispatch = jnp.where(chosen, slot, slots.size)[..., None] == slots
    load = chosen.sum(axis=(0, 1)).astype(weights.dtype)
    return Routing(jnp.where(dispatch, weights[..., None], 0.0), dispatch, losses, load)


def _likeliest(gates: jax.Array) -> jax.Array:
    """Booleans of the highest of each token's gates, [g, s, e]; the first one of equals."""
    return jax.nn.one_hot(jnp.argmax(gates, axis=-1), gates.shape[-1], dtype=bool)


def _highest(scores: jax.Array, k: int) -> jax.Array:
    """Booleans of the k highest in the last dim; of equals, the first ones."""
    _, best = jax.lax.top_k(scores, k)
    return jax.nn.one_hot(best, scores.shape[-1], dtype=bool).any(axis=-2)


def _earlier(chosen: jax.Array) -> jax.Array:
    """How many earlier tokens of the group chose the same expert, [g, s, e] int32."""
    counted = chosen.astype(jnp.int32)
    return jnp.cumsum(counted, axis=1) - counted


def _balance(gates: jax.Array, first: jax.Array) -> jax.Array:
    """Share of tokens whose first choice is an expert, times its mean gate; one at perfect balance. Mean of groups."""
    share = first.astype(gates.dtype).mean(axis=1)
    return (share * gates.mean(axis=1)).sum(axis=-1).mean() * gates.shape[-1]


def _in_best_groups(scores: jax.Array, spec: RouterSpec) -> jax.Array:
    """Booleans of the experts whose group a token may be sent to, [g, s, e]."""
    size = spec.experts // spec.expert_groups
    grouped = scores.reshape(*scores.shape[:-1], spec.expert_groups, size)
    # Of each group, as many as it is to give if the chosen groups give equally many.
    best, _ = jax.lax.top_k(grouped, spec.choices // spec.chosen_groups)
    groups = _highest(best.sum(axis=-1), spec.chosen_groups)
    return jnp.repeat(groups, size, axis=-1)
