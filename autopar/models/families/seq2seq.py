"""Translation: the encoder-decoder Transformer, post-LN (2017) or pre-LN, sentences padded to one length; plain JAX.

Every decoder layer reads the encoder's output, so that this one value is wanted all the way to the loss. Padding is
told from the data (id 0), and the loss is a mean over the target words of the whole batch, however they are spread.

Parameters: E 12 d^2 + D 16 d^2 (feed-forward factor 4) + V d for the one embedding of source, target and output (3 V d
if they are apart), plus biases and norms. Positions are sines, which are computed. With heads of size k and a
feed-forward factor F it is E (4 d h k + 2 F d^2) + D (8 d h k + 2 F d^2) in place of the first two terms. "base" has
6 x 28 x 512^2 = 44.0 million in its layers and 18.9 for the 37,000 words that the paper names, 63 million where it
prints 65: its table of variations goes with 41,000 words throughout, "big" (213 million, 214 here) with 36,000.

`frozen="encoder"` trains the decoder alone on an encoder that stays as it is, as when fine-tuning: no gradient flows
into it, and it draws no dropout.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from autopar.models.data.sentences import FIRST_WORD, PADDING, sentences
from autopar.models.layers import plain as L
from autopar.models.recipe import Batch, Config, Family, LossOut, Pytree, Recipe, make_recipe, unknown

FROZEN = ("", "encoder")


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig(Config):
    """Sizes: `layers` in the encoder and `decoder_layers` after it; sentences of up to `source` and `target` ids.

    `head` is the size of one attention head (None: hidden / heads). `pre_norm` normalises what goes into each block
    and once more what leaves encoder and decoder, in place of the sum after each block: deep models need it.
    `smoothing` is the share of each target's probability that is spread over the vocabulary. `tied` uses one embedding
    for source, target and output. `frozen` is "encoder", or empty to train everything.
    """

    hidden: int = 64
    layers: int = 2
    decoder_layers: int = 2
    heads: int = 8
    head: int | None = None
    source: int = 32
    target: int = 16
    vocab: int = 256
    ffn_factor: int = 4
    dropout: float = 0.1
    smoothing: float = 0.1
    tied: bool = True
    pre_norm: bool = False
    frozen: str = ""

    def __post_init__(self) -> None:
        if self.head is None and self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        if self.hidden % 2:
            raise ValueError(f"hidden ({self.hidden}) must be even: positions are pairs of a sine and a cosine")
        if self.vocab <= FIRST_WORD or self.target < 2:
            raise ValueError(
                f"a vocabulary of {self.vocab} and {self.target} target ids were asked for; ids 0 to {FIRST_WORD - 1} "
                "mean padding, begin and end, and a sentence ends with one: give at least 4 and 2"
            )
        for name in ("dropout", "smoothing"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.frozen not in FROZEN:
            raise ValueError(unknown("part to freeze", self.frozen, FROZEN))
        if self.frozen and self.tied:
            raise ValueError(
                "frozen='encoder' was asked for, but with tied=True the decoder goes on training the embedding that "
                "the encoder reads; pass tied=False"
            )


def _large(hidden: int, heads: int) -> Seq2SeqConfig:
    # About 25,000 ids of each language in a batch, and 37,000 byte pairs.
    return Seq2SeqConfig(
        hidden=hidden,
        layers=6,
        decoder_layers=6,
        heads=heads,
        source=96,
        target=96,
        vocab=37_000,
        batch_size=256,
        dtype="bfloat16",
        learning_rate=1e-4,
    )


PRESETS = {"toy": Seq2SeqConfig(), "base": _large(512, 8), "big": _large(1024, 16)}


def init_layer(key: jax.Array, c: Seq2SeqConfig, crosses: bool) -> L.Params:
    """One layer; one of the decoder also has attention across, to the encoder's output."""
    keys = jax.random.split(key, 3)
    std = c.hidden**-0.5
    layer = {
        "attn": L.attention_init(keys[0], c.hidden, c.heads, c.param_dtype, std, c.head),
        "ln1": L.layer_norm_init(c.hidden, c.param_dtype),
        "mlp": L.mlp_init(keys[1], c.hidden, c.ffn_factor * c.hidden, c.param_dtype, std),
        "ln2": L.layer_norm_init(c.hidden, c.param_dtype),
    }
    if crosses:
        layer["across"] = L.attention_init(keys[2], c.hidden, c.heads, c.param_dtype, std, c.head)
        layer["ln_across"] = L.layer_norm_init(c.hidden, c.param_dtype)
    return layer


def embed(table: jax.Array, ids: jax.Array, c: Seq2SeqConfig) -> jax.Array:
    """Rows of the table, scaled up, plus the sines of their positions: [b, s] -> [b, s, d]."""
    positions = L.sinusoids(jnp.arange(ids.shape[1], dtype=c.param_dtype), c.hidden)
    return (table[ids] * c.hidden**0.5 + positions).astype(c.compute_dtype)


def encode(p: Pytree, table: jax.Array, source: jax.Array, key: jax.Array | None, c: Seq2SeqConfig) -> jax.Array:
    """Each word of the source in its context: ids [b, s] -> [b, s, d]."""
    visible = (source != PADDING)[:, None, None, :]
    keys = _keys(key, 1 + 2 * len(p["layers"]))
    x = L.dropout(next(keys), embed(table, source, c), c.dropout)
    for layer in p["layers"]:
        y = _before(layer["ln1"], x, c)
        x = _after(layer["ln1"], x, L.attention(layer["attn"], y, y, visible), next(keys), c)
        y = _before(layer["ln2"], x, c)
        x = _after(layer["ln2"], x, L.mlp(layer["mlp"], y, jax.nn.relu), next(keys), c)
    return L.layer_norm(p["ln_f"], x) if c.pre_norm else x


