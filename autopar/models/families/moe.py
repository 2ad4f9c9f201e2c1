"""A mixture-of-experts decoder: every other layer's feed-forward is made of E experts; plain JAX.

Tokens are sent to two of them as in GShard, or by another router of `layers/routers.py`: `get("moe", router="switch")`.
The biases that balance the load of router "sigmoid" are in `State.stats`.

Parameters: L/2 (4 d^2 + 2 F d^2) + L/2 (4 d^2 + 2 E F d^2 + E d) + V d + S d, F = 8 the feed-forward factor
that gives the published sizes. They are rounded: the experts of "1.3b" alone are 8 x 16 x 2 x 8 x 768^2 = 1.21
billion, and all is 1.35.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from autopar.models.data.tokens import token_batches
from autopar.models.layers import plain as L
from autopar.models.layers.experts import Experts, MoEAux, first_biases, moe_init, moe_layer, next_biases, router_loss
from autopar.models.recipe import Batch, Config, Family, LossOut, Pytree, Recipe, make_recipe


@dataclass(frozen=True, kw_only=True)
class MoEConfig(Config):
    """Sizes. The router and what it is told are those of `RouterSpec`; `shared_experts` see every token."""

    may_be_zero: ClassVar[tuple[str, ...]] = (*Config.may_be_zero, "shared_experts")

    hidden: int = 64
    layers: int = 2
    heads: int = 8
    experts: int = 8
    sequence: int = 32
    vocab: int = 256
    ffn_factor: int = 4
    router: str = "top2"
    top_k: int | None = None
    shared_experts: int = 0
    group: int = 32
    capacity_factor: float = 1.0
    aux_weight: float = 0.01
    bias_speed: float = 0.001

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        self.spec.check_groups(self.batch_size, self.sequence)
        if self.spec.by_example:
            raise ValueError(
                f"router={self.router!r} sends whole examples to experts, by their task or class, and text has none; "
                "see 'gshard' and 'vmoe'"
            )

    @property
    def spec(self) -> Experts:
        """The experts of one layer."""
        return Experts(
            router=self.router,
            experts=self.experts,
            top_k=self.top_k,
            group=self.group,
            capacity_factor=self.capacity_factor,
            aux_weight=self.aux_weight,
            bias_speed=self.bias_speed,
            ffn=self.ffn_factor * self.hidden,
            shared=self.shared_experts,
        )

    @property
    def routed_layers(self) -> int:
        """How many layers have experts."""
        return self.layers // 2


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
        return {**layer, "moe": moe_init(k2, c.hidden, c.spec, c.param_dtype, out_std)}
    return {**layer, "mlp": L.mlp_init(k2, c.hidden, c.ffn_factor * c.hidden, c.param_dtype, out_std)}


def make(family: Family, preset: str, c: MoEConfig) -> Recipe:
    """Builds the recipe; odd layers are routed."""
    spec = c.spec

    def init(key: jax.Array) -> tuple[Pytree, Pytree]:
        k_tokens, k_positions, k_layers = jax.random.split(key, 3)
        return {
            "wte": L.normal(k_tokens, (c.vocab, c.hidden), c.param_dtype),
            "wpe": L.normal(k_positions, (c.sequence, c.hidden), c.param_dtype),
            "layers": [init_layer(k, c, routed=i % 2 == 1) for i, k in enumerate(jax.random.split(k_layers, c.layers))],
            "ln_f": L.layer_norm_init(c.hidden, c.param_dtype),
        }, first_biases(c.routed_layers, spec, c.param_dtype)

    def loss(params: Pytree, batch: Batch, key: jax.Array | None, stats: Pytree) -> LossOut:
        x = (params["wte"][batch["tokens"]] + params["wpe"]).astype(c.compute_dtype)
        routed: list[MoEAux] = []
        for layer in params["layers"]:
            x = x + L.causal_attention(layer["attn"], L.layer_norm(layer["ln1"], x))
            y = L.layer_norm(layer["ln2"], x)
            if "moe" in layer:
                y, aux = moe_layer(layer["moe"], y, spec, bias=None if stats is None else stats[len(routed)])
                routed.append(aux)
            else:
                y = L.mlp(layer["mlp"], y)
            x = x + y
        x = L.layer_norm(params["ln_f"], x)
        logits = jnp.einsum("bsd,vd->bsv", x, params["wte"].astype(x.dtype))
        cross_entropy = L.cross_entropy(logits, batch["targets"])
        added, losses = router_loss(routed, spec)
        metrics = {"cross_entropy": cross_entropy, **losses}
        return cross_entropy + added, (metrics, next_biases(stats, routed, spec))

    return make_recipe(
        family,
        preset,
        c,
        init=init,
        loss=loss,
        unused=lambda params: c.routed_layers * spec.idle_parameters(c.hidden),
        **token_batches(c.batch_size, c.sequence, c.vocab),
    )


FAMILY = Family(
    name="moe",
    summary="causal decoder with experts in every other layer, GShard top-2 or another router; plain JAX",
    source="Lepikhin et al. 2020 (GShard); sizes from Zheng et al. 2022 (Alpa)",
    presets=PRESETS,
    make=make,
)
