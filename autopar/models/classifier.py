"""What every image classifier with batch norm has in common: its state, its loss and its data."""

from dataclasses import dataclass
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from autopar.models.data.images import image_batches
from autopar.models.recipe import Batch, Config, Family, LossOut, Pytree, Recipe, make_recipe


@dataclass(frozen=True, kw_only=True)
class ImageConfig(Config):
    """Sizes of what is classified: square RGB images of `image` pixels a side, of one of `classes`."""

    image: int = 16
    classes: int = 16


def make_classifier(family: Family, preset: str, c: ImageConfig, model: nn.Module) -> Recipe:
    """Builds the recipe of a classifier; images are `data.images`.

    Args:
        family: the registry row.
        preset: what to call these sizes.
        c: the sizes.
        model: (images [b, h, w, 3], train) -> logits [b, classes], with running statistics in "batch_stats".

    Returns:
        The recipe. Running statistics are its `State.stats`, by which evaluation normalises.
    """

    def init(key: jax.Array) -> tuple[Pytree, Pytree]:
        variables = model.init(key, jnp.zeros((1, c.image, c.image, 3), c.param_dtype))
        # Flax keeps running statistics in float32, but returns them in the dtype it computed in.
        return variables["params"], jax.tree.map(lambda s: s.astype(c.param_dtype), variables["batch_stats"])

    def loss(params: Pytree, batch: Batch, key: jax.Array | None, stats: Pytree) -> LossOut:
        variables = {"params": params, "batch_stats": stats}
        logits, changed = cast(Any, model.apply(variables, batch["image"], mutable=["batch_stats"]))
        return scores(logits, batch["label"], changed["batch_stats"])

    def evaluate(params: Pytree, batch: Batch, key: jax.Array | None, stats: Pytree) -> LossOut:
        logits = cast(jax.Array, model.apply({"params": params, "batch_stats": stats}, batch["image"], train=False))
        return scores(logits, batch["label"], stats)

    return make_recipe(
        family,
        preset,
        c,
        init=init,
        loss=loss,
        evaluate=evaluate,
        **image_batches(c.batch_size, c.image, c.classes, c.param_dtype),
    )


def scores(logits: jax.Array, label: jax.Array, stats: Pytree) -> LossOut:
    """Mean cross entropy and the share of images classified rightly: logits [b, classes], label [b]."""
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    hits = jnp.argmax(logits, axis=-1) == label
    return nll.mean(), ({"accuracy": hits.astype(nll.dtype).mean()}, stats)
