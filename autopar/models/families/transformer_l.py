"""Transformer-L, by which GPipe measures how large a model fits, and the deep Transformers it trains for translation.

The language model is the decoder of `gpt` with L layers of hidden size 2048, a feed-forward width of 8192 and 32 heads
on sequences of 1024. Embedding and output layer are apart, and positions are sinusoids: the paper says neither, but
with 32,000 words no other arrangement gives its parameter counts (282.2M at 3 layers, 83.9B at 1663).

The translation models T(L, F, A) are those of `seq2seq` with L layers in the encoder and as many in the decoder, all
normalised before each block, of hidden size 1024, feed-forward width F and A heads of 64. The paper does not say how
its 64,000 words are embedded: source, target and output have tables of their own here, without which 1.3 does not come
out. That gives 1.30, 1.30, 3.15 and 6.11 billion, published as 1.3, 1.3, 3 and 6: the layers of the third have 2.95 and
so leave no room for tables in 3.0. Its clipping of logits and its feed-forward layers scaled down with depth, against
divergence, are left out.

Parameters: 12 L d^2 + 2 V d, and L (12 d A 64 + 4 d F) + 3 V d, plus biases and norms.
"""

from functools import partial

from autopar.models.families.gpt import GPTConfig, unrolled
from autopar.models.families.gpt import make as make_decoder
from autopar.models.families.seq2seq import Seq2SeqConfig
from autopar.models.families.seq2seq import make as make_translation
from autopar.models.recipe import Family


def _decoder(layers: int, batch_size: int = 32) -> GPTConfig:
    return GPTConfig(
        hidden=2048,
        layers=layers,
        heads=32,
        sequence=1024,
        vocab=32_000,
        tied=False,
        sines=True,
        dropout=0.0,
        batch_size=batch_size,
        learning_rate=1e-4,
    )


def _translation(layers: int, ffn: int, heads: int) -> Seq2SeqConfig:
    # About 25,000 ids of each language in a batch, of which the paper also tries many more.
    hidden = 1024
    return Seq2SeqConfig(
        hidden=hidden,
        layers=layers,
        decoder_layers=layers,
        heads=heads,
        head=64,
        ffn_factor=ffn // hidden,
        source=96,
        target=96,
        vocab=64_000,
        tied=False,
        pre_norm=True,
        batch_size=256,
        dtype="bfloat16",
        learning_rate=1e-4,
    )


DECODERS = {"toy": GPTConfig(tied=False, sines=True, dropout=0.0)} | {
    str(layers): _decoder(layers) for layers in (3, 13, 24, 48, 103, 128, 415, 1663)
}
TRANSLATIONS = {
    "toy": Seq2SeqConfig(
        hidden=32, layers=1, decoder_layers=1, head=8, ffn_factor=8, source=16, tied=False, pre_norm=True
    ),
    "24-8192-16": _translation(24, 8192, 16),
    "12-16384-32": _translation(12, 16384, 32),
    "32-16384-32": _translation(32, 16384, 32),
    "64-16384-32": _translation(64, 16384, 32),
}

SOURCE = "Huang et al. 2018 (GPipe)"

DECODER = Family(
    name="transformer-l",
    summary="GPipe's language model: pre-LN decoder, sinusoids, an output layer of its own; plain JAX",
    source=SOURCE,
    presets=DECODERS,
    make=partial(make_decoder, stack=False, run_layers=unrolled),
)
TRANSLATION = Family(
    name="transformer-l-translation",
    summary="GPipe's deep translation models: pre-LN encoder and decoder, three embeddings; plain JAX",
    source=SOURCE,
    presets=TRANSLATIONS,
    make=make_translation,
)
