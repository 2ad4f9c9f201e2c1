"""Synthetic pictures of things, with the box and the class of each: a patterned rectangle for every thing, on noise."""

from functools import partial
from typing import Any

import jax
import numpy as np


def scene_batch(
    seed: int, batch_size: int, size: int, classes: int, slots: int, dtype: np.dtype
) -> dict[str, np.ndarray]:
    """Square RGB pictures of one to `slots` things; later ones hide earlier ones.

    Args:
        seed: the same seed gives the same batch; the patterns are the same for all seeds.
        batch_size: number of pictures.
        size: pixels along each side.
        classes: number of classes.
        slots: most things in a picture.
        dtype: floating dtype of pixels and boxes.

    Returns:
        {"image": [batch_size, size, size, 3], "box": [batch_size, slots, 4] (y and x of the centre, height, width,
        in pixels), "label": [batch_size, slots] int32, -1 where there is no thing, and the box is zeros}.
    """
    rng = np.random.default_rng(seed)
    patterns = 2 * np.random.default_rng(0).standard_normal((classes, 8, 8, 3), dtype=np.float32)
    things = rng.integers(1, slots + 1, batch_size)
    label = np.where(np.arange(slots) < things[:, None], rng.integers(0, classes, (batch_size, slots)), -1)
    sides = rng.integers(max(1, size // 8), size * 3 // 4 + 1, (batch_size, slots, 2))
    corners = rng.integers(0, size - sides + 1)
    image = rng.standard_normal((batch_size, size, size, 3), dtype=np.float32)
    for picture, count, kinds, corner, side in zip(image, things, label, corners, sides, strict=True):
        for kind, (top, left), (height, width) in zip(kinds[:count], corner, side, strict=False):
            rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
            picture[top : top + height, left : left + width] = patterns[kind][rows][:, columns]
    box = np.concatenate([corners + sides / 2, sides], axis=-1) * (label >= 0)[..., None]
    return {"image": image.astype(dtype), "box": box.astype(dtype), "label": label.astype(np.int32)}


def scene_spec(batch_size: int, size: int, slots: int, dtype: np.dtype) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of `scene_batch`."""
    return {
        "image": jax.ShapeDtypeStruct((batch_size, size, size, 3), dtype),
        "box": jax.ShapeDtypeStruct((batch_size, slots, 4), dtype),
        "label": jax.ShapeDtypeStruct((batch_size, slots), np.int32),
    }


def scene_batches(batch_size: int, size: int, classes: int, slots: int, dtype: np.dtype) -> dict[str, Any]:
    """What `make_recipe` is told of such batches."""
    return {
        "batch": partial(scene_batch, batch_size=batch_size, size=size, classes=classes, slots=slots, dtype=dtype),
        "batch_spec": scene_spec(batch_size, size, slots, dtype),
        "unit": "images",
    }
