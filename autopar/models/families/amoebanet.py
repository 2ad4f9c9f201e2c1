"""AmoebaNet-D (L, D) and -B: evolved convolutional networks, those that GPipe measures and trains; Flax Linen.

A cell adds up pairs of earlier states, each through an operation; states 0 and 1 are the outputs of the two cells
before it, brought to the cell's channels, and some states are concatenated. Two reduction cells after the stem, then
three times L / 3 normal cells with a reduction cell between: a sequence in which every cell also reads the one before
the last. Channels are D / 4 in the stem, twice as many in each reduction cell, and D in the first normal cells.

The normal cells concatenate states 0, 3, 4 and 6, as does the authors' public code and as GPipe's parameter counts
demand; the paper's figure of D has 4, 5 and 6. Left out: the auxiliary classifier, dropped paths and label smoothing.
Running statistics forget by a tenth a step, not by 0.0003. Batch norm couples the examples of a batch.

Parameters of a cell of c channels on inputs of p and q: (p + q) c + N c^2 in a normal cell and (p + q) c + R c^2 in a
reduction cell, where N = 3 + 2 (1/2 + 14/16) and R = 1 + (1/2 + 14/16) + (1/2 + 9/16) in D, N = 8 and R = 5 + (1/2 +
9/16) in B, plus depthwise kernels; q c is missing where the second input has the right size and channels already. The
557 million of B (18, 512) are 560 here. GPipe rounds: its 1.8 billion of D (72, 512) are 1.84.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from autopar.models.classifier import ImageConfig, make_classifier
from autopar.models.layers.convolutional import batch_norm, convolution
from autopar.models.layers.genotypes import GENOTYPES
from autopar.models.recipe import Family, Recipe, unknown

# Kernels of an operation's convolutions; those between the first and the last have a quarter of the channels.
CONVOLUTIONS: dict[str, tuple[tuple[int, int], ...]] = {
    "conv_1x1": ((1, 1),),
    "conv_3x3": ((1, 1), (3, 3), (1, 1)),
    "conv_1x7_7x1": ((1, 1), (1, 7), (7, 1), (1, 1)),
}
# Kernel and dilation of an operation's two separable convolutions.
SEPARABLE = {"separable_3x3": (3, 1), "dilated_5x5": (5, 2)}
POOLS: dict[str, Callable[..., jax.Array]] = {
    "max_2x2": partial(nn.max_pool, window_shape=(2, 2)),
    "max_3x3": partial(nn.max_pool, window_shape=(3, 3)),
    "avg_3x3": partial(nn.avg_pool, window_shape=(3, 3), count_include_pad=False),
}


@dataclass(frozen=True, kw_only=True)
class AmoebaNetConfig(ImageConfig):
    """Sizes: `layers` normal cells in `groups`, the first with `filters` channels, after `stem_cells` reductions.

    `genotype` is a key of `GENOTYPES`.
    """

    genotype: str = "d"
    layers: int = 18
    groups: int = 3
    filters: int = 208
    stem_cells: int = 2

    def __post_init__(self) -> None:
        if self.genotype not in GENOTYPES:
            raise ValueError(unknown("genotype", self.genotype, GENOTYPES))
        if self.layers % self.groups:
            raise ValueError(
                f"layers ({self.layers}) must be a multiple of groups ({self.groups}): each has as many normal cells"
            )
        least = 4 * 2**self.stem_cells
        if self.filters % least:
            raise ValueError(
                f"filters ({self.filters}) must be a multiple of {least}: the stem has {self.filters} / "
                f"{2**self.stem_cells} channels, and operations inside a cell a quarter of its own"
            )


def _large(layers: int, filters: int) -> AmoebaNetConfig:
    return AmoebaNetConfig(layers=layers, filters=filters, image=224, classes=1000, batch_size=128)


PRESETS = {
    "toy": AmoebaNetConfig(layers=1, groups=1, filters=32, stem_cells=1, image=8, classes=8),
    "b-18-512": replace(_large(18, 512), genotype="b", image=480),
    "18-208": _large(18, 208),
    "18-256": _large(18, 256),
    "18-416": _large(18, 416),
    "18-544": _large(18, 544),
    "36-544": _large(36, 544),
    "72-512": _large(72, 512),
}


class Convolve(nn.Module):
    """ReLU, convolution and batch norm, once for each kernel; strides go with the kernel's longer sides."""

    config: AmoebaNetConfig
    channels: int
    kernels: tuple[tuple[int, int], ...] = ((1, 1),)
    stride: int = 1
    train: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, c] -> [b, h / stride, w / stride, channels]."""
        widest = max(max(kernel) for kernel in self.kernels)
        for i, kernel in enumerate(self.kernels):
            channels = self.channels if i == len(self.kernels) - 1 else self.channels // 4
            strides = tuple(self.stride if side == widest else 1 for side in kernel)
            x = convolution(self.config, channels, kernel, strides)(nn.relu(x))
            x = batch_norm(self.config, self.train)(x)
        return x


class Separable(nn.Module):
    """Twice ReLU, a convolution of each channel by itself, one across channels and batch norm; first the stride."""

    config: AmoebaNetConfig
    channels: int
    kernel: int
    dilation: int
    stride: int = 1
    train: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, c] -> [b, h / stride, w / stride, channels]."""
        c, kernel = self.config, (self.kernel, self.kernel)
        for stride in (self.stride, 1):
            x = nn.relu(x)
            x = convolution(c, x.shape[-1], kernel, (stride, stride), groups=x.shape[-1], dilation=self.dilation)(x)
            x = batch_norm(c, self.train)(convolution(c, self.channels)(x))
        return x


