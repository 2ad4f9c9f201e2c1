"""Vision mixtures of experts: a ViT whose last feed-forwards are made of experts; plain JAX.

Router "image" is Mobile V-MoE (Daxberger et al. 2023): one router, of what the layers before the first routed one say
of an image on average over its patches, sends the whole image to the same expert in every routed layer. It is trained
to tell super-classes, one for each expert, by a cross-entropy of weight `super_weight`; there is no balancing loss.
With a router of tokens, such as "top2", it is V-MoE (Riquelme et al. 2021): every routed layer sends each patch where
it likes, and a loss balances the load.

Parameters: 3 p^2 d + (image / p)^2 d + L (4 d^2) + (L - R) 2 d F + R E 2 d F + d C, p pixels along a patch, R routed
layers, E experts, C classes, plus routers, norms and biases. Of Mobile V-MoE no counts are published; what one image
uses of "tiny" is a ViT-Tiny, with patches of 16 pixels its well-known 5.7 million, with 32 another 0.4.

Deviations: super-classes are ranges of classes, where the paper clusters those that a dense model confuses. A group of
`group` images shares the slots of the experts; an image that finds none passes by. Experts have no biases, classes are
told from the mean of the patches, and V-MoE's gates are divided by their sum and have no noise; its priorities of
patches are left out. The number of experts of "tiny" is where the paper's accuracy peaks (figure 3); patches of 32
pixels are what its FLOPs say. The 18,291 classes of the large presets are those of JFT-300M.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax

from autopar.models.data.images import image_batches
from autopar.models.layers import plain as L
from autopar.models.layers.experts import Experts, MoEAux, moe_init, moe_layer, router_loss
from autopar.models.recipe import Batch, Config, Family, LossOut, Pytree, Recipe, make_recipe


@dataclass(frozen=True, kw_only=True)
class VMoEConfig(Config):
    """Sizes.

    Attributes:
        image: pixels along an image, square and RGB.
        patch: pixels along a patch.
        routed_layers: how many layers have experts: the last one, the one `every` layers before it, and so on.
        group: images routed together.
        super_weight: weight of the router's cross-entropy with super-classes (router "image").
        aux_weight: weight of the balancing loss (routers of patches).
    """

    batch_size: int = 32
    image: int = 16
    patch: int = 4
    hidden: int = 32
    layers: int = 2
    heads: int = 8
    ffn: int = 64
    classes: int = 16
    router: str = "image"
    experts: int = 8
    routed_layers: int = 1
    every: int = 1
    group: int = 4
    capacity_factor: float = 2.0
    super_weight: float = 0.3
    aux_weight: float = 0.01

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        if self.image % self.patch:
            raise ValueError(f"image ({self.image} pixels) must be a multiple of patch ({self.patch})")
        if self.routed_layers * self.every > self.layers:
            raise ValueError(
                f"routed_layers ({self.routed_layers}), one in {self.every} (every), need "
                f"{self.routed_layers * self.every} layers, but there are {self.layers}"
            )
        if self.spec.by_example and self.experts > self.classes:
            raise ValueError(
                f"each expert has a super-class: experts ({self.experts}) must be at most classes ({self.classes})"
            )
        self.spec.check_groups(self.batch_size, self.patches)

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.image // self.patch) ** 2

    @property
    def spec(self) -> Experts:
        """The router and its experts."""
        return Experts(
            router=self.router,
            experts=self.experts,
            group=self.group * self.patches,
            capacity_factor=self.capacity_factor,
            aux_weight=self.aux_weight,
            ffn=self.ffn,
        )

    def is_routed(self, layer: int) -> bool:
        """Whether a layer has experts."""
        distance = self.layers - 1 - layer
        return distance % self.every == 0 and distance < self.routed_layers * self.every


def _large(hidden: int, layers: int, ffn: int, patch: int) -> VMoEConfig:
    return VMoEConfig(
        hidden=hidden,
        layers=layers,
        heads=16,
        ffn=ffn,
        patch=patch,
        router="top2",
        experts=32,
        routed_layers=layers // 2,
        every=2,
        group=4,
        capacity_factor=1.05,
        image=224,
        classes=18_291,
        batch_size=4096,
        dtype="bfloat16",
        learning_rate=4e-4,
    )


PRESETS = {
    "toy": VMoEConfig(),
    "tiny": VMoEConfig(
        hidden=192,
        layers=12,
        heads=3,
        ffn=768,
        patch=32,
        experts=10,
        routed_layers=2,
        group=32,
        image=224,
        classes=1000,
        batch_size=1024,
        dtype="bfloat16",
    ),
    "l16": _large(1024, 24, 4096, 16),
    "15b": _large(1408, 48, 6400, 14),
}


# Under a jit of its own a layer is traced once for all that are alike.
@partial(jax.jit, static_argnames=("c", "routed"))
def init_layer(key: jax.Array, c: VMoEConfig, routed: bool) -> L.Params:
    """One encoder layer, with a dense ("mlp") or a routed ("moe") feed-forward."""
    k1, k2 = jax.random.split(key)
    out_std = 0.02 / (2 * c.layers) ** 0.5
    layer = {
        "ln1": L.layer_norm_init(c.hidden, c.param_dtype),
        "attn": L.attention_init(k1, c.hidden, c.heads, c.param_dtype, out_std),
        "ln2": L.layer_norm_init(c.hidden, c.param_dtype),
    }
    if not routed:
        return {**layer, "mlp": L.mlp_init(k2, c.hidden, c.ffn, c.param_dtype, out_std)}
    moe = moe_init(k2, c.hidden, c.spec, c.param_dtype, out_std)
    if c.spec.by_example:
        del moe["router"]  # that of the whole model decides
    return {**layer, "moe": moe}


def init_params(key: jax.Array, c: VMoEConfig) -> L.Params:
    """The whole model."""
    k_patch, k_positions, k_router, k_head, k_layers = jax.random.split(key, 5)
    keys = enumerate(jax.random.split(k_layers, c.layers))
    router = {"router": L.normal(k_router, (c.hidden, c.experts), c.param_dtype)} if c.spec.by_example else {}
    return router | {
        "patch": L.normal(k_patch, (c.patch, c.patch, 3, c.hidden), c.param_dtype),
        "positions": L.normal(k_positions, (c.patches, c.hidden), c.param_dtype),
        "layers": [init_layer(k, c, c.is_routed(i)) for i, k in keys],
        "ln_f": L.layer_norm_init(c.hidden, c.param_dtype),
        "head": L.normal(k_head, (c.hidden, c.classes), c.param_dtype),
        "head_bias": jnp.zeros((c.classes,), c.param_dtype),
    }


@partial(jax.jit, static_argnames="c")
def encoder_layer(
    p: L.Params, x: jax.Array, router: jax.Array | None, task: jax.Array | None, c: VMoEConfig
) -> tuple[jax.Array, MoEAux | None]:
    """Attention and feed-forward, each added to the residual stream.

    Args:
        p: what `init_layer` returns.
        x: [b, n, d], patches.
        router: [d, e] of the whole model, for experts of images.
        task: [b, d], what it asks about each image.
        c: sizes.

    Returns:
        [b, n, d]; and what the layer's routing was, None for a dense one.
    """
    y = L.layer_norm(p["ln1"], x)
    x = x + L.attention(p["attn"], y, y, jnp.ones((c.patches, c.patches), bool))
    y = L.layer_norm(p["ln2"], x)
    if "mlp" in p:
        return x + L.mlp(p["mlp"], y), None
    y, aux = moe_layer(p["moe"] if router is None else {**p["moe"], "router": router}, y, c.spec, task=task)
    return x + y, aux


def encoder(p: L.Params, image: jax.Array, c: VMoEConfig) -> tuple[jax.Array, jax.Array | None, list[MoEAux]]:
    """Classifies images.

    Args:
        p: what `init_params` returns.
        image: [b, image, image, 3].
        c: sizes.

    Returns:
        Logits of the classes [b, classes]; those of the super-classes [b, experts] with router "image", else None; what
        the routers say.
    """
    side = c.image // c.patch
    patches = image.astype(c.compute_dtype).reshape(-1, side, c.patch, side, c.patch, 3)
    x = jnp.einsum("bipjqc,pqcd->bijd", patches, p["patch"].astype(patches.dtype))
    x = x.reshape(-1, c.patches, c.hidden) + p["positions"].astype(x.dtype)
    router, task, said = p.get("router"), None, []
    for i, layer in enumerate(p["layers"]):
        if router is not None and task is None and c.is_routed(i):
            task = x.astype(c.param_dtype).mean(axis=1)
        x, aux = encoder_layer(layer, x, router, task, c)
        said += [aux] if aux else []
    mean = L.layer_norm(p["ln_f"], x).astype(c.param_dtype).mean(axis=1)
    return mean @ p["head"] + p["head_bias"], None if task is None else task @ router, said


def make(family: Family, preset: str, c: VMoEConfig) -> Recipe:
    """Builds the recipe; images are `data.images`."""

    def loss(params: Pytree, batch: Batch, key: jax.Array | None, stats: None) -> LossOut:
        logits, super_logits, said = encoder(params, batch["image"], c)
        nll, accuracy = _scores(logits, batch["label"])
        metrics = {"cross_entropy": nll, "accuracy": accuracy}
        if super_logits is None:
            extra, means = router_loss(said, c.spec)
            return nll + extra, (metrics | means, None)
        super_nll, router_accuracy = _scores(super_logits, batch["label"] * c.experts // c.classes)
        return nll + c.super_weight * super_nll, (metrics | {"router_accuracy": router_accuracy}, None)

    return make_recipe(
        family,
        preset,
        c,
        init=lambda key: (init_params(key, c), None),
        loss=loss,
        unused=lambda params: c.routed_layers * c.spec.idle_parameters(c.hidden),
        **image_batches(c.batch_size, c.image, c.classes, c.param_dtype),
    )


def _scores(logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy and accuracy."""
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return nll.mean(), (jnp.argmax(logits, axis=-1) == label).astype(nll.dtype).mean()


FAMILY = Family(
    name="vmoe",
    summary="vision Transformer with experts for whole images (Mobile V-MoE) or for patches (V-MoE); plain JAX",
    source="Daxberger et al. 2023 (Mobile V-MoE), Riquelme et al. 2021 (V-MoE)",
    presets=PRESETS,
    make=make,
)
