"""EfficientNet's inverted bottlenecks (MBConv) with squeeze-and-excitation, and its body of seven stages of them.

A block widens its n channels t-fold, convolves each channel by itself, weighs channels by what they hold on average
over the image, and narrows to m channels; its result is added to its input where the two have one shape. What `width`
multiplies is rounded to a multiple of 8, what `depth` multiplies is rounded up.

The batch norm that ends a block has no bias: what reads it is normalised again and does not see a shift. That next
norm then finds a mean of zero, and tracks none.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from autopar.models.layers.convolutional import CentredNorm, batch_norm, convolution


class Stage(NamedTuple):
    """Blocks of one kind: how far they widen, their kernel, the first one's stride, channels, how many."""

    expand: int
    kernel: int
    stride: int
    channels: int
    blocks: int


# Tan & Le 2019, table 1.
STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)
STEM = 32


def channels(of: int, width: float) -> int:
    """The multiple of 8 that is nearest to `of` x `width`, and not below nine tenths of it."""
    wanted = of * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


class SqueezeExcite(nn.Module):
    """Weighs each channel by a number between 0 and 1 that two dense layers find in the means of all (Hu et al.)."""

    config: Any
    squeezed: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, c] -> [b, h, w, c]."""
        dtypes: dict[str, Any] = {"dtype": self.config.compute_dtype, "param_dtype": self.config.param_dtype}
        y = nn.silu(nn.Dense(self.squeezed, name="squeeze", **dtypes)(x.mean(axis=(1, 2))))
        y = nn.sigmoid(nn.Dense(x.shape[-1], name="excite", **dtypes)(y))
        return x * y[:, None, None, :]


class MBConv(nn.Module):
    """An inverted bottleneck that ends with `out` channels; squeezed to a quarter of its input's channels between."""

    config: Any
    expand: int
    kernel: int
    stride: int
    out: int
    train: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, n] -> [b, h / stride, w / stride, out]."""
        c, inputs = self.config, x.shape[-1]
        wide = self.expand * inputs
        y = x
        if self.expand > 1:
            y = convolution(c, wide, name="expand")(y)
            y = nn.silu(CentredNorm(c, self.train, name="expand_norm")(y))
        kernel, strides = (self.kernel, self.kernel), (self.stride, self.stride)
        y = convolution(c, wide, kernel, strides, groups=wide, name="depthwise")(y)
        y = nn.silu(batch_norm(c, self.train, name="depthwise_norm")(y))
        y = SqueezeExcite(c, max(1, inputs // 4), name="attend")(y)
        y = convolution(c, self.out, name="project")(y)
        y = batch_norm(c, self.train, bias=False, name="project_norm")(y)
        return x + y if x.shape == y.shape else y


class Backbone(nn.Module):
    """Everything below the head. `config` has `width`, `depth`, `stages` and dtypes."""

    config: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> list[jax.Array]:
        """[b, h, w, 3] -> the last features of each resolution, [b, h / 2, w / 2, n1], [b, h / 4, w / 4, n2], ..."""
        c = self.config
        x = convolution(c, channels(STEM, c.width), (3, 3), (2, 2), name="stem")(x)
        levels = [nn.silu(batch_norm(c, train, name="stem_norm")(x))]
        for stage in STAGES[: c.stages]:
            for i in range(math.ceil(stage.blocks * c.depth)):
                stride = stage.stride if i == 0 else 1
                block = MBConv(c, stage.expand, stage.kernel, stride, channels(stage.channels, c.width), train)
                x = block(levels[-1])
                levels = [*(levels if stride > 1 else levels[:-1]), x]
        return levels
