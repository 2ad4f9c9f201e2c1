"""200 training steps on Ray: memory of all processes stays flat, and nothing stays behind.

    python benchmarks/stays_clean.py

A GPT in 2 stages and 4 micro-batches. Resident memory of the driver and of each stage's process is read every 10 steps;
between step 50 (allocators have settled) and the last the median of the last five readings may be 3% above that of the
first five, or 8 MB. After `shutdown` no process of the run is left, nor a segment of shared memory that it made.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import jax
import psutil
from _common import RESULTS, stamp, virtual_devices, write_result

import autopar
from autopar.models import get

STEPS, EVERY, SETTLED = 200, 10, 50
GROWTH, SLACK_BYTES = 1.03, 8 << 20
SHARED = Path("/dev/shm")


def main() -> int:
    """Measures, prints, writes; 1 if memory grew or something stayed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    steps = parser.parse_args().steps
    virtual_devices(2)
    before = set(SHARED.iterdir())
    recipe = get("gpt")
    state, batch = recipe.init(jax.random.key(0)), recipe.batch(0)
    options = autopar.Options(stages=2, microbatches=4)
    executable = autopar.compile(recipe.step, state, batch, cluster="cpu:2", options=options, runtime="ray")
    started = psutil.Process().children(recursive=True)
    processes = {"driver": psutil.Process()} | {
        f"stage {k}": p for k, p in enumerate(p for p in started if "".join(p.cmdline()).startswith("ray::Host"))
    }
    resident: dict[str, list[int]] = {name: [] for name in processes}
    begin, first, last = time.perf_counter(), 0.0, 0.0
    for step in range(steps):
        state, metrics = executable(state, recipe.batch(step))
        last = float(metrics["loss"])
        first = first or last
        if step % EVERY == EVERY - 1:
            for name, process in processes.items():
                resident[name].append(process.memory_info().rss)
    seconds = time.perf_counter() - begin
    executable.close()
    autopar.shutdown()
    _, alive = psutil.wait_procs(started, timeout=20)
    left = sorted(str(path) for path in set(SHARED.iterdir()) - before)
    grown = {name: _growth(found[SETTLED // EVERY :]) for name, found in resident.items()}
    print(f"{steps} steps in {seconds:.1f} s, loss {first:.3f} -> {last:.3f}")
    for name, found in resident.items():
        print(f"{name:<10}{found[0] / 2**20:9.1f} MiB, at last {found[-1] / 2**20:9.1f}: grown {grown[name]:+.2%}")
    print(f"processes left: {len(alive)}, shared memory left: {len(left)}")
    content = {"stamp": stamp(), "steps": steps, "seconds": seconds, "resident_bytes": resident, "grown": grown}
    write_result(RESULTS / "stays_clean.json", content | {"processes_left": len(alive), "segments_left": left})
    flat = all(g <= GROWTH - 1 or g * resident[name][-1] <= SLACK_BYTES for name, g in grown.items())
    return int(not flat or bool(alive) or bool(left))


def _growth(found: list[int]) -> float:
    """Of the last five readings over the first five."""
    return statistics.median(found[-5:]) / statistics.median(found[:5]) - 1


if __name__ == "__main__":
    sys.exit(main())
