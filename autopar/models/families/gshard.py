"""GShard: translation from many languages, by an encoder and a decoder with experts in every other layer; plain JAX.

Encoder and decoder have half of the layers each, so that L/2 of all have experts, as the paper's "experts total" says.
Blocks are normalised before, feed-forwards are ReLU, the target's embedding is the output layer too.

With `router="task"` an example goes to experts by its language (Task-MoE, Kudugunta et al. 2021), of which a table is
learned. It takes a slot as a whole, so that none of its words is dropped for want of one; groups should then have as
many examples as there are experts, or more.

Parameters: L/2 (12 d h k + 2 d F + E (2 d F + d)) + (Vs + Vt) d, plus biases and norms. With the paper's d = 1024,
F = 8192, h = 16 and k = 128 (appendix A.2) that is 619 billion for "600b", where the 18 x 2048 experts alone have
2 d F = 16.8 million each, 618.5 billion: no model of these widths has 600. Its table 1 prints fractions of 600 by the
number of experts: 200 (206.5 here), 150 (155.5), 50 (51.9), 37 (39.5) and 12.5 (13.2); and 1 trillion (1.032).

Deviations: the second expert is always used; sentences are padded where the paper packs them, and padding is routed
as words are; there is no dropout in attention.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from autopar.models.data.sentences import FIRST_WORD, PADDING, in_languages, sentences
from autopar.models.layers import plain as L
from autopar.models.layers.experts import Experts, MoEAux, moe_init, moe_layer, router_loss
from autopar.models.recipe import Batch, Config, Family, LossOut, Pytree, Recipe, make_recipe, unknown

ROUTERS = ("top2", "task")


@dataclass(frozen=True, kw_only=True)
class GShardConfig(Config):
    """Sizes: `layers` of encoder and decoder together, sentences of up to `source` and `target` ids.

    Heads have `head` numbers, feed-forwards and experts the width `ffn`; `group` ids are routed together. `remat` keeps
    what goes into each layer and computes the rest again in the backward pass, as the paper does with 36 layers.
    """

    hidden: int = 32
    layers: int = 4
    heads: int = 8
    head: int = 8
    ffn: int = 64
    experts: int = 8
    router: str = "top2"
    languages: int = 8
    source: int = 16
    target: int = 16
    source_vocab: int = 128
    target_vocab: int = 64
    group: int = 32
    capacity_factor: float = 1.0
    aux_weight: float = 0.01
    dropout: float = 0.1
    remat: bool = False

    def __post_init__(self) -> None:
        if self.router not in ROUTERS:
            raise ValueError(unknown("router", self.router, ROUTERS))
        if self.layers % 2 or self.hidden % 2:
            raise ValueError(
                f"layers ({self.layers}) must be even, half of them in the encoder, and so must hidden "
                f"({self.hidden}): positions are pairs of a sine and a cosine"
            )
        if not FIRST_WORD < self.target_vocab <= self.source_vocab or self.target < 2:
            raise ValueError(
                f"words of {self.source_vocab} source and {self.target_vocab} target ids were asked for, and "
                f"{self.target} target ids in a sentence; give at least 4 and 2, and no fewer source than target ids"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        for sequence in (self.source, self.target):
            self.spec.check_groups(self.batch_size, sequence)

    @property
    def spec(self) -> Experts:
        """The experts of one layer."""
        return Experts(
            router=self.router,
            experts=self.experts,
            group=self.group,
            capacity_factor=self.capacity_factor,
            aux_weight=self.aux_weight,
            ffn=self.ffn,
        )


def _large(experts: int, layers: int, dtype: str = "float32") -> GShardConfig:
    # Four million ids in a batch, half of each side. Computed in float32 for stability, but for the largest.
    return GShardConfig(
        hidden=1024,
        layers=layers,
        heads=16,
        head=128,
        ffn=8192,
        experts=experts,
        languages=100,
        source=1024,
        target=1024,
        source_vocab=64_000,
        target_vocab=32_000,
        group=1024,
        remat=layers >= 36,
        batch_size=2048,
        dtype=dtype,
        optimizer="adafactor",
        learning_rate=1e-2,
        schedule="rsqrt",
        warmup_steps=10_000,
    )


PRESETS = {
    "toy": GShardConfig(),
    "12.5b": _large(128, 12),
    "37b": _large(128, 36),
    "50b": _large(512, 12),
    "150b": _large(512, 36),
    "200b": _large(2048, 12),
    "600b": _large(2048, 36),
    "1t": _large(2048, 60, "bfloat16"),
}


@partial(jax.jit, static_argnames=("c", "routed", "crosses"))
def init_layer(key: jax.Array, c: GShardConfig, *, routed: bool, crosses: bool) -> L.Params:
    """One layer, with a dense ("mlp") or a routed ("moe") feed-forward; of the decoder if it attends across, too."""
    k_self, k_across, k_ffn = jax.random.split(key, 3)
    std = c.hidden**-0.5
    layer = {name: L.layer_norm_init(c.hidden, c.param_dtype) for name in ("ln1", "ln2")}
    layer["attn"] = L.attention_init(k_self, c.hidden, c.heads, c.param_dtype, std, c.head)
    if crosses:
        layer["ln_across"] = L.layer_norm_init(c.hidden, c.param_dtype)
        layer["across"] = L.attention_init(k_across, c.hidden, c.heads, c.param_dtype, std, c.head)
    if routed:
        return {**layer, "moe": moe_init(k_ffn, c.hidden, c.spec, c.param_dtype, std)}
    return {**layer, "mlp": L.mlp_init(k_ffn, c.hidden, c.ffn, c.param_dtype, std)}


# Under a jit of its own a layer is traced once for all that are alike: deep models are traced in no time.
@partial(jax.jit, static_argnames="c")
def run_layer(
    p: L.Params,
    x: jax.Array,
    visible: jax.Array,
    memory: tuple[jax.Array, jax.Array] | None,
    task: jax.Array | None,
    key: jax.Array | None,
    c: GShardConfig,
) -> tuple[jax.Array, MoEAux | None]:
    """Attention to itself, in the decoder to the encoder, and feed-forward, each added to the residual stream.

    Args:
        p: what `init_layer` returns.
        x: [b, s, d].
        visible: as in `attention`.
        memory: the encoder's output [b, t, d] and its visible positions; None in the encoder.
        task: [b, d], embedded languages; None if they do not route.
        key: of dropout; None without.
        c: sizes.

    Returns:
        [b, s, d]; and what the router says, None for a dense layer.
    """
    keys = [None] * 3 if key is None else jax.random.split(key, 3)
    y = L.layer_norm(p["ln1"], x)
    x = x + L.dropout(keys[0], L.attention(p["attn"], y, y, visible), c.dropout)
    if memory is not None:
        y = L.attention(p["across"], L.layer_norm(p["ln_across"], x), *memory)
        x = x + L.dropout(keys[1], y, c.dropout)
    y, aux = L.layer_norm(p["ln2"], x), None
    if "moe" in p:
        y, aux = moe_layer(p["moe"], y, c.spec, task=task, activation=jax.nn.relu)
    else:
        y = L.mlp(p["mlp"], y, jax.nn.relu)
    return x + L.dropout(keys[2], y, c.dropout), aux


def run_stack(
    p: Pytree,
    ids: jax.Array,
    visible: jax.Array,
    memory: tuple[jax.Array, jax.Array] | None,
    task: jax.Array | None,
    key: jax.Array | None,
    c: GShardConfig,
) -> tuple[jax.Array, list[MoEAux]]:
    """Encoder or decoder: ids [b, s] -> [b, s, d], and what its routers say. The rest as in `run_layer`."""
    layers = p["layers"]
    keys = [None] * (len(layers) + 1) if key is None else jax.random.split(key, len(layers) + 1)
    positions = L.sinusoids(jnp.arange(ids.shape[1], dtype=c.param_dtype), c.hidden)
    x = (p["embed"][ids] * c.hidden**0.5 + positions).astype(c.compute_dtype)
    x = L.dropout(keys[-1], x, c.dropout)
    run = jax.checkpoint(run_layer, static_argnums=6) if c.remat else run_layer
    said = []
    for layer, k in zip(layers, keys, strict=False):
        x, aux = run(layer, x, visible, memory, task, k, c)
        said += [] if aux is None else [aux]
    return L.layer_norm(p["ln_f"], x), said


def make(family: Family, preset: str, c: GShardConfig) -> Recipe:
    """Builds the recipe; odd layers of encoder and decoder are routed."""
    spec = c.spec

    def init_stack(key: jax.Array, vocab: int, crosses: bool) -> L.Params:
        k_embed, k_layers = jax.random.split(key)
        keys = enumerate(jax.random.split(k_layers, c.layers // 2))
        return {
            "embed": L.normal(k_embed, (vocab, c.hidden), c.param_dtype, c.hidden**-0.5),
            "layers": [init_layer(k, c, routed=i % 2 == 1, crosses=crosses) for i, k in keys],
            "ln_f": L.layer_norm_init(c.hidden, c.param_dtype),
        }

    def init(key: jax.Array) -> tuple[Pytree, None]:
        k_encoder, k_decoder, k_languages = jax.random.split(key, 3)
        params: L.Params = {
            "encoder": init_stack(k_encoder, c.source_vocab, False),
            "decoder": init_stack(k_decoder, c.target_vocab, True),
        }
        if spec.by_example:
            params["languages"] = L.normal(k_languages, (c.languages, c.hidden), c.param_dtype, 1.0)
        return params, None

    def loss(params: Pytree, batch: Batch, key: jax.Array | None, stats: None) -> LossOut:
        k_encoder, k_decoder = (None, None) if key is None else jax.random.split(key)
        task = params["languages"][batch["language"]] if spec.by_example else None
        heard = (batch["source"] != PADDING)[:, None, None, :]
        x, routed = run_stack(params["encoder"], batch["source"], heard, None, task, k_encoder, c)
        # Padding comes last, so that the causal mask hides it from all words whose loss counts.
        visible = L.causal(c.target)
        x, more = run_stack(params["decoder"], batch["tokens"], visible, (x, heard), task, k_decoder, c)
        logits = jnp.einsum("btd,vd->btv", x, params["decoder"]["embed"].astype(x.dtype)).astype(c.param_dtype)
        counts = (batch["targets"] != PADDING).astype(c.param_dtype)
        words = counts.sum()
        cross_entropy = (L.smoothed_cross_entropy(logits, batch["targets"], 0.0) * counts).sum() / words
        added, losses = router_loss([*routed, *more], spec)
        return cross_entropy + added, ({"cross_entropy": cross_entropy, "words": words, **losses}, None)

    def batch(seed: int) -> Batch:
        pairs = sentences(seed, c.batch_size, c.source, c.target, c.target_vocab)
        pairs, language = in_languages(pairs, seed, c.languages, c.source_vocab)
        return {**pairs, "language": language} if spec.by_example else pairs

    shapes: dict[str, tuple[int, ...]] = {"source": (c.source,), "tokens": (c.target,), "targets": (c.target,)}
    if spec.by_example:
        shapes["language"] = ()
    return make_recipe(
        family,
        preset,
        c,
        init=init,
        loss=loss,
        batch=batch,
        batch_spec={n: jax.ShapeDtypeStruct((c.batch_size, *shape), np.int32) for n, shape in shapes.items()},
        dropout=c.dropout > 0,
        unit="tokens",
        units_per_example=c.target,
        unused=lambda params: c.layers // 4 * 2 * spec.idle_parameters(c.hidden),
    )


FAMILY = Family(
    name="gshard",
    summary="translation from many languages, experts in every other layer of encoder and decoder; plain JAX",
    source="Lepikhin et al. 2020 (GShard)",
    presets=PRESETS,
    make=make,
)
