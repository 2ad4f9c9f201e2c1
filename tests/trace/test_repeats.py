import jax
import jax.numpy as jnp

from autopar.trace import trace


def primitives(fun, *args):
    return [op.primitive for op in trace(fun, args).step.graph.walk()]


def test_equal_computations_are_one():
    found = primitives(lambda x: (jnp.sin(x) + 1.0, jnp.sin(x) * 2.0), jnp.ones(4))
    assert found.count("sin") == 1


def test_chains_of_equal_computations_are_one():
    def norm(x):
        return jnp.sqrt(jnp.sum(x * x))

    found = primitives(lambda x: (x / norm(x), norm(x)), jnp.ones(4))
    assert (found.count("mul"), found.count("reduce_sum"), found.count("sqrt")) == (1, 1, 1)


def test_other_operands_or_parameters_are_not():
    assert primitives(lambda x, y: (jnp.sin(x), jnp.sin(y)), jnp.ones(4), jnp.ones(4)).count("sin") == 2
    assert primitives(lambda x: (x.sum(0), x.sum(1)), jnp.ones((4, 4))).count("reduce_sum") == 2


def test_rematerialised_computations_stay():
    def loss(x):
        return jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)).sum())(x)

    plain = primitives(jax.grad(lambda x: jnp.sin(jnp.sin(x)).sum()), jnp.ones(4))
    again = primitives(jax.value_and_grad(loss), jnp.ones(4))
    assert again.count("sin") > plain.count("sin")


def test_within_a_loop_body():
    def step(x):
        return jax.lax.scan(lambda c, _: (jnp.sin(c) + jnp.sin(c), None), x, length=3)[0]

    assert primitives(step, jnp.ones(4)).count("sin") == 1
