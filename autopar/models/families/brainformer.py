"""Brainformer: stacked blocks of a searched order of attention, experts and dense feed-forwards; plain JAX.

A block is a list of sub-layers (Zhou et al. 2023, equation 1), each of "attention", "moe" or "ffn", in any order; each
works on a normalised copy of the residual stream. Feed-forwards are gated; experts choose the tokens they take, each
token being taken by one on average.

Parameters of a block, with h heads of k numbers, E experts of width M and dense feed-forwards of width F, for a, m and
f sub-layers of each kind: 4 a d h k + m (3 E d M + d E) + 3 f d F. Beside the blocks V d for the embedding, which is
the head too, and S d for positions; the paper leaves them out where it counts what a token uses.

Of Brainformer-1 the paper prints d = 1024 at its smallest scale, 8 sub-layers, capacity factor 1, how often the block
is repeated at each scale, and that dims grow by 2 and by 4; kinds and widths are in a figure (8). Those here follow
from its numbers: of all that the search space has (table 1), three choices give the total and the activated parameters
of both 1B64E and 8B64E (table 3) within 2%, and of these one has less attention than feed-forwards and expands by less
than 4, as the text says (2 attention, 3 routed, 3 dense; 20 heads). It does not give those of 100M32E, so that is no
preset. The order is ours: swapping two sub-layers hardly matters (section 6.2). Positions are learned, and norms are
layer norms, of which the paper says nothing.
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from autopar.models.data.tokens import token_batches
from autopar.models.layers import plain as L
from autopar.models.layers.experts import Experts, moe_init, moe_layer
from autopar.models.recipe import Batch, Config, Family, LossOut, Pytree, Recipe, make_recipe, unknown

KINDS = ("attention", "moe", "ffn")
BRAINFORMER_1 = ("attention", "moe", "ffn", "attention", "moe", "ffn", "moe", "ffn")


@dataclass(frozen=True, kw_only=True)
class BrainformerConfig(Config):
    """Sizes: `block` is repeated `blocks` times; attention has `heads` of `head` numbers each.

    Attributes:
        block: kinds of the sub-layers, in order.
        capacity_factor: how many experts take a token, on average.
        group: tokens that an expert chooses from.
    """

    block: tuple[str, ...] = ("attention", "moe", "ffn", "moe")
    blocks: int = 1
    hidden: int = 32
    heads: int = 8
    head: int = 8
    ffn: int = 96
    experts: int = 8
    expert_ffn: int = 64
    group: int = 32
    capacity_factor: float = 1.0
    sequence: int = 32
    vocab: int = 256

    def __post_init__(self) -> None:
        for kind in self.block:
            if kind not in KINDS:
                raise ValueError(unknown("kind of sub-layer", kind, KINDS))
        if "attention" not in self.block:
            raise ValueError("a block without attention mixes no tokens; put 'attention' into it")
        self.spec.check_groups(self.batch_size, self.sequence)

    @property
    def spec(self) -> Experts:
        """The router and its experts."""
        return Experts(
            router="expert-choice",
            top_k=1,
            experts=self.experts,
            group=self.group,
            capacity_factor=self.capacity_factor,
            ffn=self.expert_ffn,
            gated=True,
        )


def _large(scale: int, blocks: int) -> BrainformerConfig:
    """Model, hidden and attention dims of the searched block, times `scale` (section 3.2)."""
    return BrainformerConfig(
        block=BRAINFORMER_1,
        blocks=blocks,
        hidden=1024 * scale,
        heads=10 * scale,
        head=128,
        ffn=3072 * scale,
        experts=64,
        expert_ffn=2048 * scale,
        group=2048,
        sequence=1024,
        vocab=256_000,
        batch_size=1024,
        dtype="bfloat16",
        optimizer="adafactor",
        learning_rate=1e-3,
    )


PRESETS = {
    "toy": BrainformerConfig(),
    "1b64e": _large(2, 6),
    "8b64e": _large(4, 8),
}


def init_sublayer(key: jax.Array, kind: str, c: BrainformerConfig) -> L.Params:
    """A norm, and under its kind what the sub-layer computes."""
    out_std = 0.02 / (c.blocks * len(c.block)) ** 0.5
    norm = L.layer_norm_init(c.hidden, c.param_dtype)
    if kind == "attention":
        inner = L.attention_init(key, c.hidden, c.heads, c.param_dtype, out_std, c.head)
    elif kind == "moe":
        inner = moe_init(key, c.hidden, c.spec, c.param_dtype, out_std)
    else:
        inner = L.gated_mlp_init(key, c.hidden, c.ffn, c.param_dtype, out_std)
    return {"norm": norm, kind: inner}


# Under its own jit a sub-layer is traced once for all that are alike.
@partial(jax.jit, static_argnames="c")
def sublayer(p: L.Params, x: jax.Array, c: BrainformerConfig) -> jax.Array:
    """One sub-layer, added to the residual stream: [b, s, d] -> [b, s, d]."""
    y = L.layer_norm(p["norm"], x)
    if "attention" in p:
        return x + L.causal_attention(p["attention"], y)
    if "moe" in p:
        return x + moe_layer(p["moe"], y, c.spec)[0]
    return x + L.gated_mlp(p["ffn"], y, jax.nn.gelu)


def make(family: Family, preset: str, c: BrainformerConfig) -> Recipe:
    """Builds the recipe."""
    kinds = c.block * c.blocks

    def init(key: jax.Array) -> tuple[Pytree, None]:
        k_tokens, k_positions, k_layers = jax.random.split(key, 3)
        keys = jax.random.split(k_layers, len(kinds))
        return {
            "wte": L.normal(k_tokens, (c.vocab, c.hidden), c.param_dtype),
            "wpe": L.normal(k_positions, (c.sequence, c.hidden), c.param_dtype),
            "sublayers": [init_sublayer(k, kind, c) for k, kind in zip(keys, kinds, strict=True)],
            "ln_f": L.layer_norm_init(c.hidden, c.param_dtype),
        }, None

    def loss(params: Pytree, batch: Batch, key: jax.Array | None, stats: None) -> LossOut:
        x = (params["wte"][batch["tokens"]] + params["wpe"]).astype(c.compute_dtype)
        for p in params["sublayers"]:
            x = sublayer(p, x, c)
        x = L.layer_norm(params["ln_f"], x)
        logits = jnp.einsum("bsd,vd->bsv", x, params["wte"].astype(x.dtype))
        return L.cross_entropy(logits, batch["targets"]), ({}, None)

    return make_recipe(
        family,
        preset,
        c,
        init=init,
        loss=loss,
        unused=lambda params: Counter(kinds)["moe"] * c.spec.idle_parameters(c.hidden),
        **token_batches(c.batch_size, c.sequence, c.vocab),
    )


FAMILY = Family(
    name="brainformer",
    summary="decoder of searched blocks: attention, experts and dense feed-forwards in any order; plain JAX",
    source="Zhou et al. 2023 (Brainformers: Trading Simplicity for Efficiency)",
    presets=PRESETS,
    make=make,
)
