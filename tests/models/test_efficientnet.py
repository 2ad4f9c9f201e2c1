"""MBConv with squeeze-and-excitation against its equations, and how EfficientNet rounds and scales."""

import jax
import numpy as np
import pytest

from autopar.models import get
from autopar.models.families.efficientnet import EfficientNet
from autopar.models.layers.mbconv import MBConv, channels
from tests.models.drawn import drawn_state
from tests.models.naive_images import batch_norm, conv, depthwise


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def mbconv(p, x, stride):
    y = x
    if "expand" in p:
        y = silu(batch_norm(p["expand_norm"], conv(y, p["expand"]["kernel"])))
    y = silu(batch_norm(p["depthwise_norm"], depthwise(y, p["depthwise"]["kernel"], (stride, stride))))
    squeeze, excite = p["attend"]["squeeze"], p["attend"]["excite"]
    weights = silu(y.mean((1, 2)) @ squeeze["kernel"] + squeeze["bias"])
    y = y * sigmoid(weights @ excite["kernel"] + excite["bias"])[:, None, None]
    y = batch_norm(p["project_norm"] | {"bias": 0.0}, conv(y, p["project"]["kernel"]))
    return x + y if x.shape == y.shape else y


@pytest.mark.parametrize(("expand", "kernel", "stride", "out"), [(1, 3, 1, 4), (6, 5, 1, 8), (6, 3, 2, 8)])
def test_a_block_is_its_equations(expand, kernel, stride, out):
    c = get("efficientnet", dtype="float64").config
    x = np.random.default_rng(0).standard_normal((2, 7, 7, 8))
    x -= x.mean((0, 1, 2))  # as the norm of the block before leaves it
    block = MBConv(c, expand, kernel, stride, out)
    variables = block.init(jax.random.key(0), x)
    noise = np.random.default_rng(1)
    p = jax.tree.map(lambda w: np.asarray(w) + 0.1 * noise.standard_normal(w.shape), variables["params"])
    assert p["attend"]["squeeze"]["kernel"].shape == (8 * expand, 2)
    found, _ = block.apply({"params": p, "batch_stats": variables["batch_stats"]}, x, mutable=["batch_stats"])
    np.testing.assert_allclose(found, mbconv(p, x, stride), rtol=1e-10, atol=1e-10)


def test_the_network_is_stem_blocks_and_head():
    recipe = get("efficientnet", dtype="float64", batch_size=4)
    state, batch = drawn_state(recipe), recipe.batch(0)
    variables = {"params": state.params, "batch_stats": state.stats}
    found, _ = EfficientNet(recipe.config).apply(variables, batch["image"], mutable=["batch_stats"])

    p = jax.tree.map(np.asarray, state.params)
    body = p["backbone"]
    x = silu(batch_norm(body["stem_norm"], conv(batch["image"], body["stem"]["kernel"], (2, 2))))
    for name, stride in (("MBConv_0", 1), ("MBConv_1", 2), ("MBConv_2", 1)):
        x = mbconv(body[name], x, stride)
    x = silu(batch_norm(p["head_norm"], conv(x, p["head"]["kernel"]))).mean((1, 2))
    np.testing.assert_allclose(found, x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("of", "width", "rounded"), [(32, 1.0, 32), (32, 1.2, 40), (16, 1.2, 24), (24, 1.1, 24), (16, 0.1, 8)]
)
def test_channels_are_multiples_of_eight(of, width, rounded):
    # 19.2 rounds to 16, which is less than nine tenths of it.
    assert channels(of, width) == rounded
