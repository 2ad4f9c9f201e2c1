"""What a model is to the rest of the world: a `Recipe` (init, step, batch) built from a `Config`."""

import dataclasses
import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from autopar.models.flops import count_flops
from autopar.models.update import (
    SCHEDULES,
    LossScale,
    all_finite,
    first_scale,
    learning_rate,
    next_scale,
    optimizer,
    update,
    update_if,
)

Pytree = Any
Batch = Any
Metrics = dict[str, jax.Array]
# loss(params, batch, dropout_key, stats) -> (loss, (metrics, new stats)). Key and stats are None if unused.
LossOut = tuple[jax.Array, tuple[Metrics, Pytree]]
LossFn = Callable[[Pytree, Batch, jax.Array | None, Pytree], LossOut]
InitFn = Callable[[jax.Array], tuple[Pytree, Pytree]]

OPTIMIZERS = ("adamw", "adafactor")
DTYPES = ("float32", "bfloat16", "float16", "float64")


class State(NamedTuple):
    """Everything a training step reads and returns changed.

    Attributes:
        step: int32 scalar, the number of steps taken.
        params: the trained arrays, any pytree.
        opt_state: the optax state for `params`.
        key: the random key that dropout draws from; None in a model without dropout.
        stats: arrays that change without gradients (batch norm's running statistics); None if there are none.
        loss_scale: what the loss is multiplied by; None without `Config.loss_scaling`.
    """

    step: jax.Array
    params: Pytree
    opt_state: Pytree
    key: jax.Array | None = None
    stats: Pytree = None
    loss_scale: LossScale | None = None


@dataclass(frozen=True, kw_only=True)
class Config:
    """The sizes that every family has; each family's own config adds to them.

    Attributes:
        batch_size: examples in one step's (global) batch.
        dtype: the dtype to compute in. Parameters are float64 with "float64" and float32 otherwise, so
            "bfloat16" means the usual mixed precision.
        optimizer: "adamw" or "adafactor".
        learning_rate: the (peak) step size.
        schedule: what becomes of it after warming up: "constant", "linear" or "cosine" (down to a tenth at
            `total_steps`), or "rsqrt" (with the inverse root of the step).
        warmup_steps: steps over which it rises to its peak; 0 starts there.
        total_steps: when "linear" and "cosine" have come down.
        loss_scaling: multiply the loss by a scale that adapts itself, and skip the steps whose gradients overflow:
            what "float16" needs.
    """

    may_be_zero: ClassVar[tuple[str, ...]] = ("warmup_steps",)  # whole numbers; the others are 1 at least

    batch_size: int = 16
    dtype: str = "float32"
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup_steps: int = 0
    total_steps: int = 1000
    loss_scaling: bool = False

    @property
    def compute_dtype(self) -> np.dtype:
        """The dtype of activations and matrix products."""
        return jnp.dtype(self.dtype)

    @property
    def param_dtype(self) -> np.dtype:
        """The dtype of parameters, optimizer state and floating inputs: at least float32."""
        return jnp.promote_types(self.compute_dtype, jnp.float32)


