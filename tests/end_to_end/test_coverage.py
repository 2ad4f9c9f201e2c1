"""No primitive of any model is opaque: each has a rule, so that it can be split and is priced as it runs."""

import jax
import jax.numpy as jnp
import pytest

from autopar.models import MODELS, get
from autopar.trace import trace
from benchmarks._steps import STEPS

# Every family, in mixed precision and with both optimizers; what else the equivalence benchmark runs.
CASES = [(family, optimizer, dtype) for family in MODELS for optimizer, dtype in
         (("adamw", "bfloat16"), ("adafactor", "float32"))]  # fmt: skip


def opaque(step, args):
    traced = trace(step, args, donate_argnums=0)
    assert len(list(traced.step.graph.walk())) > 100
    return sorted({f"{op.primitive} at {op.where.line}" for op in traced.step.graph.walk() if op.opaque})


@pytest.mark.parametrize(("family", "optimizer", "dtype"), CASES, ids="-".join)
def test_every_family_is_covered(family, optimizer, dtype):
    recipe = get(family, optimizer=optimizer, dtype=dtype)
    assert opaque(recipe.step, recipe.abstract()) == []


@pytest.mark.parametrize("name", [name for name in STEPS if name not in MODELS])
def test_every_flavour_is_covered(name):
    training = STEPS[name]()
    assert opaque(training.step, (training.state, training.batch(0))) == []


def opaque_names(step):
    traced = trace(step, (jax.ShapeDtypeStruct((8, 8), "float32"), jax.ShapeDtypeStruct((16, 8), "float32")))
    return {op.primitive for op in traced.step.graph.walk() if op.opaque}


def test_an_opaque_op_is_found():
    assert opaque_names(lambda w, x: w - jax.scipy.linalg.expm(x.T @ x) @ jnp.linalg.solve(w, w)) != set()


def test_ops_on_scalars_need_no_rule():
    def loss(w, x):  # the gradient of a conditional holds placeholders; the platform is asked for as a number
        y = jax.lax.cond(w[0, 0] > 0, lambda: jnp.sin(x @ w), lambda: x * w[0])
        return jax.lax.platform_dependent(y, cpu=jnp.sum, default=jnp.sum)

    assert opaque_names(jax.grad(loss)) == set()
