"""EfficientDet's pyramid, matching and losses against their equations, box by box and pixel by pixel in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autopar.models import get
from autopar.models.families.efficientdet import EfficientDet, losses
from autopar.models.layers import boxes
from autopar.models.layers.bifpn import BiFPN
from tests.models.drawn import drawn_state
from tests.models.naive_images import batch_norm, conv, depthwise, max_pool


def silu(x):
    return x / (1 + np.exp(-x))


def separable(p, x):
    return conv(depthwise(x, p["depthwise"]["kernel"]), p["pointwise"]["kernel"])


def lateral(p, name, x):
    return batch_norm(p[name]["norm"], conv(x, p[name]["project"]["kernel"])) if name in p else x


def node(p, *features):
    w = np.maximum(p["fuse"]["weights"], 0)
    mixed = sum(a * x for a, x in zip(w, features, strict=True)) / (w.sum() + 1e-4)
    return batch_norm(p["norm"], separable(p["mix"], silu(mixed)))


def twice(x):
    return np.kron(x, np.ones((1, 2, 2, 1)))


def pyramid(p, low, middle, high):
    """The paper's equations for one layer of three levels."""
    top = lateral(p, "lateral_down_2", high)
    through = node(p["down_1"], lateral(p, "lateral_down_1", middle), twice(top))
    bottom = node(p["down_0"], lateral(p, "lateral_down_0", low), twice(through))
    out = node(p["up_1"], lateral(p, "lateral_up_1", middle), through, max_pool(bottom, 3, 2))
    return [bottom, out, node(p["up_2"], lateral(p, "lateral_up_2", high), max_pool(out, 3, 2))]


def test_a_layer_of_the_pyramid_is_its_equations():
    c = get("efficientdet", dtype="float64", hidden=6).config
    rng = np.random.default_rng(0)
    levels = [rng.standard_normal((2, side, side, n)) for side, n in ((8, 4), (4, 5), (2, 6))]
    levels = [x - x.mean((0, 1, 2)) for x in levels]  # as the norms of the backbone leave them
    model = BiFPN(c)
    shapes = jax.eval_shape(model.init, jax.random.key(0), levels)
    p = jax.tree.map(lambda w: rng.standard_normal(w.shape), shapes["params"])
    p["down_0"]["fuse"]["weights"] = np.array([-0.3, 0.7])  # what is negative counts nothing
    assert "lateral_up_1" in p and "lateral_up_2" not in p  # six channels are as they should be
    stats = jax.tree.map(lambda s: np.ones(s.shape), shapes["batch_stats"])
    found, _ = model.apply({"params": p, "batch_stats": stats}, levels, mutable=["batch_stats"])
    for mine, theirs in zip(found, pyramid(p, *levels), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-9)


def test_heads_share_convolutions_and_have_norms_of_their_own():
    recipe = get("efficientdet", dtype="float64", batch_size=2)
    state, batch = drawn_state(recipe), recipe.batch(0)
    model = EfficientDet(recipe.config)
    variables = {"params": state.params, "batch_stats": state.stats}

    def catch(module, method):
        return module.name in ("classes", "boxes", "bifpn_0")

    (logits, relative), kept = model.apply(
        variables, batch["image"], mutable=["batch_stats", "intermediates"], capture_intermediates=catch
    )
    levels = [np.asarray(x) for x in kept["intermediates"]["bifpn_0"]["__call__"][0]]
    assert [x.shape for x in levels] == [(2, 4, 4, 16), (2, 2, 2, 16)]
    for name, found, answers in (("classes", logits, 8), ("boxes", relative, 4)):
        p, said = jax.tree.map(np.asarray, state.params[name]), []
        for level, x in zip((2, 3), levels, strict=True):
            y = silu(batch_norm(p[f"norm_0_of_{level}"], separable(p["mix_0"], x)))
            said.append((separable(p["answer"], y) + p["bias"]).reshape(2, -1, answers))
        np.testing.assert_allclose(found, np.concatenate(said, 1), rtol=1e-9, atol=1e-10)
    assert logits.shape[1] == len(boxes.anchor_boxes(16, range(2, 4), 1.0))


