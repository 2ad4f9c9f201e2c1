"""The dense language models of GSPMD, wide and deep: 64 billion to a trillion parameters, layers scanned.

The decoder of `gpt`, with a feed-forward eight times as wide as the model and attention of four times its width (heads
of 256). The paper names its sizes by powers of two; what they hold is 69, 138, 275, 550 and 1101 billion. "174b" is
the size of GPT-3, in its authors' public code as is "128b" (174.4 and 137.7 billion there, with 32,000 words).

Deviations: layer norms and dense layers have biases, and positions are learned; all three are below 0.1% of the count.

Parameters: L (4 d h k + 2 F d^2) + V d + S d, F = 8 the feed-forward factor (4 in "174b").
"""

from functools import partial

from autopar.models.families.gpt import GPTConfig, make, scanned
from autopar.models.recipe import Family


def _large(hidden: int, layers: int, heads: int, head: int = 256, ffn_factor: int = 8) -> GPTConfig:
    return GPTConfig(
        hidden=hidden,
        layers=layers,
        heads=heads,
        head=head,
        ffn_factor=ffn_factor,
        sequence=1024,
        vocab=32_000,
        dropout=0.0,
        batch_size=1024,
        dtype="bfloat16",
        optimizer="adafactor",
        learning_rate=1e-4,
    )


PRESETS = {
    "toy": GPTConfig(hidden=32, heads=8, head=16, ffn_factor=8, sequence=16, dropout=0.0),
    "64b": _large(8192, 32, 128),
    "128b": _large(8192, 64, 128),
    "174b": _large(12_288, 96, 96, head=128, ffn_factor=4),
    "256b": _large(8192, 128, 128),
    "512b": _large(8192, 256, 128),
    "1t": _large(16_384, 128, 256),
}

FAMILY = Family(
    name="gspmd-dense",
    summary="pre-LN decoder with wide attention and feed-forward, layers scanned; plain JAX",
    source="Xu et al. 2021 (GSPMD)",
    presets=PRESETS,
    make=partial(make, stack=True, run_layers=scanned),
)
