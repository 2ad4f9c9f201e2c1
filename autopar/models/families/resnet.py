"""Residual convolutional networks with batch norm, in Flax Linen: a small basic-block one, and Wide-ResNet.

Running statistics live in `State.stats`. Batch norm takes its mean over the whole batch, so the step couples the
examples of a batch.

Parameters of a bottleneck block with f filters and width factor w, from n input channels: n f + 9 w f^2 + 4 w f^2
and, in the first block of a stage, 4 n f for the projection. f doubles from stage to stage; n is 4 f inside one.
Wide-ResNets have 50 layers and "13b" 101, as in Alpa's public code; those are 12.6 billion, which the paper rounds.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from autopar.models.classifier import ImageConfig, make_classifier
from autopar.models.recipe import Family, Recipe


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(ImageConfig):
    """Sizes: `blocks` residual blocks in each stage, `filters` channels in the first.

    `large_stem` is a 7x7 convolution and a max pool, each with stride 2, in place of one 3x3 convolution.
    """

    blocks: tuple[int, ...] = (1, 1)
    filters: int = 16
    width_factor: int = 1
    bottleneck: bool = False
    large_stem: bool = False


def _wide(filters: int, width_factor: int = 2, blocks: tuple[int, ...] = (3, 4, 6, 3)) -> ResNetConfig:
    return ResNetConfig(
        blocks=blocks,
        filters=filters,
        width_factor=width_factor,
        bottleneck=True,
        large_stem=True,
        image=224,
        classes=1024,
        batch_size=1536,
    )


PRESETS = {
    "toy": ResNetConfig(),
    "resnet18": ResNetConfig(
        blocks=(2, 2, 2, 2), filters=64, large_stem=True, image=224, classes=1000, batch_size=256, dtype="bfloat16"
    ),
}

WIDE_PRESETS = {
    "toy": ResNetConfig(filters=8, width_factor=2, bottleneck=True, large_stem=True, image=32),
    "250m": _wide(160),
    "500m": _wide(224),
    "1b": _wide(320),
    "2b": _wide(448),
    "4b": _wide(640),
    "6.8b": _wide(320, 16),
    "13b": _wide(320, 16, (3, 4, 23, 3)),
}


class Block(nn.Module):
    """One residual block: two 3x3 convolutions, or 1x1, 3x3 and 1x1 with a bottleneck."""

    config: ResNetConfig
    filters: int
    stride: int
    train: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, c] -> [b, h / stride, w / stride, out]."""
        c = self.config
        conv = partial(nn.Conv, use_bias=False, dtype=c.compute_dtype, param_dtype=c.param_dtype)
        norm = partial(
            nn.BatchNorm,
            use_running_average=not self.train,
            momentum=0.9,
            dtype=c.compute_dtype,
            param_dtype=c.param_dtype,
        )
        strides = (self.stride, self.stride)
        wide = self.filters * c.width_factor
        out = self.filters * 4 if c.bottleneck else self.filters
        y = x
        if c.bottleneck:
            y = nn.relu(norm()(conv(self.filters, (1, 1))(y)))
        y = nn.relu(norm()(conv(wide, (3, 3), strides)(y)))
        y = conv(out, (1, 1) if c.bottleneck else (3, 3))(y)
        # Each block starts as the identity: its last scale is zero.
        y = norm(scale_init=nn.initializers.zeros)(y)
        if x.shape != y.shape:
            x = norm(name="norm_proj")(conv(out, (1, 1), strides, name="conv_proj")(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Images [b, h, w, 3] -> logits [b, classes]."""

    config: ResNetConfig

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        """[b, h, w, 3] -> [b, classes], normalised by the batch's own statistics, or else by the running ones."""
        c = self.config
        dtypes: dict[str, Any] = {"dtype": c.compute_dtype, "param_dtype": c.param_dtype}
        kernel, strides = ((7, 7), (2, 2)) if c.large_stem else ((3, 3), (1, 1))
        x = nn.Conv(c.filters, kernel, strides, use_bias=False, name="conv_init", **dtypes)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm_init", **dtypes)(x))
        if c.large_stem:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for i, size in enumerate(c.blocks):
            for j in range(size):
                x = Block(c, c.filters * 2**i, 2 if i > 0 and j == 0 else 1, train)(x)
        return nn.Dense(c.classes, **dtypes)(x.mean(axis=(1, 2))).astype(c.param_dtype)


def make(family: Family, preset: str, c: ResNetConfig) -> Recipe:
    """Builds the recipe."""
    return make_classifier(family, preset, c, ResNet(c))


CONVNET = Family(
    name="convnet",
    summary="residual network with batch norm, running statistics in the state; Flax Linen",
    source="He et al. 2015",
    presets=PRESETS,
    make=make,
)
WIDE = Family(
    name="wide-resnet",
    summary="bottleneck residual network with wide 3x3 convolutions; Flax Linen",
    source="Zagoruyko & Komodakis 2016; sizes from Zheng et al. 2022 (Alpa)",
    presets=WIDE_PRESETS,
    make=make,
)