@dataclass(frozen=True)
class Recipe:
    """Something that can be trained, at given sizes.

    Attributes:
        name: family and preset, such as "gpt:toy".
        summary: one line on the architecture.
        source: the paper the architecture or its sizes come from.
        config: the sizes it was built with.
        init: key -> `State`.
        step: (state, batch) -> (state, metrics), a plain single-device training step.
        batch: seed -> a batch of numpy arrays; the same seed gives the same batch.
        evaluate: (state, batch) -> metrics of a batch that is not trained on: no dropout, running statistics.
        parameters: () -> shapes of the parameters alone: tracing the optimizer's state takes longer than the model.
        batch_spec: the batch's pytree with `jax.ShapeDtypeStruct` leaves.
        unit: what a batch is counted in: "tokens", "images", "seconds" of audio, ...
        units: how many of them are in a batch.
        about_batches: what the batches are, for people.
        unused: shapes of the parameters -> how many of these scalars one token does not use.
    """

    name: str
    summary: str
    source: str
    config: Config
    init: Callable[[jax.Array], State]
    step: Callable[[State, Batch], tuple[State, Metrics]]
    evaluate: Callable[[State, Batch], Metrics]
    parameters: Callable[[], Pytree]
    batch: Callable[[int], Batch]
    batch_spec: Batch
    unit: str
    units: int
    about_batches: str
    unused: Callable[[Pytree], int]

    def abstract(self) -> tuple[State, Batch]:
        """The step's arguments as `jax.ShapeDtypeStruct`: no array is made, whatever the size.

        Example:
            >>> from autopar.models import get
            >>> state, batch = get("gpt", preset="39b").abstract()
            >>> batch["tokens"].shape
            (1024, 1024)
        """
        return jax.eval_shape(self.init, jax.random.key(0)), self.batch_spec

    def parameter_count(self) -> int:
        """Number of trained scalars, counted without making any."""
        return _size(self.parameters())

    def active_parameter_count(self) -> int:
        """Number of trained scalars that one token uses: without the experts that it is not sent to."""
        params = self.parameters()
        return _size(params) - self.unused(params)

    def flops(self) -> float:
        """FLOPs to train on one batch: three times the forward pass's matrix products and convolutions.

        What is computed again to save memory does not count, and nor does elementwise work: these are the FLOPs
        of "model FLOPs utilisation" (Chowdhery et al. 2022, appendix B).
        """
        return 3.0 * count_flops(self.evaluate, *self.abstract())


