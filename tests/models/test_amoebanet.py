"""AmoebaNet-D and -B against their cells written out, on images whose sides are odd."""

import jax
import numpy as np
import pytest

from autopar.models import get
from autopar.models.families.amoebanet import AmoebaNet, Halve
from tests.models.drawn import drawn_state
from tests.models.naive_images import avg_pool, batch_norm, conv, depthwise, dilated, max_pool, relu


def convolve(p, x, stride=1):
    for i in range(len(p) // 2):
        kernel = p[f"Conv_{i}"]["kernel"]
        halved = {(1, 1): (stride, stride) if len(p) == 2 else (1, 1), (3, 3): (stride, stride)}
        x = batch_norm(p[f"BatchNorm_{i}"], conv(relu(x), kernel, halved.get(kernel.shape[:2], (1, 1))))
    return x


def separable(p, x, stride=1, dilation=1):
    for i, by in enumerate((stride, 1)):
        x = depthwise(relu(x), dilated(p[f"Conv_{2 * i}"]["kernel"], dilation), (by, by))
        x = batch_norm(p[f"BatchNorm_{i}"], conv(x, p[f"Conv_{2 * i + 1}"]["kernel"]))
    return x


def halve(p, x):
    x = relu(x)
    after = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
    sides = conv(x, p["Conv_0"]["kernel"], (2, 2)), conv(after, p["Conv_1"]["kernel"], (2, 2))
    rows, columns = sides[0].shape[1:3]
    return batch_norm(p["BatchNorm_0"], np.concatenate([sides[0], sides[1][:, :rows, :columns]], -1))


def inputs(p, x, before, channels):
    if before.shape[1] != x.shape[1]:
        before = halve(p["before"], before)
    elif before.shape[-1] != channels:
        before = convolve(p["before"], before)
    return convolve(p["last"], x), before


def normal_cell(p, x, before, channels):
    s0, s1 = inputs(p, x, before, channels)
    s2 = convolve(p["0a_conv_1x1"], s1) + max_pool(s1, 3, 1)
    s3 = s1 + convolve(p["1b_conv_1x7_7x1"], s0)
    s4 = convolve(p["2a_conv_1x1"], s0) + convolve(p["2b_conv_1x7_7x1"], s0)
    s5 = max_pool(s2, 3, 1) + s2
    s6 = avg_pool(s1, 3, 1) + convolve(p["4b_conv_1x1"], s5)
    return np.concatenate([s0, s3, s4, s6], -1)


def reduction_cell(p, x, before, channels):
    s0, s1 = inputs(p, x, before, channels)
    s2 = max_pool(s0, 2, 2) + max_pool(s0, 3, 2)
    s3 = s2 + convolve(p["1b_conv_3x3"], s1, 2)
    s4 = convolve(p["2a_conv_1x7_7x1"], s2) + max_pool(s2, 3, 1)
    s5 = s3 + max_pool(s1, 2, 2)
    s6 = avg_pool(s2, 3, 1) + convolve(p["4b_conv_1x1"], s3)
    return np.concatenate([s4, s5, s6], -1)


def normal_cell_of_b(p, x, before, channels):
    s0, s1 = inputs(p, x, before, channels)
    s2 = convolve(p["0a_conv_1x1"], s1) + max_pool(s1, 3, 1)
    s3 = s1 + separable(p["1b_separable_3x3"], s0)
    s4 = convolve(p["2a_conv_1x1"], s1) + separable(p["2b_separable_3x3"], s0)
    s5 = convolve(p["3a_conv_1x1"], s2) + s2
    s6 = avg_pool(s1, 3, 1) + convolve(p["4b_conv_1x1"], s5)
    return np.concatenate([s0, s3, s4, s6], -1)


def reduction_cell_of_b(p, x, before, channels):
    s0, s1 = inputs(p, x, before, channels)
    s2 = max_pool(s0, 2, 2) + max_pool(s0, 3, 2)
    s3 = s2 + convolve(p["1b_conv_3x3"], s1, 2)
    s4 = separable(p["2a_dilated_5x5"], s2, dilation=2) + max_pool(s2, 3, 1)
    s5 = s3 + separable(p["3b_separable_3x3"], s1, 2)
    s6 = avg_pool(s4, 3, 1) + convolve(p["4b_conv_1x1"], s3)
    return np.concatenate([s5, s6], -1)


@pytest.mark.parametrize(
    ("genotype", "reduction", "normal"),
    [("d", reduction_cell, normal_cell), ("b", reduction_cell_of_b, normal_cell_of_b)],
)
def test_the_network_is_its_cells(genotype, reduction, normal):
    recipe = get("amoebanet", genotype=genotype, layers=2, groups=2, filters=8, image=13, classes=5, dtype="float64")
    x = np.random.default_rng(0).standard_normal((2, 13, 13, 3))
    model = AmoebaNet(recipe.config)
    state = drawn_state(recipe)
    p = jax.tree.map(np.asarray, state.params)
    found, _ = model.apply({"params": p, "batch_stats": state.stats}, x, mutable=["batch_stats"])

    stem = batch_norm(p["stem_norm"], conv(x, p["stem"]["kernel"], (2, 2)))
    assert stem.shape[1:3] == (7, 7)
    one = reduction(p["Cell_0"], stem, stem, 8)
    two = normal(p["Cell_1"], one, stem, 8)
    three = reduction(p["Cell_2"], two, one, 16)
    four = normal(p["Cell_3"], three, two, 16)
    expected = relu(four).mean((1, 2)) @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_halving_sees_every_other_pixel_and_the_ones_between():
    c = get("amoebanet", dtype="float64").config
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 1))
    model = Halve(c, 2, train=False)
    variables = model.init(jax.random.key(0), x)
    one, two = (float(variables["params"][f"Conv_{i}"]["kernel"].squeeze()) for i in range(2))
    pixels = np.maximum(x, 0)[0, :, :, 0] / np.sqrt(1 + 1e-3)
    expected = np.stack([pixels[::2, ::2] * one, pixels[1::2, 1::2] * two], -1)
    np.testing.assert_allclose(
        model.apply(variables, x)[0], expected, rtol=1e-6
    )  # Flax starts running variances in float32
