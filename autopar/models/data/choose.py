"""What a recipe is trained on: real data where its batches are of a kind that there is, else its own batches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autopar.models.data.pictures import Pictures, load_digits, read_pictures
from autopar.models.data.text import VOCAB, Text, load_text, read_text
from autopar.models.recipe import Batch, Recipe

EVAL_SEEDS = 2**32  # of a recipe's own batches: seeds from here on are for evaluation


@dataclass(frozen=True)
class Data:
    """Batches to train on and to evaluate with.

    Attributes:
        train: seed -> batch; the same seed gives the same batch.
        evaluation: seed -> batch of what is never trained on.
        about: what they are, for people.
    """

    train: Callable[[int], Batch]
    evaluation: Callable[[int], Batch]
    about: str


def data_for(recipe: Recipe, path: str | Path | None = None) -> Data:
    """Chooses by the names of a batch's arrays.

    "tokens" and "targets" are bytes of text (with "weights" those of a model that predicts masked ones), "image" and
    "label" are handwritten digits. Everything else, and a model too small for bytes or ten classes, is trained on
    batches that the recipe synthesises.

    Args:
        recipe: what is to be trained.
        path: a file to read the text or the images from instead.

    Returns:
        The data.

    Raises:
        ValueError: a file is damaged or does not fit the model, or one was given for a model that reads none.
    """
    names = set(recipe.batch_spec) if isinstance(recipe.batch_spec, Mapping) else set()
    config: Any = recipe.config
    if names in ({"tokens", "targets"}, {"tokens", "targets", "weights"}) and (path or config.vocab >= VOCAB):
        return _text(recipe, path)
    if names == {"image", "label"} and (path or config.classes >= 10):
        return _pictures(recipe, path)
    if path is not None:
        raise ValueError(
            f"{recipe.name} was to be trained on {path}, but its batches are {', '.join(sorted(names))}: only models "
            "of tokens and targets, or of image and label, read a file"
        )
    return Data(recipe.batch, lambda seed: recipe.batch(EVAL_SEEDS + seed), recipe.about_batches)


def _text(recipe: Recipe, path: str | Path | None) -> Data:
    vocab, sequence = recipe.config.vocab, recipe.batch_spec["tokens"].shape[1]  # type: ignore[attr-defined]
    if vocab < VOCAB:
        raise ValueError(f"{recipe.name} was to be trained on bytes, but its vocabulary is {vocab}; set vocab={VOCAB}")
    text = load_text() if path is None else read_text(path)
    whose = "the standard library's sources" if path is None else str(path)

    def of(split: str) -> Callable[[int], Batch]:
        return lambda seed: _masked(recipe, seed, text.batch(seed, recipe.config.batch_size, sequence, split))

    of("eval")(0), of("train")(0)  # too short a text is found out now
    return Data(of("train"), of("eval"), f"{whose}, {_size(text)} MB of bytes")


def _size(text: Text) -> str:
    return f"{len(text.train) / 1e6:.3g}"


def _masked(recipe: Recipe, seed: int, batch: dict[str, np.ndarray]) -> Batch:
    """For a model with "weights": the bytes themselves are predicted where the recipe's own batch hides its tokens."""
    if "weights" not in recipe.batch_spec:
        return batch
    weights = recipe.batch(seed)["weights"]
    return {"tokens": np.where(weights > 0, 0, batch["tokens"]), "targets": batch["tokens"], "weights": weights}


def _pictures(recipe: Recipe, path: str | Path | None) -> Data:
    pictures: Pictures = load_digits() if path is None else read_pictures(path)
    config, spec = recipe.config, recipe.batch_spec["image"]
    if pictures.classes > config.classes:  # type: ignore[attr-defined]
        raise ValueError(
            f"{path} has labels up to {pictures.classes - 1}, but {recipe.name} knows {config.classes} classes; "  # type: ignore[attr-defined]
            f"set classes={pictures.classes}"
        )

    def of(split: str) -> Callable[[int], Batch]:
        return lambda seed: pictures.batch(seed, config.batch_size, spec.shape[1], spec.dtype, split)

    whose = "scikit-learn's handwritten digits" if path is None else str(path)
    return Data(of("train"), of("eval"), f"{whose}, {len(pictures.images['train']):,} images")
