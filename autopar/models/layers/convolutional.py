"""Convolutions and batch norms as the Flax Linen families build them, in the dtypes of their config."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from autopar.models.recipe import Config


def convolution(
    c: Config,
    channels: int,
    kernel: tuple[int, ...] = (1, 1),
    strides: tuple[int, ...] = (1, 1),
    *,
    groups: int = 1,
    dilation: int = 1,
    name: str | None = None,
) -> nn.Conv:
    """A convolution without bias, for batch norm follows it; as many `groups` as channels make it depthwise.

    Its kernel reads pixels `dilation` apart.
    """
    dtypes: dict[str, Any] = {"dtype": c.compute_dtype, "param_dtype": c.param_dtype}
    return nn.Conv(
        channels,
        kernel,
        strides,
        kernel_dilation=dilation,
        feature_group_count=groups,
        use_bias=False,
        name=name,
        **dtypes,
    )


MOMENTUM, EPSILON = 0.9, 1e-3


def batch_norm(c: Config, train: bool, *, bias: bool = True, name: str | None = None) -> nn.BatchNorm:
    """Batch norm by the statistics of the batch (and over its pixels) or, if not training, by the running ones."""
    dtypes: dict[str, Any] = {"dtype": c.compute_dtype, "param_dtype": c.param_dtype}
    return nn.BatchNorm(not train, momentum=MOMENTUM, epsilon=EPSILON, use_bias=bias, name=name, **dtypes)


class CentredNorm(nn.Module):
    """Batch norm of a linear function of what another batch norm, without a bias, has given.

    Its mean over the batch is zero but for rounding, so that none is subtracted, and the running variance alone is
    tracked.
    """

    config: Config
    train: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, c] -> [b, h, w, c]."""
        dtype, shape = self.config.param_dtype, x.shape[-1:]
        running = self.variable("batch_stats", "var", jnp.ones, shape, dtype)
        scale = self.param("scale", nn.initializers.ones, shape, dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, dtype)
        y, variance = x.astype(dtype), running.value
        if self.train:
            variance = jnp.square(y).mean(axis=(0, 1, 2))
            if not self.is_initializing():
                running.value = MOMENTUM * running.value + (1 - MOMENTUM) * variance
        return (y * jax.lax.rsqrt(variance + EPSILON) * scale + bias).astype(x.dtype)
