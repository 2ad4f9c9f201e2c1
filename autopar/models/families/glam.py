"""GLaM: a decoder whose every other feed-forward is 64 experts, of which a token sees two; plain JAX.

Relative positions are a learned number per layer, head and bucket of distances, what goes into a block is normalised
(RMSNorm), and the embedding is the output layer too. Dense feed-forwards are gated (GELU) and have three matrices,
experts are not and have two: so the paper's counts come out. Its tokenizer has 256,000 pieces, but the counts of the
smaller models are those of 32,000.

Parameters: L 4 d h k + L/2 3 d F + L/2 (2 E F d + E d) + V d, plus relative positions and norms. A token uses 2 in
place of E: 1.879 billion of "27b", 9.80 of "143b" and 96.6 of "1.2t", as published. The last has 1.162 trillion, which
the paper rounds. Of "1.9b" a token uses 12 x 2.36 + 6 x 7.08 + 6 x 2 x 4.72 million in the layers and 24.6 in the
embedding, together 152, where the paper prints 145; yet with this embedding, and with no other, 16 experts have the
548 million that Zhou et al. 2022 print. The paper's 20 billion of 32 experts at the size of "27b" are no preset: by its
other sizes they would be 14.

Deviations: attention has biases on all but keys; the second expert is always used.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from autopar.models.data.tokens import token_batches
from autopar.models.layers import plain as L
from autopar.models.layers.experts import Experts, MoEAux, moe_init, moe_layer, router_loss
from autopar.models.layers.relative_bias import BUCKETS, relative_bias
from autopar.models.recipe import Batch, Config, Family, LossOut, Pytree, Recipe, make_recipe


@dataclass(frozen=True, kw_only=True)
class GLaMConfig(Config):
    """Sizes: heads of `head` numbers, feed-forwards and experts of width `ffn`, `group` tokens routed together.

    `remat` keeps what goes into each layer and computes the rest again in the backward pass.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 8
    head: int = 8
    ffn: int = 128
    experts: int = 8
    sequence: int = 32
    vocab: int = 256
    group: int = 32
    capacity_factor: float = 1.0
    aux_weight: float = 0.01
    remat: bool = False

    def __post_init__(self) -> None:
        self.spec.check_groups(self.batch_size, self.sequence)

    @property
    def spec(self) -> Experts:
        """The experts of one layer."""
        return Experts(
            router="top2",
            experts=self.experts,
            group=self.group,
            capacity_factor=self.capacity_factor,
            aux_weight=self.aux_weight,
            ffn=self.ffn,
        )


def _large(hidden: int, layers: int, heads: int, head: int, vocab: int) -> GLaMConfig:
    # A million tokens in a batch; Adafactor, constant and then with the inverse root.
    return GLaMConfig(
        hidden=hidden,
        layers=layers,
        heads=heads,
        head=head,
        ffn=4 * hidden,
        experts=64,
        sequence=1024,
        vocab=vocab,
        group=1024,
        remat=True,
        batch_size=1024,
        dtype="bfloat16",
        optimizer="adafactor",
        learning_rate=1e-2,
        schedule="rsqrt",
        warmup_steps=10_000,
    )


PRESETS = {
    "toy": GLaMConfig(),
    "1.9b": _large(768, 12, 12, 64, 32_000),
    "27b": _large(2048, 24, 16, 128, 32_000),
    "143b": _large(4096, 32, 32, 128, 32_000),
    "1.2t": _large(8192, 64, 128, 128, 256_000),
}


@partial(jax.jit, static_argnames=("c", "routed"))
def init_layer(key: jax.Array, c: GLaMConfig, routed: bool) -> L.Params:
    """One decoder layer, with a dense ("mlp") or a routed ("moe") feed-forward."""
    k1, k2, k3 = jax.random.split(key, 3)
    out_std = 0.02 / (2 * c.layers) ** 0.5
    layer = {
        "norm1": L.rms_norm_init(c.hidden, c.param_dtype),
        "attn": L.attention_init(k1, c.hidden, c.heads, c.param_dtype, out_std, c.head),
        "positions": L.normal(k2, (BUCKETS, c.heads), c.param_dtype),
        "norm2": L.rms_norm_init(c.hidden, c.param_dtype),
    }
    if routed:
        return {**layer, "moe": moe_init(k3, c.hidden, c.spec, c.param_dtype, out_std)}
    return {**layer, "mlp": L.gated_mlp_init(k3, c.hidden, c.ffn, c.param_dtype, out_std)}


# Under a jit of its own a layer is traced once for all that are alike: deep models are traced in no time.
@partial(jax.jit, static_argnames="spec")
def decoder_layer(p: L.Params, x: jax.Array, spec: Experts) -> tuple[jax.Array, MoEAux | None]:
    """Attention and feed-forward, each added to the residual stream: [b, s, d] -> [b, s, d], and the router's say."""
    y = L.rms_norm(p["norm1"], x)
    x = x + L.attention(p["attn"], y, y, L.causal(x.shape[1]), relative_bias(p["positions"], x.shape[1]))
    y = L.rms_norm(p["norm2"], x)
    if "mlp" in p:
        return x + L.gated_mlp(p["mlp"], y, jax.nn.gelu), None
    y, aux = moe_layer(p["moe"], y, spec)
    return x + y, aux


def make(family: Family, preset: str, c: GLaMConfig) -> Recipe:
    """Builds the recipe; odd layers are routed."""
    spec = c.spec

    def init(key: jax.Array) -> tuple[Pytree, None]:
        k_embed, k_layers = jax.random.split(key)
        keys = enumerate(jax.random.split(k_layers, c.layers))
        return {
            "embed": L.normal(k_embed, (c.vocab, c.hidden), c.param_dtype),
            "layers": [init_layer(k, c, routed=i % 2 == 1) for i, k in keys],
            "norm": L.rms_norm_init(c.hidden, c.param_dtype),
        }, None

    def loss(params: Pytree, batch: Batch, key: jax.Array | None, stats: None) -> LossOut:
        x = params["embed"][batch["tokens"]].astype(c.compute_dtype)
        run = jax.checkpoint(decoder_layer, static_argnums=2) if c.remat else decoder_layer
        routed = []
        for layer in params["layers"]:
            x, aux = run(layer, x, spec)
            if aux is not None:
                routed.append(aux)
        x = L.rms_norm(params["norm"], x)
        logits = jnp.einsum("bsd,vd->bsv", x, params["embed"].astype(x.dtype))
        cross_entropy = L.cross_entropy(logits, batch["targets"])
        added, losses = router_loss(routed, spec)
        return cross_entropy + added, ({"cross_entropy": cross_entropy, **losses}, None)

    return make_recipe(
        family,
        preset,
        c,
        init=init,
        loss=loss,
        unused=lambda params: c.layers // 2 * spec.idle_parameters(c.hidden),
        **token_batches(c.batch_size, c.sequence, c.vocab),
    )


FAMILY = Family(
    name="glam",
    summary="decoder with top-2 experts in every other layer, relative positions, gated GELU; plain JAX",
    source="Du et al. 2021 (GLaM)",
    presets=PRESETS,
    make=make,
)
