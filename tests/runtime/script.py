"""A user's program, run as a process of its own: ``script.py loop`` steps until it is stopped, ``once`` ends by
itself without closing anything, ``twice`` has two runtimes at a time, ``nodes`` joins a cluster of several nodes."""

import os
import signal
import sys

from autopar.runtime import ray_runtime
from tests.runtime import toys


def nodes():
    """A cluster of three nodes with one CPU each, two of them of one type, on loopback."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415  (only here)

    cluster = Cluster(initialize_head=True, head_node_args=_node("V100", include_dashboard=False))
    for _ in range(2):
        cluster.add_node(**_node("H100"))
    os.environ["RAY_ADDRESS"] = cluster.address
    return cluster


def _node(accelerator, **settings):
    return {"num_cpus": 1, "resources": {f"accelerator_type:{accelerator}": 1}, **settings}


def started(pipeline, arguments, **options):
    """A runtime that has taken three steps, as plain jax takes them."""
    runtime = ray_runtime(pipeline, toys.jitted(pipeline), **options)
    runtime.load_state(arguments)
    _, (*_, expected) = toys.plain_steps(arguments, 3)
    for _ in range(3):
        results = runtime.step(arguments)
    assert abs(float(results[2]) - expected[0]) < 1e-5
    return runtime


def main(mode):
    cluster = nodes() if mode == "nodes" else None
    pipeline = toys.chain(toys.schedule(2, 2), devices=2)
    arguments = toys.arguments(pipeline)
    accelerators = None if cluster is None else ["V100", "H100"]
    runtime = started(pipeline, arguments, hosts=[1, 2], accelerators=accelerators)
    if mode == "twice":
        first, runtime = runtime, started(pipeline, arguments)
        first.close()
        runtime.step(arguments)
    print("ready", flush=True)
    while mode == "loop":
        runtime.step(arguments)
    import ray  # noqa: PLC0415  (the runtime has done so)

    if mode == "twice":
        assert ray.is_initialized()
        runtime.close()
        assert not ray.is_initialized()
    if cluster is not None:
        held = {node["NodeID"]: node["Resources"].get("CPU") for node in ray.nodes()}
        free = ray.available_resources()
        assert len(held) == 3 and free.get("CPU", 0) == 0
        assert free["accelerator_type:V100"] == 0.999 and free["accelerator_type:H100"] == 1.998
        runtime.close()
        assert ray.is_initialized()  # it was joined, not started
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    # A shell starts what runs in its background with Ctrl-C ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(sys.argv[1])
