"""How parameters change, given their gradients: the optimizer, what it leaves alone, and scaled losses."""

from collections.abc import Collection
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Pytree = Any

# Powers of two, so that scaling and unscaling round nothing. The limits are those of NVIDIA's Apex.
FIRST_SCALE = 2.0**15
LARGEST_SCALE = 2.0**24
STEPS_TO_GROWTH = 2000

SCHEDULES = ("constant", "linear", "cosine", "rsqrt")
LAST_SHARE = 0.1  # of the peak learning rate, where "linear" and "cosine" end


class LossScale(NamedTuple):
    """What the loss is multiplied by, so that small gradients survive in half precision.

    Attributes:
        scale: floating scalar.
        good_steps: int32 scalar, the steps with finite gradients since the scale last changed.
    """

    scale: jax.Array
    good_steps: jax.Array


def first_scale(dtype: np.dtype) -> LossScale:
    """The scale that training begins with."""
    return LossScale(jnp.asarray(FIRST_SCALE, dtype), jnp.zeros((), jnp.int32))


def next_scale(now: LossScale, finite: jax.Array) -> LossScale:
    """Doubles the scale after enough good steps, and halves it after a bad one (Micikevicius et al. 2018, section 3.2).

    Args:
        now: the scale of the step just taken.
        finite: boolean scalar, whether all its gradients were finite.

    Returns:
        The scale of the next step, between 1 and `LARGEST_SCALE`.
    """
    good_steps = jnp.where(finite, now.good_steps + 1, 0)
    grows = good_steps >= STEPS_TO_GROWTH
    scale = jnp.where(finite, jnp.where(grows, now.scale * 2.0, now.scale), now.scale / 2.0)
    return LossScale(jnp.clip(scale, 1.0, LARGEST_SCALE), jnp.where(grows, 0, good_steps))


def all_finite(tree: Pytree) -> jax.Array:
    """Whether no entry of any array is infinite or not a number: a boolean scalar."""
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def learning_rate(schedule: str, peak: float, warmup_steps: int, total_steps: int) -> optax.ScalarOrSchedule:
    """The step size as a function of the step: it rises linearly to its peak, and then does as `schedule` says.

    Args:
        schedule: one of `SCHEDULES`; "rsqrt" is Vaswani et al.'s (2017, section 5.3), "cosine" Loshchilov and
            Hutter's (2016) without restarts.
        peak: the largest step size.
        warmup_steps: steps until the peak.
        total_steps: where "linear" and "cosine" reach a tenth of the peak.

    Returns:
        A number if it is always the same, else count -> scalar.

    Raises:
        ValueError: the learning rate would come down before it is up.
    """
    if schedule in ("linear", "cosine") and total_steps <= warmup_steps:
        raise ValueError(
            f"a {schedule!r} schedule of {total_steps} steps was asked for, of which {warmup_steps} warm up; "
            "total_steps must be larger than warmup_steps"
        )
    if schedule == "constant" and not warmup_steps:
        return peak
    rise = optax.linear_schedule(peak / (warmup_steps + 1), peak, warmup_steps)
    left = total_steps - warmup_steps
    after: dict[str, optax.Schedule] = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, LAST_SHARE * peak, left),
        "cosine": optax.cosine_decay_schedule(peak, max(1, left), LAST_SHARE),
        "rsqrt": lambda count: peak / jnp.sqrt(1 + jnp.maximum(count, 0) / max(1, warmup_steps)),
    }
    return optax.join_schedules([rise, after[schedule]], [warmup_steps])


def optimizer(
    name: str, learning_rate: optax.ScalarOrSchedule, frozen: Collection[str] = ()
) -> optax.GradientTransformation:
    """AdamW or Adafactor, after clipping by the global norm.

    Adafactor (Shazeer & Stern 2018) keeps a row and a column of second moments for each matrix. optax does so
    only from 128 rows and columns; here it is from 8, so that the toy presets have factored state too.

    Args:
        name: "adamw" or "adafactor".
        learning_rate: the step size, or step -> step size.
        frozen: top-level names of parameters that stay as they are: no moments, no weight decay, no part in the norm.

    Returns:
        The transformation.
    """
    if name == "adafactor":
        inner = optax.adafactor(learning_rate, min_dim_size_to_factor=8)
    else:
        inner = optax.adamw(learning_rate, b1=0.9, b2=0.95, weight_decay=0.01)
    tx = optax.chain(optax.clip_by_global_norm(1.0), inner)
    if not frozen:
        return tx
    return optax.partition(
        {"trained": tx, "frozen": optax.set_to_zero()},
        lambda params: {name: "frozen" if name in frozen else "trained" for name in params},
    )


def update(tx: optax.GradientTransformation, grads: Pytree, opt_state: Pytree, params: Pytree) -> tuple[Pytree, Pytree]:
    """One step of the optimizer: the new parameters and the optimizer's new state."""
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def update_if(
    finite: jax.Array, tx: optax.GradientTransformation, grads: Pytree, opt_state: Pytree, params: Pytree
) -> tuple[Pytree, Pytree]:
    """`update`, or nothing if a gradient overflowed: one branch is taken, the other costs nothing."""
    return jax.lax.cond(
        finite,
        partial(update, tx),
        lambda grads, opt_state, params: (params, opt_state),
        *(grads, opt_state, params),
    )
