"""Synthetic images with labels: noise around one random pattern per class."""

from functools import partial
from typing import Any

import jax
import numpy as np


def image_batch(seed: int, batch_size: int, size: int, classes: int, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Square RGB images and the class of each.

    Args:
        seed: the same seed gives the same batch; the patterns are the same for all seeds.
        batch_size: number of images.
        size: pixels along each side.
        classes: number of classes.
        dtype: floating dtype of the pixels.

    Returns:
        {"image": [batch_size, size, size, 3], "label": [batch_size] int32}.
    """
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, batch_size, dtype=np.int32)
    # Patterns on an 8 x 8 grid: small whatever the number of classes.
    pattern = np.random.default_rng(0).standard_normal((classes, 8, 8, 3), dtype=np.float32)[label]
    grid = np.arange(size) * 8 // size
    image = rng.standard_normal((batch_size, size, size, 3), dtype=np.float32)
    return {"image": (image + pattern[:, grid][:, :, grid]).astype(dtype), "label": label}


def image_spec(batch_size: int, size: int, dtype: np.dtype) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of `image_batch`."""
    return {
        "image": jax.ShapeDtypeStruct((batch_size, size, size, 3), dtype),
        "label": jax.ShapeDtypeStruct((batch_size,), np.int32),
    }


def image_batches(batch_size: int, size: int, classes: int, dtype: np.dtype) -> dict[str, Any]:
    """What `make_recipe` is told of such batches."""
    return {
        "batch": partial(image_batch, batch_size=batch_size, size=size, classes=classes, dtype=dtype),
        "batch_spec": image_spec(batch_size, size, dtype),
        "unit": "images",
    }
