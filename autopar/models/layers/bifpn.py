"""BiFPN: features of several resolutions, mixed downwards and upwards again (Tan, Pang & Le 2020, section 3).

What meets at a node is first brought to one size, by repeating pixels or by pooling them, and added with learned
weights: sum_i w_i x_i / (0.0001 + sum_i w_i), w_i = max(0, v_i), which the paper calls fast normalised fusion. The node
then applies SiLU, a depthwise-separable convolution and batch norm.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from autopar.models.layers.convolutional import CentredNorm, batch_norm, convolution


class Separable(nn.Module):
    """A 3 x 3 convolution of each channel by itself, and one of 1 x 1 pixels to `out` channels."""

    config: Any
    out: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, c] -> [b, h, w, out]."""
        x = convolution(self.config, x.shape[-1], (3, 3), groups=x.shape[-1], name="depthwise")(x)
        return convolution(self.config, self.out, name="pointwise")(x)


class Fuse(nn.Module):
    """Adds features of one shape, each by its share of positive weights."""

    config: Any

    @nn.compact
    def __call__(self, features: Sequence[jax.Array]) -> jax.Array:
        """N times [b, h, w, c] -> [b, h, w, c]."""
        weights = nn.relu(self.param("weights", nn.initializers.ones, (len(features),), self.config.param_dtype))
        shares = (weights / (weights.sum() + 1e-4)).astype(features[0].dtype)
        return sum((share * x for share, x in zip(shares, features, strict=True)), jnp.zeros_like(features[0]))


class Node(nn.Module):
    """Fusion, SiLU, convolution, batch norm."""

    config: Any
    train: bool = True

    @nn.compact
    def __call__(self, features: Sequence[jax.Array]) -> jax.Array:
        """N times [b, h, w, hidden] -> [b, h, w, hidden]."""
        c = self.config
        x = Separable(c, c.hidden, name="mix")(nn.silu(Fuse(c, name="fuse")(features)))
        return batch_norm(c, self.train, name="norm")(x)


class Lateral(nn.Module):
    """Brings what a batch norm without a bias has given to `hidden` channels, unless it has them already."""

    config: Any
    train: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, c] -> [b, h, w, hidden]."""
        c = self.config
        if x.shape[-1] == c.hidden:
            return x
        return CentredNorm(c, self.train, name="norm")(convolution(c, c.hidden, name="project")(x))


def enlarge(x: jax.Array) -> jax.Array:
    """[b, h, w, c] -> [b, 2 h, 2 w, c], each pixel four times."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def shrink(x: jax.Array) -> jax.Array:
    """[b, h, w, c] -> [b, h / 2, w / 2, c], the largest of 3 x 3 pixels."""
    return nn.max_pool(x, (3, 3), (2, 2), "SAME")


class BiFPN(nn.Module):
    """One layer of the pyramid. `config` has `hidden`, the channels of all its levels, and dtypes."""

    config: Any
    train: bool = True

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array]) -> list[jax.Array]:
        """[b, h, w, c0], [b, h / 2, w / 2, c1], ... -> the same with `hidden` channels each."""
        c, train, top = self.config, self.train, len(levels) - 1
        # A node has its own projection of the features it takes from the backbone, as its authors' code does.
        down = [Lateral(c, train, name=f"lateral_down_{top}")(levels[top])]
        for i in reversed(range(top)):
            here = Lateral(c, train, name=f"lateral_down_{i}")(levels[i])
            down = [Node(c, train, name=f"down_{i}")([here, enlarge(down[0])]), *down]
        up = down[:1]
        for i in range(1, top + 1):
            here = Lateral(c, train, name=f"lateral_up_{i}")(levels[i])
            through = down[i : i + 1] if i < top else []
            up.append(Node(c, train, name=f"up_{i}")([here, *through, shrink(up[-1])]))
        return up
