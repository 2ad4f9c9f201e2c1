"""Stages in processes of a Ray cluster: here on this machine; with RAY_ADDRESS set, on that cluster's hosts.

python examples/10_ray.py
"""

import jax

import autopar
from autopar.models import get


def main():
    mlp = get("mlp")
    state = mlp.init(jax.random.key(0))
    options = autopar.Options(microbatches=4, stages=2)
    step = autopar.compile(
        mlp.step, state, mlp.batch(0), cluster="cpu:4", options=options, donate_argnums=0, runtime="ray"
    )
    for i in range(10):
        state, metrics = step(state, mlp.batch(i))
        if i % 5 == 4:
            print(f"step {i + 1}: loss {float(metrics['loss']):.3f}")
    state, metrics = step.timed(state, mlp.batch(10))
    seconds = max(span.end_s for span in step.timeline)
    print(f"{len(step.timeline)} programs ran on {len(step.plan.stages)} stages in {seconds * 1e3:.1f} ms")
    autopar.shutdown()


if __name__ == "__main__":
    main()
