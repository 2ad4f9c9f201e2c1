"""DeepSeek-V3: latent attention, and experts of fine grain balanced by a bias instead of a loss; plain JAX.

A layer is multi-head latent attention (DeepSeek-V3, section 2.1.1) and a feed-forward, each on an RMS-normalised copy
of the residual stream. The first `dense_layers` have one SwiGLU feed-forward; the others `shared_experts` for every
token and `top_k` of `experts` chosen by it (section 2.1.2). The bias of each expert is state, not a parameter: it moves
against the expert's load after each step. With several `expert_groups` (the paper's nodes) a token goes to experts of
`chosen_groups` of them only.

Parameters, with h heads of n + r numbers (r of them rotary) and values of v, ranks q and k, E experts of width F:

    L (d q + q h (n + r) + d (k + r) + k h (n + v) + h v d)     attention; without rank q: d h (n + r) for the queries
    + 3 d (dense_layers D + (L - dense_layers) (shared + E) F) + (L - dense_layers) d E + 2 V d, plus norms.

Deviations: experts have a fixed number of slots (`capacity_factor`) where the paper drops no token; the sequence-wise
balance loss (weight 0.0001), multi-token prediction (another 14 billion parameters), YaRN and FP8 are left out. The
presets "v2" and "v2-lite" have the sizes of DeepSeek-V2 and V2-Lite with the router of V3; V2's own is a softmax with
balance losses, whose weights are not divided by their sum. A token uses 2.66 billion parameters of "v2-lite", 0.21 of
them the embedding, which the published 2.4 leave out: 2.448 are left, and 0.003 of routers.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax

from autopar.models.data.tokens import token_batches
from autopar.models.layers import plain as L
from autopar.models.layers.experts import Experts, MoEAux, first_biases, moe_init, moe_layer, next_biases
from autopar.models.layers.latent_attention import LatentSizes, latent_attention, latent_attention_init
from autopar.models.recipe import Batch, Config, Family, LossOut, Pytree, Recipe, make_recipe


@dataclass(frozen=True, kw_only=True)
class DeepSeekConfig(Config):
    """Sizes; those of attention are explained at `LatentSizes`, those of routing at `RouterSpec`.

    Attributes:
        dense_layers: how many layers, the first ones, have a dense feed-forward of width `dense_ffn`.
        expert_ffn: width of an expert, of the shared ones too.
    """

    may_be_zero: ClassVar[tuple[str, ...]] = (*Config.may_be_zero, "dense_layers", "shared_experts")

    hidden: int = 64
    layers: int = 2
    heads: int = 8
    q_rank: int | None = 32
    kv_rank: int = 16
    nope: int = 8
    rope: int = 8
    value: int = 8
    rope_theta: float = 10_000.0
    dense_layers: int = 1
    dense_ffn: int = 128
    experts: int = 8
    shared_experts: int = 1
    top_k: int = 2
    expert_ffn: int = 32
    expert_groups: int = 1
    chosen_groups: int = 1
    routed_scale: float = 1.0
    bias_speed: float = 0.001
    group: int = 32
    capacity_factor: float = 1.25
    sequence: int = 32
    vocab: int = 256

    def __post_init__(self) -> None:
        if self.rope % 2:
            raise ValueError(f"rope ({self.rope}) must be even: rotary positions turn pairs of numbers in each head")
        if self.dense_layers > self.layers:
            raise ValueError(f"dense_layers ({self.dense_layers}) must be at most layers ({self.layers})")
        self.spec.check_groups(self.batch_size, self.sequence)

    @property
    def latent(self) -> LatentSizes:
        """Sizes of attention."""
        return LatentSizes(self.heads, self.q_rank, self.kv_rank, self.nope, self.rope, self.value)

    @property
    def spec(self) -> Experts:
        """The router and its experts."""
        return Experts(
            router="sigmoid",
            experts=self.experts,
            top_k=self.top_k,
            group=self.group,
            capacity_factor=self.capacity_factor,
            bias_speed=self.bias_speed,
            scale=self.routed_scale,
            expert_groups=self.expert_groups,
            chosen_groups=self.chosen_groups,
            ffn=self.expert_ffn,
            gated=True,
            shared=self.shared_experts,
        )


PRESETS = {
    "toy": DeepSeekConfig(),
    "v2-lite": DeepSeekConfig(
        hidden=2048,
        layers=27,
        heads=16,
        q_rank=None,
        kv_rank=512,
        nope=128,
        rope=64,
        value=128,
        dense_ffn=10_944,
        experts=64,
        shared_experts=2,
        top_k=6,
        expert_ffn=1408,
        group=1024,
        sequence=4096,
        vocab=102_400,
        batch_size=4608,
        dtype="bfloat16",
        learning_rate=4.2e-4,
    ),
    "v2": DeepSeekConfig(
        hidden=5120,
        layers=60,
        heads=128,
        q_rank=1536,
        kv_rank=512,
        nope=128,
        rope=64,
        value=128,
        dense_ffn=12_288,
        experts=160,
        shared_experts=2,
        top_k=6,
        expert_ffn=1536,
        expert_groups=8,
        chosen_groups=3,
        group=1024,
        sequence=4096,
        vocab=102_400,
        batch_size=9216,
        dtype="bfloat16",
        learning_rate=2.4e-4,
    ),
    "v3": DeepSeekConfig(
        hidden=7168,
        layers=61,
        heads=128,
        q_rank=1536,
        kv_rank=512,
        nope=128,
        rope=64,
        value=128,
        dense_layers=3,
        dense_ffn=18_432,
        experts=256,
        top_k=8,
        expert_ffn=2048,
        expert_groups=8,
        chosen_groups=4,
        routed_scale=2.5,
        group=1024,
        sequence=4096,
        vocab=129_280,
        batch_size=15_360,
        dtype="bfloat16",
        learning_rate=2.2e-4,
    ),
}


# Under a jit of its own a layer is traced once for all that are alike.
@partial(jax.jit, static_argnames=("c", "routed"))
def init_layer(key: jax.Array, c: DeepSeekConfig, routed: bool) -> L.Params:
    """One layer, with a dense ("mlp") or a routed ("moe") feed-forward."""
    k1, k2 = jax.random.split(key)
    out_std = 0.02 / (2 * c.layers) ** 0.5
    layer = {
        "norm1": L.rms_norm_init(c.hidden, c.param_dtype),
        "attn": latent_attention_init(k1, c.hidden, c.latent, c.param_dtype, out_std),
        "norm2": L.rms_norm_init(c.hidden, c.param_dtype),
    }
    if routed:
        return {**layer, "moe": moe_init(k2, c.hidden, c.spec, c.param_dtype, out_std)}
    return {**layer, "mlp": L.gated_mlp_init(k2, c.hidden, c.dense_ffn, c.param_dtype, out_std)}


@partial(jax.jit, static_argnames="c")
def decoder_layer(
    p: L.Params, x: jax.Array, bias: jax.Array | None, c: DeepSeekConfig
) -> tuple[jax.Array, MoEAux | None]:
    """Attention and feed-forward, each added to the residual stream.

    Args:
        p: what `init_layer` returns.
        x: [b, s, d].
        bias: [e], the balancing bias of a routed layer; None for a dense one.
        c: sizes.

    Returns:
        [b, s, d]; and what the router says, None for a dense layer.
    """
    x = x + latent_attention(p["attn"], L.rms_norm(p["norm1"], x), c.rope_theta)
    y = L.rms_norm(p["norm2"], x)
    if "mlp" in p:
        return x + L.gated_mlp(p["mlp"], y), None
    y, aux = moe_layer(p["moe"], y, c.spec, bias=bias, activation=jax.nn.silu)
    return x + y, aux


def make(family: Family, preset: str, c: DeepSeekConfig) -> Recipe:
    """Builds the recipe; `State.stats` has the balancing bias of each routed layer."""
    spec = c.spec

    def init(key: jax.Array) -> tuple[Pytree, Pytree]:
        k_embed, k_head, k_layers = jax.random.split(key, 3)
        keys = enumerate(jax.random.split(k_layers, c.layers))
        params = {
            "embed": L.normal(k_embed, (c.vocab, c.hidden), c.param_dtype),
            "layers": [init_layer(k, c, routed=i >= c.dense_layers) for i, k in keys],
            "norm": L.rms_norm_init(c.hidden, c.param_dtype),
            "head": L.normal(k_head, (c.hidden, c.vocab), c.param_dtype),
        }
        return params, first_biases(c.layers - c.dense_layers, spec, c.param_dtype)

    def loss(params: Pytree, batch: Batch, key: jax.Array | None, stats: list[jax.Array]) -> LossOut:
        x = params["embed"][batch["tokens"]].astype(c.compute_dtype)
        said = []
        for layer, bias in zip(params["layers"], [*[None] * c.dense_layers, *stats], strict=True):
            x, aux = decoder_layer(layer, x, bias, c)
            said += [aux] if aux else []
        logits = L.rms_norm(params["norm"], x) @ params["head"].astype(x.dtype)
        return L.cross_entropy(logits, batch["targets"]), ({}, next_biases(stats, said, spec))

    return make_recipe(
        family,
        preset,
        c,
        init=init,
        loss=loss,
        unused=lambda params: (c.layers - c.dense_layers) * spec.idle_parameters(c.hidden),
        **token_batches(c.batch_size, c.sequence, c.vocab),
    )


FAMILY = Family(
    name="deepseek",
    summary="decoder with latent attention and many small experts, balanced by a bias in the state; plain JAX",
    source="DeepSeek-AI 2024 (DeepSeek-V3); attention and small sizes from DeepSeek-AI 2024 (DeepSeek-V2)",
    presets=PRESETS,
    make=make,
)