def _size(params: Pytree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


@dataclass(frozen=True)
class Family:
    """One row of the registry: presets, and how to build a recipe from a config.

    Attributes:
        name: registry name.
        summary: one line on the architecture.
        source: the paper.
        presets: preset name -> config.
        make: (family, preset name, config) -> recipe.
    """

    name: str
    summary: str
    source: str
    presets: Mapping[str, Config]
    make: Callable[["Family", str, Any], Recipe]

    def __call__(self, preset: str = "toy", **sizes: Any) -> Recipe:
        """Builds the recipe of a preset, with any of its sizes replaced.

        Args:
            preset: a key of `presets`.
            **sizes: fields of the family's config, such as `layers`, `batch_size`, `dtype` or `optimizer`.

        Returns:
            The recipe.

        Raises:
            ValueError: for an unknown preset, size, optimizer or dtype, naming the nearest that exist.
        """
        if preset not in self.presets:
            raise ValueError(unknown(f"preset of {self.name!r}", preset, self.presets))
        default = self.presets[preset]
        known = [field.name for field in dataclasses.fields(default)]
        for size in sizes:
            if size not in known:
                raise ValueError(unknown(f"size of {self.name!r}", size, known))
        if isinstance(dtype := sizes.get("dtype"), type | np.dtype):
            sizes["dtype"] = jnp.dtype(dtype).name
        config = dataclasses.replace(default, **sizes)
        check_config(self.name, config)
        return self.make(self, preset if config == default else f"{preset} (changed)", config)


def unknown(kind: str, asked: object, known: Iterable[str]) -> str:
    """The text of an error about a name that is not in a table, nearest names first."""
    names = list(known)
    near = difflib.get_close_matches(str(asked), names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"unknown {kind}: {asked!r}; {hint}there are: {', '.join(names)}"


def check_config(family: str, config: Config) -> None:
    """Refuses a config that no model could be built from."""
    if config.optimizer not in OPTIMIZERS:
        raise ValueError(unknown("optimizer", config.optimizer, OPTIMIZERS))
    if config.schedule not in SCHEDULES:
        raise ValueError(unknown("schedule of the learning rate", config.schedule, SCHEDULES))
    if config.dtype not in DTYPES:
        raise ValueError(unknown("dtype", config.dtype, DTYPES))
    if config.dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            f"{family}: dtype='float64' was asked for, but JAX computes in float32 now; call "
            "jax.config.update('jax_enable_x64', True) first"
        )
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        least = 0 if field.name in config.may_be_zero else 1
        if isinstance(value, int) and not isinstance(value, bool) and value < least:
            raise ValueError(f"{family}: {field.name} must be at least {least}, got {value}")


def make_recipe(
    family: Family,
    preset: str,
    config: Config,
    *,
    init: InitFn,
    loss: LossFn,
    batch: Callable[[int], Batch],
    batch_spec: Batch,
    evaluate: LossFn | None = None,
    dropout: bool = False,
    frozen: Collection[str] = (),
    unit: str = "examples",
    units_per_example: float = 1,
    about_batches: str = "synthetic batches",
    unused: Callable[[Pytree], int] = lambda params: 0,
) -> Recipe:
    """Joins a model's init and loss to the optimizer: the one training step of the whole zoo.

    Args:
        family: the registry row.
        preset: what to call these sizes.
        config: the sizes.
        init: key -> (params, stats).
        loss: (params, batch, dropout key, stats) -> (loss, (metrics, stats)).
        batch: seed -> batch.
        batch_spec: the batch's shapes and dtypes.
        evaluate: the loss of a batch that is not trained on, if it is another function than `loss` without a key.
        dropout: whether the state carries a random key, split at each step.
        frozen: top-level names of parameters that are not trained (the loss stops their gradients).
        unit: what a batch is counted in.
        units_per_example: how many of them one example has.
        about_batches: what the batches are, for people.
        unused: shapes of the parameters -> how many of these scalars one token does not use.

    Returns:
        The recipe.
    """
    rate = learning_rate(config.schedule, config.learning_rate, config.warmup_steps, config.total_steps)
    tx = optimizer(config.optimizer, rate, frozen)
    evaluation = loss if evaluate is None else evaluate

    def init_state(key: jax.Array) -> State:
        params_key, dropout_key = jax.random.split(key)
        params, stats = init(params_key)
        return State(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=tx.init(params),
            key=dropout_key if dropout else None,
            stats=stats,
            loss_scale=first_scale(config.param_dtype) if config.loss_scaling else None,
        )

    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key, dropout_key = (None, None) if state.key is None else jax.random.split(state.key)
        if state.loss_scale is not None:
            return scaled_step(state._replace(key=key), batch, dropout_key, state.loss_scale)
        (value, (metrics, stats)), grads = jax.value_and_grad(loss, has_aux=True)(
            state.params, batch, dropout_key, state.stats
        )
        params, opt_state = update(tx, grads, state.opt_state, state.params)
        new_state = State(step=state.step + 1, params=params, opt_state=opt_state, key=key, stats=stats)
        return new_state, {"loss": value, "grad_norm": optax.tree.norm(grads), **metrics}

    def scaled_step(state: State, batch: Batch, dropout_key: jax.Array | None, now: LossScale) -> tuple[State, Metrics]:
        def scaled_loss(params: Pytree) -> tuple[jax.Array, tuple[jax.Array, Metrics, Pytree]]:
            value, (metrics, stats) = loss(params, batch, dropout_key, state.stats)
            return value * now.scale, (value, metrics, stats)

        grads, (value, metrics, stats) = jax.grad(scaled_loss, has_aux=True)(state.params)
        grads = jax.tree.map(lambda g: g / now.scale, grads)
        finite = all_finite(grads)
        params, opt_state = update_if(finite, tx, grads, state.opt_state, state.params)
        scale = next_scale(now, finite)
        new_state = State(
            step=state.step + 1, params=params, opt_state=opt_state, key=state.key, stats=stats, loss_scale=scale
        )
        # A skipped step has no gradient to speak of.
        norm = jnp.where(finite, optax.tree.norm(grads), 0.0)
        return new_state, {"loss": value, "grad_norm": norm, "loss_scale": scale.scale, **metrics}

    def evaluate_step(state: State, batch: Batch) -> Metrics:
        value, (metrics, _) = evaluation(state.params, batch, None, state.stats)
        return {"loss": value, **metrics}

    return Recipe(
        name=f"{family.name}:{preset}",
        summary=family.summary,
        source=family.source,
        config=config,
        init=jax.jit(init_state),
        step=train_step,
        evaluate=evaluate_step,
        parameters=lambda: jax.eval_shape(init, jax.random.key(0))[0],
        batch=batch,
        batch_spec=batch_spec,
        unit=unit,
        units=int(config.batch_size * units_per_example),
        about_batches=about_batches,
        unused=unused,
    )
