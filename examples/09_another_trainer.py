"""Plan here, train elsewhere: the layouts as `NamedSharding`, for a plain `jax.jit` with XLA's own partitioner.

python examples/09_another_trainer.py
"""

import jax

import autopar
from autopar.models import get


def main():
    gpt = get("gpt")
    state, batch = gpt.init(jax.random.key(0)), gpt.batch(0)
    options = autopar.Options(mesh=(2, 4))
    plan = autopar.plan(gpt.step, state, batch, cluster="cpu:8", options=options, donate_argnums=0)

    axes = {axis.name: axis.size for axis in plan.mesh}
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(jax.sharding.AxisType.Auto,) * len(axes))
    (state_shardings, batch_shardings), _ = plan.shardings(mesh)
    step = jax.jit(gpt.step, out_shardings=(state_shardings, None), donate_argnums=0)
    state = jax.device_put(state, state_shardings)
    for i in range(5):
        state, metrics = step(state, jax.device_put(gpt.batch(i), batch_shardings))
    lie = {str(x.sharding.spec) for x in jax.tree.leaves(state)}
    print(
        f"loss {float(metrics['loss']):.2f}; arrays of the state lie in {len(lie)} layouts, such as {max(lie, key=len)}"
    )


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main()
