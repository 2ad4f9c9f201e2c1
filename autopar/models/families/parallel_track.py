"""Parallel-track mixture of experts: narrow decoders side by side that meet every few layers; plain JAX.

The model is `blocks` track blocks (Apple 2025, section 2.2). At the start of one all `tracks` take the same input; each
passes it through `depth` layers of its own, attention, norms and experts included; at the end their outputs are
averaged. So tracks on devices of their own meet `blocks` times, where tensor parallelism makes them meet twice in every
layer. All parameters of a track block have the tracks as their first dim, and layers are mapped over it.

A layer is grouped-query attention, with normalised queries and keys, and a SwiGLU feed-forward, each on an
RMS-normalised copy of the residual stream. Every other feed-forward is `experts`, of which a token is sent to two. One
attention in `global_every` sees everything and knows no positions; the others have rotary ones and see `window` tokens.

Parameters, with T tracks of L = blocks x depth layers, h query and n key heads of k numbers: T L (2 d h k + 2 d n k)
+ T ceil(L/2) 3 d F + T floor(L/2) (3 E d M + d E) + V d for the embedding, which is the head too, plus norms.

Published are the structure, track blocks of 4 layers, experts in every other one, 3 local attentions to a global one,
windows of 4096 and a vocabulary of 150,000. Not published are the numbers of tracks, layers and experts, all widths,
the router and the sum of parameters: those of the preset "64b" are ours, with the 8 tracks of Wang et al. 2026. Experts
have a fixed number of slots, where the paper drops no token, and a loss balances them.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from autopar.models.data.tokens import token_batches
from autopar.models.layers import plain as L
from autopar.models.layers.experts import Experts, MoEAux, moe_init, moe_layer, router_loss
from autopar.models.layers.rotary import rotary
from autopar.models.recipe import Batch, Config, Family, LossOut, Pytree, Recipe, make_recipe


@dataclass(frozen=True, kw_only=True)
class ParallelTrackConfig(Config):
    """Sizes, each of one track: `heads` query heads of `head` numbers share `kv_heads` keys and values.

    Attributes:
        tracks: decoders side by side.
        blocks: how often they meet.
        depth: layers in between.
        window: how many tokens, itself included, a token sees in local attention.
        global_every: one layer in so many, the last of them, has global attention.
    """

    tracks: int = 8
    blocks: int = 1
    depth: int = 2
    hidden: int = 16
    heads: int = 2
    kv_heads: int = 1
    head: int = 8
    ffn: int = 48
    experts: int = 4
    expert_ffn: int = 32
    group: int = 32
    capacity_factor: float = 1.25
    aux_weight: float = 0.01
    window: int = 8
    global_every: int = 2
    rope_theta: float = 500_000.0
    sequence: int = 32
    vocab: int = 256

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head % 2:
            raise ValueError(f"head ({self.head}) must be even: rotary positions turn pairs of numbers in each head")
        self.spec.check_groups(self.batch_size, self.sequence)

    @property
    def layers(self) -> int:
        """Layers of a track."""
        return self.blocks * self.depth

    @property
    def spec(self) -> Experts:
        """The router and the experts of one layer of one track."""
        return Experts(
            experts=self.experts,
            group=self.group,
            capacity_factor=self.capacity_factor,
            aux_weight=self.aux_weight,
            ffn=self.expert_ffn,
            gated=True,
        )

    def is_global(self, layer: int) -> bool:
        """Whether a layer's attention sees everything."""
        return layer % self.global_every == self.global_every - 1


PRESETS = {
    "toy": ParallelTrackConfig(),
    "64b": ParallelTrackConfig(
        blocks=12,
        depth=4,
        hidden=2048,
        heads=16,
        kv_heads=4,
        head=128,
        ffn=5632,
        experts=16,
        expert_ffn=2816,
        group=1024,
        window=4096,
        global_every=4,
        sequence=8192,
        vocab=150_000,
        batch_size=1024,
        dtype="bfloat16",
        learning_rate=3e-4,
    ),
}


def init_layer(key: jax.Array, c: ParallelTrackConfig, routed: bool) -> L.Params:
    """One layer of one track, with a dense ("mlp") or a routed ("moe") feed-forward."""
    kq, kk, kv, ko, kf = jax.random.split(key, 5)
    dtype, out_std, per_key = c.param_dtype, 0.02 / (2 * c.layers) ** 0.5, c.heads // c.kv_heads
    attention = {
        "wq": L.normal(kq, (c.hidden, c.kv_heads, per_key, c.head), dtype),
        "wk": L.normal(kk, (c.hidden, c.kv_heads, c.head), dtype),
        "wv": L.normal(kv, (c.hidden, c.kv_heads, c.head), dtype),
        "wo": L.normal(ko, (c.kv_heads, per_key, c.head, c.hidden), dtype, out_std),
        "q_norm": L.rms_norm_init(c.head, dtype),
        "k_norm": L.rms_norm_init(c.head, dtype),
    }
    layer = {"norm1": L.rms_norm_init(c.hidden, dtype), "attn": attention, "norm2": L.rms_norm_init(c.hidden, dtype)}
    if routed:
        return {**layer, "moe": moe_init(kf, c.hidden, c.spec, dtype, out_std)}
    return {**layer, "mlp": L.gated_mlp_init(kf, c.hidden, c.ffn, dtype, out_std)}