def test_anchors_stand_at_every_pixel_of_every_level():
    found = boxes.anchor_boxes(16, range(2, 4), 4.0)
    expected = [
        (y * s + s / 2, x * s + s / 2, 4 * s * 2 ** (octave / 3) / ratio**0.5, 4 * s * 2 ** (octave / 3) * ratio**0.5)
        for s in (4, 8)
        for y in range(16 // s)
        for x in range(16 // s)
        for octave in range(3)
        for ratio in (1, 2, 0.5)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def naive_overlap(a, b):
    sides = [
        max(0.0, min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2) - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2))
        for i in (0, 1)
    ]
    shared = sides[0] * sides[1]
    union = a[2] * a[3] + b[2] * b[3] - shared
    return shared / union if union > 0 else 0.0


def naive_match(anchors, box, label):
    shared = [[naive_overlap(a, b) for b in box] for a in anchors]
    slot = [-1] * len(anchors)
    there = [s for s in range(len(box)) if label[s] >= 0]
    for i, row in enumerate(shared):
        for s in there:
            if row[s] >= 0.5 and (slot[i] < 0 or row[s] > row[slot[i]]):
                slot[i] = s
    for s in reversed(there):  # the first of several that want one anchor has it
        best = max(range(len(anchors)), key=lambda i: (shared[i][s], -i))
        slot[best] = s
    return slot


def test_anchors_are_matched_by_overlap_and_no_box_is_left_out():
    rng = np.random.default_rng(0)
    anchors = boxes.anchor_boxes(16, range(2, 4), 1.0)
    box = np.concatenate([rng.uniform(2, 14, (6, 7, 2)), rng.uniform(1, 12, (6, 7, 2))], -1)
    label = rng.integers(-1, 3, (6, 7))
    label[1] = -1  # nothing there
    box[2, 1] = box[2, 0]  # two boxes alike want one anchor
    label[2, :2] = 0
    box[3, 0], label[3, 0] = (8, 8, 0.5, 0.1), 1  # overlaps nothing by half, several alike
    box[label < 0] = 0
    found = boxes.match(jnp.asarray(anchors), jnp.asarray(box), jnp.asarray(label))
    expected = [naive_match(anchors, *image) for image in zip(box, label, strict=True)]
    np.testing.assert_array_equal(found, expected)
    assert (np.asarray(found[1]) == -1).all() and 1 not in found[2] and 0 in found[3]


def test_the_loss_is_focal_for_classes_and_huber_for_boxes():
    recipe = get("efficientdet", dtype="float64", batch_size=3)
    c, batch = recipe.config, recipe.batch(0)
    anchors, rng = boxes.anchor_boxes(16, range(2, 4), 1.0), np.random.default_rng(1)
    logits, relative = rng.standard_normal((3, len(anchors), 8)), 0.3 * rng.standard_normal((3, len(anchors), 4))
    focal = huber = overlap = n = 0.0
    for image in range(3):
        for i, slot in enumerate(naive_match(anchors, batch["box"][image], batch["label"][image])):
            for k in range(8):
                p = 1 / (1 + np.exp(-logits[image, i, k]))
                yes = slot >= 0 and batch["label"][image, slot] == k
                focal -= 0.25 * (1 - p) ** 1.5 * np.log(p) if yes else 0.75 * p**1.5 * np.log(1 - p)
            if slot < 0:
                continue
            n, (y, x, h, w), (ay, ax, ah, aw) = n + 1, batch["box"][image, slot], anchors[i]
            for e in relative[image, i] - [(y - ay) / ah, (x - ax) / aw, np.log(h / ah), np.log(w / aw)]:
                huber += e**2 / 2 if abs(e) <= 0.1 else 0.1 * abs(e) - 0.005
            ty, tx, th, tw = relative[image, i]
            said = ty * ah + ay, tx * aw + ax, ah * np.exp(th), aw * np.exp(tw)
            overlap += naive_overlap(said, batch["box"][image, slot])
    loss, (metrics, _) = losses(c, jnp.asarray(logits), jnp.asarray(relative), batch, None)
    assert float(metrics["class_loss"]) == pytest.approx(focal / (n + 1), rel=1e-12)
    assert float(metrics["box_loss"]) == pytest.approx(50 * huber / (4 * n + 4), rel=1e-12)
    assert float(metrics["overlap"]) == pytest.approx(overlap / n, rel=1e-12)
    assert float(loss) == pytest.approx(focal / (n + 1) + 50 * huber / (4 * n + 4), rel=1e-12)


def test_boxes_are_decoded_as_they_are_encoded():
    rng = np.random.default_rng(0)
    box, anchors = rng.uniform(1, 9, (2, 5, 4))
    np.testing.assert_allclose(boxes.decode(boxes.encode(box, anchors), anchors), box, rtol=1e-12)


def test_things_are_where_their_boxes_say():
    batch = get("efficientdet", image=64, slots=1).batch(0)
    assert (batch["label"] >= 0).all()
    for image, (y, x, h, w) in zip(batch["image"], batch["box"][:, 0], strict=True):
        top, left = round(y - h / 2), round(x - w / 2)
        inside = image[top : top + round(h), left : left + round(w)]
        assert inside.shape[:2] == (round(h), round(w))
        assert len(np.unique(inside.reshape(-1, 3), axis=0)) <= 64  # a pattern of 8 x 8; noise repeats nowhere
        assert len(np.unique(image.reshape(-1, 3), axis=0)) >= 64**2 - round(h) * round(w)
