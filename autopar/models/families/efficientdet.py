"""EfficientDet: objects found in images by an EfficientNet, a pyramid of features mixed both ways, and two heads.

Levels P3 to P7 have a pixel for every 2^l of the image: P3 to P5 are the backbone's, P6 is P5 projected and pooled,
P7 is P6 pooled. Layers of BiFPN mix them. At every pixel of every level stand nine anchors, of which one head says how
likely each class is there, and the other where the box lies, relative to the anchor. The heads' convolutions serve all
levels, their batch norms one each. Boxes are matched to anchors in the loss.

Loss, with n the number of anchors that stand for boxes in the batch: focal loss of the classes of all anchors
/ (n + 1), and 50 times the Huber loss (0.1) of the boxes of those n, / (4 n + 4), as the authors' code has it; the
paper gives alpha = 0.25 and gamma = 1.5. Metrics are the two parts, and the mean overlap of those n boxes with the
true ones.

Deviations: no bias before a batch norm, and none in the batch norms of the backbone that end a block (see
EfficientNet); all sizes fuse by weights (the authors' D6 and D7 add); no stochastic depth.

Parameters: EfficientNet's without its head; per layer of BiFPN 8 w (w + 11) and 19 weights; projections; heads of d
layers: 2 d w (w + 19), and w times the 810 and 36 numbers they give, nine each of 90 classes and 4 sides.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from autopar.models.data.scenes import scene_batches
from autopar.models.families.efficientnet import EfficientNetConfig
from autopar.models.layers import boxes
from autopar.models.layers.bifpn import BiFPN, Lateral, Separable, shrink
from autopar.models.layers.convolutional import batch_norm
from autopar.models.layers.mbconv import STAGES, Backbone
from autopar.models.recipe import Batch, Family, LossOut, Pytree, Recipe, make_recipe


@dataclass(frozen=True, kw_only=True)
class EfficientDetConfig(EfficientNetConfig):
    """Sizes.

    Attributes:
        hidden: channels of the pyramid and the heads.
        layers: of BiFPN.
        head_layers: convolutions of each head before the last.
        lowest: the first level of the pyramid.
        highest: its last level.
        anchor_scale: side of the smallest square anchor, in its level's pixels.
        slots: most boxes in an image.
    """

    hidden: int = 64
    layers: int = 3
    head_layers: int = 3
    lowest: int = 3
    highest: int = 7
    anchor_scale: float = 4.0
    slots: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        found = 1 + sum(stage.stride > 1 for stage in STAGES[: self.stages])
        if not self.lowest <= found or self.lowest >= self.highest:
            raise ValueError(
                f"lowest ({self.lowest}) must be at most {found}, the last level of a backbone of {self.stages} "
                f"stages, and below highest ({self.highest})"
            )
        if self.image % 2**self.highest or self.image < 2 ** (self.highest + 1):
            raise ValueError(
                f"image ({self.image} pixels a side) must be two or more times {2**self.highest}, which is a pixel of "
                f"level {self.highest}; change image or highest"
            )


def _scaled(size: int, width: float, depth: float, image: int, hidden: int) -> EfficientDetConfig:
    """The paper's scaling, equations 1 to 3 and table 1."""
    return EfficientDetConfig(
        width=width,
        depth=depth,
        image=image,
        hidden=hidden,
        layers=min(3 + size, 8),
        head_layers=3 + size // 3,
        anchor_scale=5.0 if size == 7 else 4.0,
        classes=90,
        batch_size=128,
        dtype="bfloat16",
    )


PRESETS = {
    "toy": EfficientDetConfig(
        width=0.5,
        depth=0.5,
        stages=2,
        image=16,
        hidden=16,
        layers=1,
        head_layers=1,
        lowest=2,
        highest=3,
        anchor_scale=1.0,
        classes=8,
        slots=4,
        batch_size=8,
    ),
    "d0": _scaled(0, 1.0, 1.0, 512, 64),
    "d1": _scaled(1, 1.0, 1.1, 640, 88),
    "d2": _scaled(2, 1.1, 1.2, 768, 112),
    "d3": _scaled(3, 1.2, 1.4, 896, 160),
    "d4": _scaled(4, 1.4, 1.8, 1024, 224),
    "d5": _scaled(5, 1.6, 2.2, 1280, 288),
    "d6": _scaled(6, 1.8, 2.6, 1280, 384),
    "d7": _scaled(7, 1.8, 2.6, 1536, 384),
}