def decode(
    p: Pytree,
    table: jax.Array,
    tokens: jax.Array,
    memory: jax.Array,
    heard: jax.Array,
    key: jax.Array | None,
    c: Seq2SeqConfig,
) -> jax.Array:
    """What follows each target word: ids [b, t], encoder output [b, s, d] and its mask [b, 1, 1, s] -> [b, t, d].

    Padding comes last, so that the causal mask hides it from all words whose loss counts.
    """
    visible = L.causal(tokens.shape[1])
    keys = _keys(key, 1 + 3 * len(p["layers"]))
    x = L.dropout(next(keys), embed(table, tokens, c), c.dropout)
    for layer in p["layers"]:
        y = _before(layer["ln1"], x, c)
        x = _after(layer["ln1"], x, L.attention(layer["attn"], y, y, visible), next(keys), c)
        y = _before(layer["ln_across"], x, c)
        x = _after(layer["ln_across"], x, L.attention(layer["across"], y, memory, heard), next(keys), c)
        y = _before(layer["ln2"], x, c)
        x = _after(layer["ln2"], x, L.mlp(layer["mlp"], y, jax.nn.relu), next(keys), c)
    return L.layer_norm(p["ln_f"], x) if c.pre_norm else x


def _before(norm: L.Params, x: jax.Array, c: Seq2SeqConfig) -> jax.Array:
    """What goes into a block."""
    return L.layer_norm(norm, x) if c.pre_norm else x


def _after(norm: L.Params, x: jax.Array, y: jax.Array, key: jax.Array | None, c: Seq2SeqConfig) -> jax.Array:
    """The residual stream `x` with a block's result `y`."""
    x = x + L.dropout(key, y, c.dropout)
    return x if c.pre_norm else L.layer_norm(norm, x)


def _keys(key: jax.Array | None, n: int) -> Iterator[jax.Array | None]:
    return iter([None] * n if key is None else jax.random.split(key, n))


def make(family: Family, preset: str, c: Seq2SeqConfig) -> Recipe:
    """Builds the recipe."""
    shape = (c.vocab, c.hidden)

    def init(key: jax.Array) -> tuple[Pytree, None]:
        keys = jax.random.split(key, 5)
        tables = [L.normal(k, shape, c.param_dtype, c.hidden**-0.5) for k in keys[: 1 if c.tied else 3]]
        encoder: L.Params = {"layers": [init_layer(k, c, False) for k in jax.random.split(keys[3], c.layers)]}
        decoder: L.Params = {"layers": [init_layer(k, c, True) for k in jax.random.split(keys[4], c.decoder_layers)]}
        if c.pre_norm:
            encoder["ln_f"], decoder["ln_f"] = (L.layer_norm_init(c.hidden, c.param_dtype) for _ in range(2))
        if c.tied:
            return {"embed": tables[0], "encoder": encoder, "decoder": decoder}, None
        encoder["embed"], decoder["embed"], decoder["output"] = tables
        return {"encoder": encoder, "decoder": decoder}, None

    def loss(params: Pytree, batch: Batch, key: jax.Array | None, stats: None) -> LossOut:
        encoder, decoder = params["encoder"], params["decoder"]
        k_encoder, k_decoder = (None, None) if key is None else jax.random.split(key)
        table = params["embed"] if c.tied else encoder["embed"]
        if c.frozen:
            memory = jax.lax.stop_gradient(encode(encoder, table, batch["source"], None, c))
        else:
            memory = encode(encoder, table, batch["source"], k_encoder, c)
        heard = (batch["source"] != PADDING)[:, None, None, :]
        table, output = (table, table) if c.tied else (decoder["embed"], decoder["output"])
        x = decode(decoder, table, batch["tokens"], memory, heard, k_decoder, c)
        logits = jnp.einsum("btd,vd->btv", x, output.astype(x.dtype)).astype(c.param_dtype)
        counts = (batch["targets"] != PADDING).astype(c.param_dtype)
        words = counts.sum()
        smoothed = (L.smoothed_cross_entropy(logits, batch["targets"], c.smoothing) * counts).sum() / words
        hits = (jnp.argmax(logits, axis=-1) == batch["targets"]).astype(c.param_dtype)
        return smoothed, ({"accuracy": (hits * counts).sum() / words, "words": words}, None)

    ids = {"source": c.source, "tokens": c.target, "targets": c.target}
    return make_recipe(
        family,
        preset,
        c,
        init=init,
        loss=loss,
        batch=lambda seed: sentences(seed, c.batch_size, c.source, c.target, c.vocab),
        batch_spec={name: jax.ShapeDtypeStruct((c.batch_size, n), np.int32) for name, n in ids.items()},
        dropout=c.dropout > 0,
        frozen=(c.frozen,) if c.frozen else (),
        unit="tokens",
        units_per_example=c.target,
    )


FAMILY = Family(
    name="seq2seq",
    summary="translation: post-LN encoder and decoder, padded sentences, one embedding; plain JAX",
    source="Vaswani et al. 2017 (Attention Is All You Need)",
    presets=PRESETS,
    make=make,
)
