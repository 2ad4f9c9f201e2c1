"""Real images: scikit-learn's handwritten digits, which are part of that package, or a file of one's own."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autopar.models.data.splits import EVAL_EVERY, of_split

ARRAYS = ("image", "label")


@dataclass(frozen=True)
class Pictures:
    """Images and their classes, split in two.

    Attributes:
        images: split -> [n, height, width, 3] float32, mean 0 and variance 1 over the training images.
        labels: split -> [n] int32.
    """

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]

    @property
    def classes(self) -> int:
        """One more than the largest label."""
        return 1 + max(int(label.max()) for label in self.labels.values())

    def batch(
        self, seed: int, batch_size: int, size: int, dtype: np.dtype, split: str = "train"
    ) -> dict[str, np.ndarray]:
        """Images drawn at random, brought to one size by repeating or leaving out pixels.

        Args:
            seed: the same seed gives the same batch.
            batch_size: number of images.
            size: pixels along each side.
            dtype: floating dtype of the pixels.
            split: "train" or "eval".

        Returns:
            {"image": [batch_size, size, size, 3], "label": [batch_size] int32}.
        """
        images, labels = of_split(self.images, split), of_split(self.labels, split)
        chosen = np.random.default_rng(seed).integers(0, len(images), batch_size)
        rows, columns = (np.arange(size) * n // size for n in images.shape[1:3])
        return {"image": images[chosen][:, rows][:, :, columns].astype(dtype), "label": labels[chosen]}


def load_digits() -> Pictures:
    """1,797 handwritten digits of 8 x 8 pixels (Alpaydin & Kaynak 1998), every tenth held out."""
    from sklearn import datasets  # noqa: PLC0415 (takes longer to import than all of jax, for this alone)

    found = datasets.load_digits()
    return _split(found.images[..., None], found.target)


def read_pictures(path: str | Path) -> Pictures:
    """Reads an .npz file with arrays "image" [n, height, width, 1 or 3] and "label" [n]; every tenth is held out.

    Args:
        path: the file, as `numpy.savez` writes it.

    Returns:
        The images.

    Raises:
        ValueError: when there is no such file, it is damaged, or it holds something else.
    """
    asked = f'images to train on were to be read from {path}, an .npz file with arrays "image" and "label"'
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in ARRAYS if name in found}
            names = list(found)
    except OSError as error:
        raise ValueError(f"{asked}: {error.strerror or error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise ValueError(f"{asked}, but it is damaged or of another kind: {error}") from None
    if set(arrays) != set(ARRAYS):
        raise ValueError(f"{asked}, but it has {', '.join(names) or 'no arrays'}")
    image, label = arrays["image"], arrays["label"]
    if image.ndim != 4 or image.shape[-1] not in (1, 3) or label.shape != image.shape[:1] or len(image) < EVAL_EVERY:
        raise ValueError(
            f"{asked}, but their shapes are {image.shape} and {label.shape}; give [n, height, width, 1 or 3] and [n], "
            f"n at least {EVAL_EVERY}"
        )
    if not np.issubdtype(label.dtype, np.integer) or label.min() < 0:
        raise ValueError(f"{asked}, but labels are {label.dtype} from {label.min()} on; give integers from 0 on")
    return _split(image, label)


def _split(image: np.ndarray, label: np.ndarray) -> Pictures:
    held_out = np.arange(len(image)) % EVAL_EVERY == EVAL_EVERY - 1
    image = np.broadcast_to(image, (*image.shape[:-1], 3)).astype(np.float32)
    seen = image[~held_out]
    image = (image - seen.mean()) / max(float(seen.std()), 1e-6)
    parts = {"train": ~held_out, "eval": held_out}
    return Pictures(
        {split: image[part] for split, part in parts.items()},
        {split: label[part].astype(np.int32) for split, part in parts.items()},
    )
