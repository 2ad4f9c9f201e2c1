"""Boxes in images: anchors, overlaps, which anchor stands for which box, and the losses of what is said of them.

A box is (y, x, height, width) in pixels, y and x those of its centre. True boxes come in a fixed number of slots; those
that are empty have class -1.
"""

import jax
import jax.numpy as jnp
import numpy as np

SCALES = tuple(2 ** (octave / 3) for octave in range(3))
RATIOS = (1.0, 2.0, 0.5)  # width / height
ANCHORS = len(SCALES) * len(RATIOS)  # at every pixel of every level
MATCHED = 0.5


def anchor_boxes(image: int, levels: range, scale: float) -> np.ndarray:
    """The boxes that a detector's answers are relative to.

    Args:
        image: pixels a side.
        levels: level l has a pixel for every 2^l pixels of the image.
        scale: side of a level's smallest square anchor, in its pixels.

    Returns:
        [anchors, 4] float64: by level, row, column, scale, ratio.
    """
    octaves, ratios = (grid.ravel() for grid in np.meshgrid(SCALES, RATIOS, indexing="ij"))
    shapes = np.stack([octaves / ratios**0.5, octaves * ratios**0.5], axis=-1)
    boxes = []
    for stride in (2**level for level in levels):
        centres = (np.arange(image // stride) + 0.5) * stride
        grid = np.stack(np.meshgrid(centres, centres, indexing="ij"), axis=-1)
        sides = np.broadcast_to(scale * stride * shapes, (*grid.shape[:2], *shapes.shape))
        boxes.append(np.concatenate([np.broadcast_to(grid[:, :, None], sides.shape), sides], axis=-1).reshape(-1, 4))
    return np.concatenate(boxes)


def overlap(these: jax.Array, those: jax.Array) -> jax.Array:
    """Intersection over union of boxes: [..., 4] and [..., 4], broadcast, -> [...]; 0 for boxes without an area."""
    low = jnp.maximum(these[..., :2] - these[..., 2:] / 2, those[..., :2] - those[..., 2:] / 2)
    high = jnp.minimum(these[..., :2] + these[..., 2:] / 2, those[..., :2] + those[..., 2:] / 2)
    shared = jnp.maximum(high - low, 0).prod(axis=-1)
    union = these[..., 2:].prod(axis=-1) + those[..., 2:].prod(axis=-1) - shared
    return shared / jnp.maximum(union, jnp.finfo(union.dtype).tiny)


def match(anchors: jax.Array, boxes: jax.Array, label: jax.Array) -> jax.Array:
    """Which true box each anchor stands for.

    That which it overlaps most, by half at least. And each box has the anchor that overlaps it most, however little;
    of several boxes that want one anchor the first has it, and of anchors and boxes that overlap alike the first, too.

    Args:
        anchors: [anchors, 4].
        boxes: [b, slots, 4].
        label: [b, slots] integers, -1 where there is no box.

    Returns:
        [b, anchors] int32, the slot of the box, or -1 for background.
    """
    shared = jnp.where(label[:, None] >= 0, overlap(anchors[:, None], boxes[:, None]), -1)  # [b, anchors, slots]
    nearest = jnp.where(shared.max(axis=2) >= MATCHED, shared.argmax(axis=2), -1)
    favourite = shared.argmax(axis=1)  # [b, slots]
    wanted = (favourite[:, None] == jnp.arange(len(anchors))[:, None]) & (label[:, None] >= 0)
    slots = label.shape[1]
    first = jnp.where(wanted, jnp.arange(slots), slots).min(axis=2)
    return jnp.where(first < slots, first, nearest).astype(jnp.int32)


def encode(boxes: jax.Array, anchors: jax.Array) -> jax.Array:
    """Boxes relative to anchors: shifts in sides of the anchor and logarithms of sides, [..., 4] each -> [..., 4]."""
    shift = (boxes[..., :2] - anchors[..., :2]) / anchors[..., 2:]
    return jnp.concatenate([shift, jnp.log(boxes[..., 2:] / anchors[..., 2:])], axis=-1)


def decode(relative: jax.Array, anchors: jax.Array) -> jax.Array:
    """The inverse of `encode`."""
    centre = relative[..., :2] * anchors[..., 2:] + anchors[..., :2]
    return jnp.concatenate([centre, jnp.exp(relative[..., 2:]) * anchors[..., 2:]], axis=-1)


def focal_loss(logits: jax.Array, target: jax.Array, alpha: float = 0.25, gamma: float = 1.5) -> jax.Array:
    """Cross entropy of yes or no that forgives what is nearly right (Lin et al. 2017).

    Args:
        logits: of yes, any shape.
        target: 1 for yes and 0 for no, of that shape.
        alpha: weight of a yes; a no weighs 1 - alpha.
        gamma: the power of the probability of what is wrong, by which the cross entropy is multiplied.

    Returns:
        That shape: -alpha_t (1 - p_t)^gamma log(p_t).
    """
    right = jnp.where(target > 0, logits, -logits)
    weight = jnp.where(target > 0, alpha, 1 - alpha)
    return -weight * jax.nn.sigmoid(-right) ** gamma * jax.nn.log_sigmoid(right)


def huber_loss(error: jax.Array, delta: float = 0.1) -> jax.Array:
    """Half the square of an error, and from `delta` on a straight line."""
    size = jnp.abs(error)
    return jnp.where(size <= delta, error**2 / 2, delta * (size - delta / 2))