def attention(p: L.Params, x: jax.Array, c: ParallelTrackConfig, everything: bool) -> jax.Array:
    """Causal attention of one track, to everything or to a window: [b, s, d] -> [b, s, d].

    In einsums n is the key head, g the query head within it.
    """
    w = {name: p[name].astype(x.dtype) for name in ("wq", "wk", "wv", "wo")}
    q = L.rms_norm(p["q_norm"], jnp.einsum("bsd,dngk->bsngk", x, w["wq"]))
    k = L.rms_norm(p["k_norm"], jnp.einsum("btd,dnk->btnk", x, w["wk"]))
    v = jnp.einsum("btd,dnk->btnk", x, w["wv"])
    visible = L.causal(x.shape[1])
    if not everything:
        q, k = rotary(q, c.rope_theta), rotary(k, c.rope_theta)
        position = jnp.arange(x.shape[1])
        visible = visible & (position[:, None] - position[None, :] < c.window)
    scores = jnp.einsum("bsngk,btnk->bngst", q, k) * c.head**-0.5
    scores = jnp.where(visible, scores.astype(jnp.promote_types(x.dtype, jnp.float32)), L.MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
    return jnp.einsum("bsngk,ngkd->bsd", jnp.einsum("bngst,btnk->bsngk", weights, v), w["wo"])


def track_layer(p: L.Params, x: jax.Array, c: ParallelTrackConfig, everything: bool) -> tuple[jax.Array, MoEAux | None]:
    """One layer of one track: [b, s, d] -> [b, s, d], and what the router says, None if there is none."""
    x = x + attention(p["attn"], L.rms_norm(p["norm1"], x), c, everything)
    y = L.rms_norm(p["norm2"], x)
    if "mlp" in p:
        return x + L.gated_mlp(p["mlp"], y), None
    y, aux = moe_layer(p["moe"], y, c.spec, activation=jax.nn.silu)
    return x + y, aux


# Under its own jit a track block is traced once for all that are alike.
@partial(jax.jit, static_argnames=("c", "everything"))
def track_block(
    layers: list[L.Params], x: jax.Array, c: ParallelTrackConfig, everything: tuple[bool, ...]
) -> tuple[jax.Array, list[MoEAux]]:
    """All tracks, from where they leave each other to where they meet.

    Args:
        layers: of `depth` layers the parameters, each with the tracks as first dim.
        x: [b, s, d], what all tracks begin with.
        c: sizes.
        everything: whether the attention of each of them is global.

    Returns:
        [b, s, d], the mean over tracks; and what the routers say, with the tracks as first dim.
    """
    said: list[MoEAux] = []
    by_track = x
    for i, layer in enumerate(layers):
        one = partial(track_layer, c=c, everything=everything[i])
        by_track, aux = jax.vmap(one, in_axes=(0, None if i == 0 else 0))(layer, by_track)
        said += [aux] if aux else []
    return by_track.mean(axis=0), said


def make(family: Family, preset: str, c: ParallelTrackConfig) -> Recipe:
    """Builds the recipe."""

    def init(key: jax.Array) -> tuple[Pytree, None]:
        k_embed, k_layers = jax.random.split(key)
        keys = jax.random.split(k_layers, (c.blocks, c.depth, c.tracks))
        layers = [
            [
                jax.vmap(partial(init_layer, c=c, routed=(i * c.depth + j) % 2 == 1))(keys[i, j])
                for j in range(c.depth)
            ]
            for i in range(c.blocks)
        ]  # fmt: skip
        return {
            "embed": L.normal(k_embed, (c.vocab, c.hidden), c.param_dtype),
            "blocks": layers,
            "norm": L.rms_norm_init(c.hidden, c.param_dtype),
        }, None

    def loss(params: Pytree, batch: Batch, key: jax.Array | None, stats: None) -> LossOut:
        x = params["embed"][batch["tokens"]].astype(c.compute_dtype)
        said: list[MoEAux] = []
        for i, layers in enumerate(params["blocks"]):
            everything = tuple(c.is_global(i * c.depth + j) for j in range(c.depth))
            x, aux = track_block(layers, x, c, everything)
            said += aux
        x = L.rms_norm(params["norm"], x)
        logits = jnp.einsum("bsd,vd->bsv", x, params["embed"].astype(x.dtype))
        cross_entropy = L.cross_entropy(logits, batch["targets"])
        extra, losses = router_loss(said, c.spec)
        return cross_entropy + extra, ({"cross_entropy": cross_entropy, **losses}, None)

    return make_recipe(
        family,
        preset,
        c,
        init=init,
        loss=loss,
        unused=lambda params: c.tracks * (c.layers // 2) * c.spec.idle_parameters(c.hidden),
        **token_batches(c.batch_size, c.sequence, c.vocab),
    )


FAMILY = Family(
    name="parallel-track",
    summary="decoders side by side, with experts of their own, that meet every few layers; plain JAX",
    source="Apple 2025 (Apple Intelligence Foundation Language Models); Wang et al. 2026 (Parallel Track Transformers)",
    presets=PRESETS,
    make=make,
)
