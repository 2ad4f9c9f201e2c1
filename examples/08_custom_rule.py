"""A primitive of your own: one line says how it may be split.

python examples/08_custom_rule.py
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import mlir

import autopar


def normalised(x, w):
    """Rows of ``x`` scaled to length one, times a matrix: think of a fused kernel."""
    return (x / jnp.linalg.norm(x, axis=1, keepdims=True)) @ w


normalised_p = Primitive("normalised")
normalised_p.def_impl(jax.jit(normalised))
normalised_p.def_abstract_eval(lambda x, w: x.update(shape=(x.shape[0], w.shape[1])))
mlir.register_lowering(normalised_p, mlir.lower_fun(normalised, multiple_results=False))


def step(x, w):
    return normalised_p.bind(x, w).sum(axis=1)


def main():
    x, w = jax.random.normal(jax.random.key(0), (64, 32)), jax.random.normal(jax.random.key(1), (32, 16))
    options = autopar.Options(mesh=(8,), hints={"x": "S0"})
    before = autopar.plan(step, x, w, cluster="cpu:8", options=options)
    print(f"without: {before.warnings[0]}")

    autopar.register_rule(normalised_p, "rows in, in out -> rows out", whole=["in"])
    after = autopar.compile(step, x, w, cluster="cpu:8", options=options)
    print(f"with: {len(after.plan.warnings)} warnings, {len(after.plan.collectives)} collectives")
    np.testing.assert_allclose(after(x, w), jax.jit(step)(x, w), rtol=1e-5)
    print("and the numbers of one device")


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main()
