"""Where a step may be cut: everywhere in a deep model, the end and the decoder included."""

import jax
import jax.numpy as jnp
import pytest

from autopar.lower import StagedStep
from autopar.trace import trace

WIDTH, BATCH = 16, 8


def units(loss, layers, **options):
    """Of gradient descent with equal layers: their shares of the work of a layer."""

    def step(params, x):
        value, grads = jax.value_and_grad(loss)(params, x)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    weights = [jax.ShapeDtypeStruct((WIDTH, WIDTH), "float32")] * layers
    x = jax.ShapeDtypeStruct((BATCH, WIDTH), "float32")
    found = StagedStep(trace(step, (weights, x)), 1, **options).units
    layer = sum(u.flops for u in found) / layers
    return [u.flops / layer for u in found]


def with_losses_of_layers(params, x):
    """Every layer leaves a loss of its own for the end, as routers of experts do."""
    extra = []
    for w in params:
        x = x + jnp.tanh(x @ w)
        extra.append(jnp.mean(x))
    return jnp.mean(x**2) + sum(extra)


def with_decoder(params, x):
    """The second half reads what the first has made in each of its layers."""
    middle, h = len(params) // 2, x
    for w in params[:middle]:
        h = h + jnp.tanh(h @ w)
    y = jnp.roll(x, 1)
    for w in params[middle:]:
        y = y + jnp.tanh((y + h) @ w)
    return jnp.mean(y**2)


def test_losses_kept_for_the_end_do_not_tell_equal_cuts_apart():
    found = units(with_losses_of_layers, 80)
    assert len(found) <= 72
    assert max(found) < 2.6


@pytest.mark.parametrize(("most", "layers_at_once"), [(45, 1), (24, 2), (15, 4)])
def test_of_too_many_cuts_every_second_or_fourth_is_taken(most, layers_at_once):
    found = units(with_losses_of_layers, 39, most_units=most)
    assert len(found) <= most
    assert max(found) < layers_at_once + 0.6


def test_a_decoder_is_cut_from_its_first_to_its_last_layer():
    assert max(units(with_decoder, 32)) < 1.6
