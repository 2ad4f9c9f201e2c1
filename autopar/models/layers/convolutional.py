"""Convolutions and batch norms as the Flax Linen families build them, in the dtypes of their config."""

from typing import Any

import flax.linen as nn

from autopar.models.recipe import Config


def convolution(
    c: Config,
    channels: int,
    kernel: tuple[int, ...] = (1, 1),
    strides: tuple[int, ...] = (1, 1),
    *,
    groups: int = 1,
    name: str | None = None,
) -> nn.Conv:
    """A convolution without bias, for batch norm follows it; as many `groups` as channels make it depthwise."""
    dtypes: dict[str, Any] = {"dtype": c.compute_dtype, "param_dtype": c.param_dtype}
    return nn.Conv(channels, kernel, strides, feature_group_count=groups, use_bias=False, name=name, **dtypes)


def batch_norm(c: Config, train: bool, *, bias: bool = True, name: str | None = None) -> nn.BatchNorm:
    """Batch norm by the statistics of the batch (and over its pixels) or, if not training, by the running ones."""
    dtypes: dict[str, Any] = {"dtype": c.compute_dtype, "param_dtype": c.param_dtype}
    return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-3, use_bias=bias, name=name, **dtypes)
