import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from autopar.trace import trace


def test_where_arguments_lie_does_not_matter():
    """The state that a plan's step returns lies on a mesh; planned for again, it is the same step."""

    def step(w, x, *, scale):
        return w - scale * jax.grad(lambda w: jnp.mean((x @ w) ** 2))(w)

    mesh = Mesh(np.array(jax.devices()[:8]), ("x",))
    w, x, scale = jnp.ones((16, 8)), jnp.ones((32, 16)), jnp.float32(0.1)
    placed = [
        jax.device_put(w, NamedSharding(mesh, PartitionSpec(None, "x"))),
        jax.device_put(x, NamedSharding(mesh, PartitionSpec("x"))),
    ]
    plain = trace(step, (w, x), {"scale": scale}).step.graph
    kept = trace(step, placed, {"scale": jax.device_put(scale, NamedSharding(mesh, PartitionSpec()))}).step.graph
    assert plain.fingerprint == kept.fingerprint
    assert "reshard" not in {op.primitive for op in kept.walk()}


def test_weak_types_are_kept():
    def dtype(x):
        return trace(lambda x: x * jnp.ones(4, jnp.bfloat16), (x,)).step.graph

    weak, strong = dtype(jnp.asarray(2.0)), dtype(jnp.float32(2.0))
    assert weak.values[weak.outputs[0]].dtype == "bfloat16"
    assert strong.values[strong.outputs[0]].dtype == "float32"
