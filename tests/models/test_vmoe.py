"""Vision experts: the encoder beside loops over images, patches and heads; who is routed together; both losses."""

import jax
import numpy as np
import pytest

from autopar.models import get
from autopar.models.families.vmoe import PRESETS, VMoEConfig, encoder, init_params
from tests.models import naive

SMALL = {
    "image": 6, "patch": 2, "hidden": 8, "heads": 2, "layers": 3, "ffn": 5, "classes": 7, "experts": 3, "batch_size": 4,
    "group": 2, "capacity_factor": 3.0, "dtype": "float64",
}  # fmt: skip


def naive_encoder(p, image, c):
    """One image, with a slot for all: logits of the classes, and of the super-classes where there are any."""
    side = c.image // c.patch
    squares = [
        image[i * c.patch : (i + 1) * c.patch, j * c.patch : (j + 1) * c.patch].reshape(-1)
        for i in range(side)
        for j in range(side)
    ]
    x = np.stack(squares) @ p["patch"].reshape(-1, c.hidden) + p["positions"]
    super_logits = None
    for layer in p["layers"]:
        if "moe" in layer and super_logits is None and c.router == "image":
            super_logits = x.mean(axis=0) @ p["router"]
        y = np.stack([naive.layer_norm(layer["ln1"], h) for h in x])
        x = x + naive.attention(layer["attn"], y, causal=False)
        y = [naive.layer_norm(layer["ln2"], h) for h in x]
        if "mlp" in layer:
            m = layer["mlp"]
            x = x + np.stack([naive.gelu(h @ m["w1"] + m["b1"]) @ m["w2"] + m["b2"] for h in y])
        elif super_logits is not None:
            gates = naive.softmax(super_logits)
            e = gates.argmax()
            x = x + np.stack([gates[e] * naive.expert(layer["moe"], e, h, naive.gelu) for h in y])
        else:
            x = x + np.stack([naive_top2(layer["moe"], h) for h in y])
    return np.mean([naive.layer_norm(p["ln_f"], h) for h in x], axis=0) @ p["head"] + p["head_bias"], super_logits


def naive_top2(moe, h):
    gates = naive.softmax(h @ moe["router"])
    best = np.argsort(-gates)[:2]
    return sum(gates[e] / gates[best].sum() * naive.expert(moe, e, h, naive.gelu) for e in best)


@pytest.mark.parametrize("sizes", [{"router": "image", "routed_layers": 2}, {"router": "top2", "every": 2}])
def test_encoder_is_the_equations(sizes):
    c = VMoEConfig(**SMALL | sizes)
    rng = np.random.default_rng(1)
    params = naive.shaken(jax.eval_shape(lambda: init_params(jax.random.key(0), c)), rng)
    image = 3 * rng.normal(size=(4, 6, 6, 3))
    logits, super_logits, _ = jax.jit(lambda p, image: encoder(p, image, c))(params, image)
    expected, super_expected = zip(*(naive_encoder(params, one, c) for one in image), strict=True)
    np.testing.assert_allclose(logits, np.stack(expected), rtol=1e-9, atol=1e-10 * np.abs(expected).max())
    if sizes["router"] == "image":
        np.testing.assert_allclose(super_logits, np.stack(super_expected), rtol=1e-9)
        assert np.ptp(np.argmax(super_logits, axis=1)) > 0
    else:
        assert super_logits is None and super_expected[0] is None


def test_where_the_routed_layers_are():
    def routed(c):
        return [i for i in range(c.layers) if c.is_routed(i)]

    assert routed(PRESETS["tiny"]) == [10, 11]
    assert routed(PRESETS["l16"]) == list(range(1, 24, 2))
    assert routed(VMoEConfig(layers=32, routed_layers=5, every=2)) == [23, 25, 27, 29, 31]


def test_an_image_that_finds_no_slot_passes_by():
    # Two equal images want one expert, which has one slot: the second passes by, so its patches are those of the
    # layers before, while the first one's are not.
    c = VMoEConfig(**SMALL | {"capacity_factor": 1.0, "routed_layers": 1, "layers": 1})
    rng = np.random.default_rng(0)
    params = naive.shaken(jax.eval_shape(lambda: init_params(jax.random.key(0), c)), rng)
    image = np.repeat(rng.normal(size=(2, 6, 6, 3)), 2, axis=0)
    first, second = np.asarray(encoder(params, image, c)[0]).reshape(2, 2, -1).swapaxes(0, 1)
    without = jax.tree.map(np.zeros_like, params["layers"][0]["moe"])
    silent = params | {"layers": [params["layers"][0] | {"moe": without}]}
    np.testing.assert_allclose(second, np.asarray(encoder(silent, image, c)[0])[1::2], rtol=1e-12)
    assert np.abs(first - second).min() > 1e-3


def test_a_router_of_images_learns_super_classes_and_one_of_patches_balance():
    recipe = get("vmoe", layers=1, dtype="float64")
    found = jax.jit(recipe.evaluate)(recipe.init(jax.random.key(0)), recipe.batch(0))
    assert 0.0 <= found["router_accuracy"] <= 1.0 and "aux_loss" not in found
    assert float(found["loss"] - found["cross_entropy"]) == pytest.approx(0.3 * np.log(8), rel=0.02)
    patches = get("vmoe", router="top2")
    names = jax.eval_shape(patches.evaluate, *patches.abstract()).keys()
    assert "aux_loss" in names and "router_accuracy" not in names