class Head(nn.Module):
    """`answers` numbers about every anchor; the last convolution's bias starts at `bias`."""

    config: EfficientDetConfig
    answers: int
    bias: float = 0.0
    train: bool = True

    @nn.compact
    def __call__(self, levels: list[jax.Array]) -> jax.Array:
        """[b, h, w, hidden] of each level -> [b, anchors, answers], in the parameters' dtype."""
        c = self.config
        convolutions = [Separable(c, c.hidden, name=f"mix_{i}") for i in range(c.head_layers)]
        answer = Separable(c, boxes.ANCHORS * self.answers, name="answer")
        start = nn.initializers.constant(self.bias)
        bias = self.param("bias", start, (boxes.ANCHORS * self.answers,), c.param_dtype)
        found = []
        for level, x in enumerate(levels, start=c.lowest):
            for i, convolution in enumerate(convolutions):
                x = nn.silu(batch_norm(c, self.train, name=f"norm_{i}_of_{level}")(convolution(x)))
            found.append((answer(x) + bias).reshape(len(x), -1, self.answers))
        return jnp.concatenate(found, axis=1)


class EfficientDet(nn.Module):
    """Images [b, h, w, 3] -> logits of classes [b, anchors, classes], boxes relative to anchors [b, anchors, 4]."""

    config: EfficientDetConfig

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> tuple[jax.Array, jax.Array]:
        """Normalised by the batch's own statistics, or else by the running ones."""
        c = self.config
        levels = Backbone(c, name="backbone")(x, train)[c.lowest - 1 : c.highest]
        for level in range(c.lowest + len(levels), c.highest + 1):
            levels.append(shrink(Lateral(c, train, name=f"lateral_{level}")(levels[-1])))
        for i in range(c.layers):
            levels = BiFPN(c, train, name=f"bifpn_{i}")(levels)
        rare = -math.log(99)  # one anchor in a hundred is somewhat of a class, to begin with
        classes = Head(c, c.classes, rare, train, name="classes")(levels)
        return classes, Head(c, 4, train=train, name="boxes")(levels)


def losses(c: EfficientDetConfig, logits: jax.Array, relative: jax.Array, batch: Batch, stats: Pytree) -> LossOut:
    """The loss of what a detector says.

    Args:
        c: the sizes.
        logits: of classes, [b, anchors, classes].
        relative: boxes, [b, anchors, 4].
        batch: "box" [b, slots, 4] and "label" [b, slots].
        stats: passed on.

    Returns:
        The loss and its metrics.
    """
    anchors = jnp.asarray(boxes.anchor_boxes(c.image, range(c.lowest, c.highest + 1), c.anchor_scale), relative.dtype)
    slot = boxes.match(anchors, batch["box"], batch["label"])
    matched, index = slot >= 0, jnp.maximum(slot, 0)
    box = jnp.where(matched[..., None], jnp.take_along_axis(batch["box"], index[..., None], axis=1), anchors)
    label = jnp.where(matched, jnp.take_along_axis(batch["label"], index, axis=1), -1)
    count = matched.sum().astype(relative.dtype)

    focal = boxes.focal_loss(logits, jax.nn.one_hot(label, c.classes, dtype=logits.dtype))
    class_loss = focal.sum() / (count + 1)
    huber = boxes.huber_loss(relative - boxes.encode(box, anchors))
    box_loss = 50 * jnp.where(matched[..., None], huber, 0).sum() / (4 * (count + 1))
    shared = jnp.where(matched, boxes.overlap(boxes.decode(relative, anchors), box), 0).sum() / jnp.maximum(count, 1)
    return class_loss + box_loss, ({"class_loss": class_loss, "box_loss": box_loss, "overlap": shared}, stats)


def make(family: Family, preset: str, c: EfficientDetConfig) -> Recipe:
    """Builds the recipe; pictures and boxes are `data.scenes`."""
    model = EfficientDet(c)

    def init(key: jax.Array) -> tuple[Pytree, Pytree]:
        variables = model.init(key, jnp.zeros((1, c.image, c.image, 3), c.param_dtype))
        # Flax keeps running statistics in float32, but returns them in the dtype it computed in.
        return variables["params"], jax.tree.map(lambda s: s.astype(c.param_dtype), variables["batch_stats"])

    def loss(params: Pytree, batch: Batch, key: jax.Array | None, stats: Pytree) -> LossOut:
        variables = {"params": params, "batch_stats": stats}
        (logits, relative), changed = cast(Any, model.apply(variables, batch["image"], mutable=["batch_stats"]))
        return losses(c, logits, relative, batch, changed["batch_stats"])

    def evaluate(params: Pytree, batch: Batch, key: jax.Array | None, stats: Pytree) -> LossOut:
        variables = {"params": params, "batch_stats": stats}
        logits, relative = cast(Any, model.apply(variables, batch["image"], train=False))
        return losses(c, logits, relative, batch, stats)

    return make_recipe(
        family,
        preset,
        c,
        init=init,
        loss=loss,
        evaluate=evaluate,
        about_batches="pictures of patterned rectangles",
        **scene_batches(c.batch_size, c.image, c.classes, c.slots, c.param_dtype),
    )


FAMILY = Family(
    name="efficientdet",
    summary="object detection: EfficientNet, features mixed across resolutions (BiFPN), anchors; Flax Linen",
    source="Tan, Pang & Le 2020",
    presets=PRESETS,
    make=make,
)
