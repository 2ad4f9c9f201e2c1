"""EfficientNet: inverted bottlenecks with squeeze-and-excitation, scaled in width, depth and resolution; Flax Linen.

Deviations: the batch norm that ends a block has no bias, which would change nothing. Running statistics forget by a
tenth a step; dropout and stochastic depth are left out.

Parameters of a block that widens n channels t-fold and ends with m: t n^2 (unless t = 1) + k^2 t n + 2 (n / 4) t n
+ t n m. Stem and head are convolutions from 3 channels and to 1280, times `width`.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax

from autopar.models.classifier import ImageConfig, make_classifier
from autopar.models.layers.convolutional import CentredNorm, convolution
from autopar.models.layers.mbconv import STAGES, STEM, Backbone, channels
from autopar.models.recipe import Family, Recipe

HEAD = 1280


@dataclass(frozen=True, kw_only=True)
class EfficientNetConfig(ImageConfig):
    """Sizes: factors of the channels (`width`) and the blocks (`depth`) of the smallest network's first `stages`."""

    width: float = 1.0
    depth: float = 1.0
    stages: int = len(STAGES)

    def __post_init__(self) -> None:
        if self.stages > len(STAGES):
            raise ValueError(f"stages ({self.stages}) must be at most {len(STAGES)}, which is all there are")
        if min(self.width, self.depth) <= 0:
            raise ValueError(f"width ({self.width}) and depth ({self.depth}) must be above 0: they are factors")
        if channels(STEM, self.width) == channels(STAGES[0].channels, self.width):
            raise ValueError(
                f"width ({self.width}) must be larger: it gives stem and first block as many channels, and what is "
                "then added up is not centred, as the norms that follow take it to be"
            )


def _scaled(width: float, depth: float, image: int) -> EfficientNetConfig:
    return EfficientNetConfig(width=width, depth=depth, image=image, classes=1000, batch_size=4096, dtype="bfloat16")


PRESETS = {
    "toy": EfficientNetConfig(width=0.5, stages=2, image=8, classes=8),
    "b0": _scaled(1.0, 1.0, 224),
    "b3": _scaled(1.2, 1.4, 300),
    "b7": _scaled(2.0, 3.1, 600),
}


class EfficientNet(nn.Module):
    """Images [b, h, w, 3] -> logits [b, classes]."""

    config: EfficientNetConfig

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        """[b, h, w, 3] -> [b, classes], normalised by the batch's own statistics, or else by the running ones."""
        c = self.config
        x = convolution(c, channels(HEAD, c.width), name="head")(Backbone(c, name="backbone")(x, train)[-1])
        x = nn.silu(CentredNorm(c, train, name="head_norm")(x)).mean(axis=(1, 2))
        return nn.Dense(c.classes, dtype=c.compute_dtype, param_dtype=c.param_dtype)(x).astype(c.param_dtype)


def make(family: Family, preset: str, c: EfficientNetConfig) -> Recipe:
    """Builds the recipe."""
    return make_classifier(family, preset, c, EfficientNet(c))


FAMILY = Family(
    name="efficientnet",
    summary="inverted bottlenecks with squeeze-and-excitation, batch norm; Flax Linen",
    source="Tan & Le 2019",
    presets=PRESETS,
    make=make,
)
