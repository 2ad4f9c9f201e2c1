"""Two stages on two cores against the same work on one: what a pipeline loses beside its bubble.

    python benchmarks/running_fast.py

A chain of equal layers in 2 stages, 8 equal micro-batches. With a core for each stage the step takes at best

    (the same work on one core) / (2 x 8 / (8 + 1))

and may take 1.10 times that. Processes take turns, each with some steps per round, dispatched one after another as in
a training loop, which reads its metrics later: the two stages on one core (the local runtime, pinned to core 0), on
two cores with the local runtime, and on two with Ray, each actor pinned to its core; the last two under each order
that ``schedule="auto"`` chooses from. Everywhere XLA computes one operation on one thread. Two cores that share caches,
memory or, as hyper-threads, their units are slower together than one alone, whatever runs on them. So the same work is
also run on both at once, a whole copy on each. Prints the medians over rounds, and of the ratios of a round, to both.

The bound is for the faster of GPipe and 1F1B, whose ideal this is, and a core that works alone. With two stages 1F1B
holds two micro-batches, and every round trip of one between the stages is exposed; GPipe holds all and hides them.
ZB-H1 fills a part of the bubble with gradients of parameters, so it can be faster (here by 2 of 27) and proves nothing.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from _common import RESULTS, stamp, write_result

import autopar

STAGES, MICROBATCHES = 2, 8
LAYERS, WIDTH, ROWS = 24, 512, 512  # layers, features, rows of a micro-batch
ROUNDS, STEPS = 8, 3
LIMIT = 1.10
ALONE, BESIDE, BUSY = "one core", "beside a busy one", "the busy one"
HELD = ("gpipe", "1f1b")  # to the bound
ORDERS = (*HELD, "zb-h1")
SERVERS = {ALONE: ORDERS[:1], BUSY: ORDERS[:1], "local": ORDERS, "ray": ORDERS}
PIPELINES = tuple((runtime, order) for runtime in ("local", "ray") for order in ORDERS)


def main() -> int:
    """Measures, prints, writes; 1 if a bound breaks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve)
    if len(os.sched_getaffinity(0)) < STAGES:
        sys.exit(f"this takes {STAGES} cores; the process may use {len(os.sched_getaffinity(0))}.")
    return measure(args.rounds)


