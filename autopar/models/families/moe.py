"""A mixture-of-experts decoder: every other layer's feed-forward is routed to two of E experts; plain JAX.

Routing is GShard's (Lepikhin et al. 2020, algorithm 1) in its einsum form. Tokens are cut into G groups of S;
each group gives each expert at most C slots; dispatch and combine are one-hot tensors [G, S, E, C]. The second
expert is always used (GShard's random second dispatch is left out), so the step is deterministic.

Parameters: L/2 (4 d^2 + 2 F d^2) + L/2 (4 d^2 + 2 E F d^2 + E d) + V d + S d, F = 8 the feed-forward factor
that gives the published sizes.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from autopar.models.data.tokens import token_batch, token_spec
from autopar.models.layers import plain as L
from autopar.models.recipe import Batch, Config, Family, LossOut, Pytree, Recipe, make_recipe


@dataclass(frozen=True, kw_only=True)
class MoEConfig(Config):
    """Sizes. `group` is the number of tokens routed together; `aux_weight` scales the load-balancing loss."""

    hidden: int = 64
    layers: int = 2
    heads: int = 8
    experts: int = 8
    sequence: int = 32
    vocab: int = 256
    ffn_factor: int = 4
    group: int = 32
    capacity_factor: float = 1.0
    aux_weight: float = 0.01

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        if self.batch_size * self.sequence % self.group:
            raise ValueError(
                f"batch_size x sequence ({self.batch_size} x {self.sequence} tokens) must be a multiple of the "
                f"routing group ({self.group}); change one of the three"
            )

    @property
    def capacity(self) -> int:
        """Slots that each expert has for each group: its even share of the 2 x group choices, scaled."""
        return max(1, int(2 * self.group * self.capacity_factor / self.experts))


def _large(hidden: int, layers: int, experts: int) -> MoEConfig:
    return MoEConfig(
        hidden=hidden,
        layers=layers,
        experts=experts,
        heads=16,
        sequence=1024,
        vocab=32000,
        ffn_factor=8,
        group=2048,
        batch_size=1024,
        dtype="bfloat16",
        learning_rate=1e-4,
    )


PRESETS = {
    "toy": MoEConfig(),
    "380m": _large(768, 8, 8),
    "1.3b": _large(768, 16, 16),
    "2.4b": _large(1024, 16, 16),
    "10b": _large(1536, 16, 32),
    "27b": _large(2048, 16, 48),
    "70b": _large(2048, 32, 64),
}


def top2_gating(gates: jax.Array, capacity: int) -> tuple[jax.Array, jax.Array]:
    """Chooses two experts for each token, first come first served within a group.

    Args:
        gates: [g, s, e] router probabilities.
        capacity: slots of each expert in each group.

    Returns:
        The combine weights [g, s, e, c], and the load-balancing loss, a scalar that is 1 at perfect balance.
    """
    experts = gates.shape[-1]
    first = jax.nn.one_hot(jnp.argmax(gates, axis=-1), experts, dtype=gates.dtype)
    others = gates * (1.0 - first)
    second = jax.nn.one_hot(jnp.argmax(others, axis=-1), experts, dtype=gates.dtype)
    # Fraction of tokens sent to each expert times its mean probability, per group.
    aux = (first.mean(axis=1) * gates.mean(axis=1)).sum(axis=-1).mean() * experts

    # A token's slot is the number of earlier tokens that chose the same expert; second choices queue behind.
    slot1 = jnp.cumsum(first, axis=1) - first
    slot2 = jnp.cumsum(second, axis=1) - second + first.sum(axis=1, keepdims=True)
    gate1 = (gates * first).sum(axis=-1)
    gate2 = (gates * second).sum(axis=-1)
    total = gate1 + gate2

    def combine(gate: jax.Array, choice: jax.Array, slot: jax.Array) -> jax.Array:
        # one_hot is all zero from `capacity` on: tokens that find no slot are dropped.
        slots = jax.nn.one_hot((slot * choice).sum(axis=-1).astype(jnp.int32), capacity, dtype=gates.dtype)
        return (gate / total)[:, :, None, None] * choice[:, :, :, None] * slots[:, :, None, :]

    return combine(gate1, first, slot1) + combine(gate2, second, slot2), aux


def moe_init(key: jax.Array, c: MoEConfig, out_std: float) -> L.Params:
    """A router [d, e] and e experts of two matrices."""
    k_router, k1, k2 = jax.random.split(key, 3)
    ffn = c.ffn_factor * c.hidden
    return {
        "router": L.normal(k_router, (c.hidden, c.experts), c.param_dtype, c.hidden**-0.5),
        "w1": L.normal(k1, (c.experts, c.hidden, ffn), c.param_dtype),
        "w2": L.normal(k2, (c.experts, ffn, c.hidden), c.param_dtype, out_std),
    }


def moe_layer(p: L.Params, x: jax.Array, c: MoEConfig) -> tuple[jax.Array, jax.Array]:
    """Routed feed-forward: [b, s, d] -> ([b, s, d], load-balancing loss)."""
    tokens = x.reshape(-1, c.group, c.hidden)
    # Routing is decided in the parameters' dtype: in bfloat16 near ties would be frequent.
    logits = jnp.einsum("gsd,de->gse", tokens.astype(c.param_dtype), p["router"])
    combine, aux = top2_gating(jax.nn.softmax(logits, axis=-1), c.capacity)
    dispatch = (combine > 0).astype(x.dtype)
    slots = jnp.einsum("gsec,gsd->egcd", dispatch, tokens)
    hidden = jax.nn.gelu(jnp.einsum("egcd,edf->egcf", slots, p["w1"].astype(x.dtype)))
    out = jnp.einsum("egcf,efd->egcd", hidden, p["w2"].astype(x.dtype))
    mixed = jnp.einsum("gsec,egcd->gsd", combine.astype(x.dtype), out)
    return mixed.reshape(x.shape), aux


def init_layer(key: jax.Array, c: MoEConfig, routed: bool) -> L.Params:
    """One decoder layer, with a dense ("mlp") or a routed ("moe") feed-forward."""
    k1, k2 = jax.random.split(key)
    out_std = 0.02 / (2 * c.layers) ** 0.5
    layer = {
        "ln1": L.layer_norm_init(c.hidden, c.param_dtype),
        "attn": L.attention_init(k1, c.hidden, c.heads, c.param_dtype, out_std),
        "ln2": L.layer_norm_init(c.hidden, c.param_dtype),
    }
    if routed:
        return {**layer, "moe": moe_init(k2, c, out_std)}
    return {**layer, "mlp": L.mlp_init(k2, c.hidden, c.ffn_factor * c.hidden, c.param_dtype, out_std)}


def make(family: Family, preset: str, c: MoEConfig) -> Recipe:
    """Builds the recipe; odd layers are routed."""

    def init(key: jax.Array) -> tuple[Pytree, None]:
        k_tokens, k_positions, k_layers = jax.random.split(key, 3)
        return {
            "wte": L.normal(k_tokens, (c.vocab, c.hidden), c.param_dtype),
            "wpe": L.normal(k_positions, (c.sequence, c.hidden), c.param_dtype),
            "layers": [init_layer(k, c, routed=i % 2 == 1) for i, k in enumerate(jax.random.split(k_layers, c.layers))],
            "ln_f": L.layer_norm_init(c.hidden, c.param_dtype),
        }, None

    def loss(params: Pytree, batch: Batch, key: jax.Array | None, stats: None) -> LossOut:
        x = (params["wte"][batch["tokens"]] + params["wpe"]).astype(c.compute_dtype)
        aux_losses = []
        for layer in params["layers"]:
            x = x + L.causal_attention(layer["attn"], L.layer_norm(layer["ln1"], x))
            y = L.layer_norm(layer["ln2"], x)
            if "moe" in layer:
                y, aux = moe_layer(layer["moe"], y, c)
                aux_losses.append(aux)
            else:
                y = L.mlp(layer["mlp"], y)
            x = x + y
        x = L.layer_norm(params["ln_f"], x)
        logits = jnp.einsum("bsd,vd->bsv", x, params["wte"].astype(x.dtype))
        cross_entropy = L.cross_entropy(logits, batch["targets"])
        aux = sum(aux_losses, start=jnp.zeros((), c.param_dtype)) / max(1, len(aux_losses))
        return cross_entropy + c.aux_weight * aux, ({"cross_entropy": cross_entropy, "aux_loss": aux}, None)

    return make_recipe(
        family,
        preset,
        c,
        init=init,
        loss=loss,
        batch=lambda seed: token_batch(seed, c.batch_size, c.sequence, c.vocab),
        batch_spec=token_spec(c.batch_size, c.sequence),
        unit="tokens",
        units_per_example=c.sequence,
        unused=lambda params: _expert_parameters(params) * (c.experts - 2) // c.experts,
    )


def _expert_parameters(params: Pytree) -> int:
    routed = [layer["moe"] for layer in params["layers"] if "moe" in layer]
    return sum(int(np.prod(moe[name].shape)) for moe in routed for name in ("w1", "w2"))


FAMILY = Family(
    name="moe",
    summary="causal decoder with GShard top-2 experts in every other layer; plain JAX",
    source="Lepikhin et al. 2020 (GShard); sizes from Zheng et al. 2022 (Alpa)",
    presets=PRESETS,
    make=make,
)