class Halve(nn.Module):
    """Halves an image without losing every other pixel: two convolutions, the second a pixel further on."""

    config: AmoebaNetConfig
    channels: int
    train: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, c] -> [b, h / 2, w / 2, channels], sides rounded up."""
        x = nn.relu(x)
        conv = partial(convolution, self.config, self.channels // 2, (1, 1), (2, 2))
        shifted = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
        return batch_norm(self.config, self.train)(jnp.concatenate([conv()(x), conv()(shifted)], axis=-1))


class Cell(nn.Module):
    """One cell, of `channels` in each state."""

    config: AmoebaNetConfig
    channels: int
    reduction: bool
    train: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, before: jax.Array) -> jax.Array:
        """The outputs of the last cell [b, h, w, p] and of the one before it [b, h or 2 h, ..., q] -> [b, ...]."""
        c, genotype = self.config, GENOTYPES[self.config.genotype]
        kind = genotype.reduction if self.reduction else genotype.normal
        if before.shape[1] != x.shape[1]:
            before = Halve(c, self.channels, self.train, name="before")(before)
        elif before.shape[-1] != self.channels:
            before = Convolve(c, self.channels, train=self.train, name="before")(before)
        states = [Convolve(c, self.channels, train=self.train, name="last")(x), before]
        for i, pair in enumerate(kind.pairs):
            # What comes from outside is halved on its way into a reduction cell.
            results = [
                self._apply(op, states[index], 2 if self.reduction and index < 2 else 1, f"{i}{side}_{op}")
                for (index, op), side in zip(pair, "ab", strict=True)
            ]
            states.append(results[0] + results[1])
        return jnp.concatenate([states[i] for i in kind.out], axis=-1)

    def _apply(self, op: str, x: jax.Array, stride: int, name: str) -> jax.Array:
        if op == "none":
            return x
        if op in POOLS:
            return POOLS[op](x, strides=(stride, stride), padding="SAME")
        if op in SEPARABLE:
            return Separable(self.config, self.channels, *SEPARABLE[op], stride, self.train, name=name)(x)
        return Convolve(self.config, self.channels, CONVOLUTIONS[op], stride, self.train, name=name)(x)


class AmoebaNet(nn.Module):
    """Images [b, h, w, 3] -> logits [b, classes]."""

    config: AmoebaNetConfig

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        """[b, h, w, 3] -> [b, classes], normalised by the batch's own statistics, or else by the running ones."""
        c = self.config
        channels = c.filters // 2**c.stem_cells
        x = convolution(c, channels, (3, 3), (2, 2), name="stem")(x)
        x = before = batch_norm(c, train, name="stem_norm")(x)
        for reduction in cells(c):
            channels *= 2 if reduction else 1
            x, before = Cell(c, channels, reduction, train)(x, before), x
        x = nn.relu(x).mean(axis=(1, 2))
        return nn.Dense(c.classes, dtype=c.compute_dtype, param_dtype=c.param_dtype)(x).astype(c.param_dtype)


def cells(c: AmoebaNetConfig) -> list[bool]:
    """The sequence of cells, True for a reduction."""
    group = [False] * (c.layers // c.groups)
    return [True] * c.stem_cells + group + [True, *group] * (c.groups - 1)


def make(family: Family, preset: str, c: AmoebaNetConfig) -> Recipe:
    """Builds the recipe."""
    return make_classifier(family, preset, c, AmoebaNet(c))


FAMILY = Family(
    name="amoebanet",
    summary="AmoebaNet-D and -B, evolved cells that read the two before them, batch norm; Flax Linen",
    source="Real et al. 2018; sizes from Huang et al. 2018 (GPipe)",
    presets=PRESETS,
    make=make,
)