def measure(rounds: int) -> int:
    """Let the processes take turns."""
    env = {**os.environ, "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "OMP_NUM_THREADS": "1"}
    servers = {name: _started(name, env) for name in SERVERS}
    try:
        for server in servers.values():
            _answer(server)  # ready
        for _ in range(2):
            _round(servers)
        found = [_round(servers) for _ in range(rounds)]
    finally:
        for server in servers.values():
            server.stdin.close()
            server.wait(60)
    ideal = STAGES * MICROBATCHES / (MICROBATCHES + STAGES - 1)
    modes = [" ".join(pipeline) for pipeline in PIPELINES]
    ratios = {
        core: {m: statistics.median(row[m] * ideal / row[core] for row in found) for m in modes}
        for core in (ALONE, BESIDE)
    }
    for mode in (ALONE, BESIDE, *modes):
        said = [f"  {of[mode]:.3f} of the ideal of {core}" for core, of in ratios.items() if mode in of]
        print(f"{mode:<18}{statistics.median(row[mode] for row in found) * 1e3:9.1f} ms per step{''.join(said)}")
    write_result(RESULTS / "running_fast.json", {"stamp": stamp(), "limit": LIMIT, "ratios": ratios, "seconds": found})
    faster = [min(ratios[ALONE][f"{runtime} {order}"] for order in HELD) for runtime in ("local", "ray")]
    return int(max(faster) > LIMIT)


def _round(servers: dict[str, subprocess.Popen]) -> dict[str, float]:
    """Seconds of a step in every mode."""
    found = {ALONE: _step_s(servers[ALONE], ORDERS[0])}
    for runtime, order in PIPELINES:
        found[f"{runtime} {order}"] = _step_s(servers[runtime], order)
    for name in (ALONE, BUSY):
        _ask(servers[name], ORDERS[0])
    return found | {BESIDE: statistics.mean(float(_answer(servers[name])) for name in (ALONE, BUSY))}


def _started(name: str, env: dict[str, str]) -> subprocess.Popen:
    """A process that runs steps, on as many cores as it may have."""
    every = os.sched_getaffinity(0)
    if name == "ray":
        env = {**env, "NPROC": "1"}  # threads of each actor, which gets one core
    cores = {ALONE: slice(0, 1), BUSY: slice(1, 2)}.get(name, slice(STAGES))
    os.sched_setaffinity(0, sorted(every)[cores])  # which a new process inherits
    try:
        command = [sys.executable, __file__, "--serve", name]
        return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    finally:
        os.sched_setaffinity(0, every)


def _answer(server: subprocess.Popen) -> str:
    line = server.stdout.readline()
    if not line:
        raise RuntimeError(f"a process ended with {server.wait()}")
    return line


def _ask(server: subprocess.Popen, order: str) -> None:
    server.stdin.write(f"{order}\n")
    server.stdin.flush()


def _step_s(server: subprocess.Popen, order: str) -> float:
    _ask(server, order)
    return float(_answer(server))


def serve(name: str) -> int:
    """Compile the step in every order, then run some for each line that names one."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    jax.config.update("jax_num_cpu_devices", STAGES)
    executables, states = {}, {}
    for order in SERVERS[name]:
        state, batch = example()
        options = autopar.Options(stages=STAGES, microbatches=MICROBATCHES, remat="none", schedule=order)
        runtime = "ray" if name == "ray" else "local"
        executables[order] = autopar.compile(
            train_step, state, batch, cluster=f"cpu:{STAGES}", options=options, runtime=runtime
        )
        states[order] = state
        if runtime == "ray":
            pin_actors(sorted(os.sched_getaffinity(0)))

    def step_s(order: str) -> float:
        begin = time.perf_counter()
        for _ in range(STEPS):
            states[order], (_, moved) = executables[order](states[order], batch)
        float(moved)
        return (time.perf_counter() - begin) / STEPS

    for order in executables:
        step_s(order)
    os.write(answers, b"ready\n")
    for line in sys.stdin:
        os.write(answers, f"{step_s(line.strip())}\n".encode())
    for executable in executables.values():
        executable.close()
    autopar.shutdown()
    return 0


def example() -> tuple[Any, Any]:
    """A state and a batch."""
    draw = np.random.default_rng(0)
    state = [draw.normal(size=(WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5 for _ in range(LAYERS)]
    x = draw.normal(size=(MICROBATCHES * ROWS, WIDTH)).astype(np.float32)
    return state, (x, np.roll(x, 1, axis=1))


def train_step(state: Any, batch: Any) -> Any:
    """A chain of equal layers, plain gradient descent, and how far it went, which waits for every update."""

    def loss(layers: Any) -> Any:
        x = batch[0]
        for w in layers:
            x = jnp.tanh(x @ w)
        return jnp.mean((x - batch[1]) ** 2)

    value, grads = jax.value_and_grad(loss)(state)
    new = jax.tree.map(lambda w, g: w - 0.1 * g, state, grads)
    return new, (value, sum(jnp.vdot(a - b, a - b) for a, b in zip(new, state, strict=True)))


def pin_actors(cores: Sequence[int]) -> None:
    """A core for each of Ray's workers that holds a stage and has none yet."""
    processes = psutil.Process().children(recursive=True)
    actors = [p for p in processes if "".join(p.cmdline()).startswith("ray::Host") and len(p.cpu_affinity()) > 1]
    if len(actors) != len(cores):
        raise RuntimeError(f"{len(actors)} actors for {len(cores)} cores")
    for actor, core in zip(actors, cores, strict=True):
        actor.cpu_affinity([core])
        for thread in actor.threads():
            os.sched_setaffinity(thread.id, [core])


if __name__ == "__main__":
    sys.exit(main())
