"""The dense language models of GSPMD, wide and deep: 64 billion to a trillion parameters, layers unrolled or scanned.

The decoder of `gpt`, with a feed-forward eight times as wide as the model and attention of four times its width (heads
of 256). A billion of the paper is 2^30: 64 of them are 68.7 and the largest is 1099.5 billion, where these hold 69.0,
137.7, 275.2, 550.1 and 1100.1; its authors' public code counts 137.7 and 1100.0 billion. "174b" is the size of GPT-3,
also of that code (174.4 billion there, with 32,000 words).

Deviations: layer norms and dense layers have biases, and positions are learned; all three are below 0.1% of the count.

Parameters: L (4 d h k + 2 F d^2) + V d + S d, F = 8 the feed-forward factor (4 in "174b").
"""

from functools import partial

from autopar.models.families.gpt import GPTConfig, make, scanned, unrolled
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

SOURCE = "Xu et al. 2021 (GSPMD)"

UNROLLED = Family(
    name="gspmd-dense",
    summary="pre-LN decoder with wide attention and feed-forward, layers unrolled; plain JAX",
    source=SOURCE,
    presets=PRESETS,
    make=partial(make, stack=False, run_layers=unrolled),
)
SCANNED = Family(
    name="gspmd-dense-scan",
    summary="the same decoder as a lax.scan over stacked, checkpointed layers; plain JAX",
    source=SOURCE,
    presets=PRESETS,
    make=partial(make, stack=True, run_layers=scanned),
)
