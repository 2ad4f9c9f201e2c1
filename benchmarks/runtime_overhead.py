"""What the runtime costs beside the work: 8 stages x 32 micro-batches of empty tasks, and arrays between workers.

    python benchmarks/runtime_overhead.py

A step of empty tasks has 512 runs and 448 messages of 16 bytes, in the order of 1F1B. Figures are medians over the
steps of a block, of blocks some seconds apart: a machine that is shared costs a step up to five times as much for
seconds on end (a wake-up of a process that waits, above all). The bounds are for the median of the blocks; the least
and the largest stand beside it.
- `local, instructions`: the interpreter alone: programs return at once and messages are handed over as they are.
- `local`: the local runtime; every task returns an array that its stage's device has already.
- `local, compiled`: the same with compiled programs of one negation each, less what calling those 512 programs costs
  by itself (`programs alone`, taken in turn with the steps).
- `ray`: 8 processes; programs return at once, messages go through connections. The CPU seconds of all processes
  stand beside the wall time: on a machine with other work, wall time says little.
- `ray, one micro-batch`: the same with next to no messages: what Ray's 8 calls per step cost.
Throughput: arrays from one stage to another, 2 workers, received onto the device.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _common import RESULTS, stamp, virtual_devices, write_result

STAGES, MICROBATCHES = 8, 32
virtual_devices(STAGES)

import jax
import numpy as np
import psutil
from jax.sharding import NamedSharding, PartitionSpec

from autopar.runtime import (
    Buffer,
    Feed,
    Fetch,
    LocalRuntime,
    Pipeline,
    Program,
    Stage,
    Transfer,
    check_instructions,
    instructions,
    ray_runtime,
    stage_meshes,
)
from autopar.runtime.instructions import Copy, Recv, Register, Run, Send
from autopar.runtime.interpreter import Interpreter
from autopar.schedule import Kind, Schedule, Task

LOCAL_BOUND_S, RAY_BOUND_S = 5e-3, 15e-3
SIZES = {"64 kB": 1 << 16, "4 MB": 1 << 22, "64 MB": 1 << 26}
WIDTH = 4
BLOCKS, PAUSE_S = 6, 3.0


def one_f_one_b(stages: int, microbatches: int) -> Schedule:
    """The order of 1F1B."""
    workers = []
    for s in range(stages):
        ahead = min(microbatches, stages - s)
        tasks = [Task(Kind.FORWARD, s, m) for m in range(ahead)]
        for m in range(microbatches):
            tasks.append(Task(Kind.BACKWARD, s, m))
            if m + ahead < microbatches:
                tasks.append(Task(Kind.FORWARD, s, m + ahead))
        workers.append(tuple(tasks))
    return Schedule("1f1b", stages, microbatches, tuple(workers))


def empty(microbatches: int) -> Pipeline:
    """A chain of stages that pass 16 bytes forward and back; the step's result is the first stage's."""

    def stage(s: int) -> Stage:
        names = ("x", "y", "gy", "gx")
        buffers = [Buffer(n, (WIDTH,), "float32", ((),), "microbatch") for n in names]
        buffers.append(Buffer("done", (), "float32", (), "step"))
        programs = [
            Program("forward", ("x",), ("gy",) if s == STAGES - 1 else ("y",)),
            Program("backward", ("gy",), ("gx",)),
        ]
        if s == 0:
            programs.append(Program("update.0", ("gx",), ("done",)))
        return Stage(s, (("d", 1),), {b.name: b for b in buffers}, {p.name: p for p in programs})

    forward = [Transfer(s, "y", s + 1, "x") for s in range(STAGES - 1)]
    backward = [Transfer(s + 1, "gx", s, "gy") for s in range(STAGES - 1)]
    return Pipeline(
        "empty",
        one_f_one_b(STAGES, microbatches),
        tuple(map(stage, range(STAGES))),
        (*forward, *backward),
        (Feed(0, 0, "x", 0),),
        (),
        (Fetch(0, 0, "done"),),
    )


def same(*arrays: Any) -> tuple[Any, ...]:
    """An empty task."""
    return arrays[:1]


def done(*arrays: Any) -> tuple[Any, ...]:
    """The last task of a step."""
    return (np.float32(len(arrays)),)


EMPTY = [{"forward": same, "backward": same, "update.0": done} for _ in range(STAGES)]


class Handing:
    """Ports that hand values over as they are."""

    def __init__(self) -> None:
        self._mail: dict[Register, Any] = {}

    def run(self, run: Run) -> Callable[..., Sequence[Any]]:
        """The empty task."""
        return EMPTY[run.stage][run.program]

    def send(self, send: Send) -> Callable[[Any], None]:
        """Puts the value where the receiver looks."""
        mail, target = self._mail, send.target
        return lambda value: mail.__setitem__(target, value)

    def receive(self, receive: Recv) -> Callable[[], Any]:
        """Takes the value."""
        mail, target = self._mail, receive.target
        return lambda: mail.pop(target)

    def copy(self, copy: Copy) -> Callable[[Any], Any]:
        """The value."""
        return lambda value: value

    def wait(self, arrays: Sequence[Any]) -> None:
        """Nothing is computed."""


def seconds(step: Callable[[], Any], count: int) -> float:
    """The median seconds of a step."""
    found = []
    for _ in range(count + 3):
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    return statistics.median(found[3:])


def in_blocks(measure: Callable[[], dict[str, float]]) -> dict[str, list[float]]:
    """By name, what was measured in several blocks, the least first."""
    found = []
    for block in range(BLOCKS):
        time.sleep(PAUSE_S if block else 0)
        found.append(measure())
    return {name: sorted(each[name] for each in found) for name in found[0]}


def interpreter() -> dict[str, list[float]]:
    """Seconds of a step without any array library."""
    pipeline = empty(MICROBATCHES)
    lists = instructions(pipeline)
    order = check_instructions(pipeline, lists)
    ports = Handing()
    workers = [Interpreter(w, code, ports) for w, code in enumerate(lists)]
    rest = [iter(worker.operations) for worker in workers]
    operations = [next(rest[w]) for w, _ in order]
    value = np.ones(WIDTH, np.float32)

    def step() -> None:
        for m in range(MICROBATCHES):
            workers[0].write(Register(0, "x", m), value)
        for operation in operations:
            operation()

    return in_blocks(lambda: {"local, instructions": seconds(step, 50)})


def local() -> dict[str, list[float]]:
    """Seconds of a step of the local runtime, and of its programs by themselves."""
    pipeline = empty(MICROBATCHES)
    meshes = stage_meshes(pipeline, jax.devices())
    arrays = [jax.device_put(np.ones(WIDTH, np.float32), NamedSharding(mesh, PartitionSpec(None))) for mesh in meshes]
    nothing = [
        {name: lambda *_, array=array: (array,) for name in stage.programs}
        for stage, array in zip(pipeline.stages, arrays, strict=True)
    ]
    programs = [
        {name: compiled(stage, program, meshes) for name, program in stage.programs.items()}
        for stage in pipeline.stages
    ]
    batch = np.ones(WIDTH * MICROBATCHES, np.float32)

    def step(runtime: LocalRuntime) -> float:
        return seconds(lambda: jax.block_until_ready(runtime.step([batch])), 1)

    def alone() -> None:
        for stage, array in zip(programs, arrays, strict=True):
            for _ in range(MICROBATCHES):
                stage["forward"](array)
                stage["backward"](array)
        jax.block_until_ready(programs[0]["update.0"](*[arrays[0]] * MICROBATCHES))

    runtimes = [LocalRuntime(pipeline, each, meshes) for each in (nothing, programs)]

    def measure() -> dict[str, float]:
        found = [(*map(step, runtimes), seconds(alone, 1)) for _ in range(20)]
        return {
            "local": statistics.median(bare for bare, _, _ in found),
            "local, compiled": statistics.median(full - calls for _, full, calls in found),
            "local, programs alone": statistics.median(calls for _, _, calls in found),
        }

    return in_blocks(measure)


def compiled(stage: Stage, program: Program, meshes: Sequence[jax.sharding.Mesh]) -> Callable[..., Any]:
    """A program that does next to nothing, compiled for its stage's device."""
    where = NamedSharding(meshes[stage.index], PartitionSpec(None))
    if program.name == "update.0":
        avals = [jax.ShapeDtypeStruct((WIDTH,), np.float32, sharding=where)] * MICROBATCHES
        return jax.jit(lambda *arrays: (arrays[0].sum(),)).lower(*avals).compile()
    aval = jax.ShapeDtypeStruct((WIDTH,), np.float32, sharding=where)
    return jax.jit(lambda array: (-array,), out_shardings=where).lower(aval).compile()


def cpu_s() -> float:
    """CPU seconds so far of this process and all below it."""
    me = psutil.Process()
    times = [p.cpu_times() for p in (me, *me.children(recursive=True)) if p.status() != psutil.STATUS_ZOMBIE]
    return sum(t.user + t.system for t in times)


def ray_step(microbatches: int, name: str) -> dict[str, list[float]]:
    """Wall and CPU seconds of a step in Ray, its result fetched before the next begins."""
    batch = np.ones(WIDTH * microbatches, np.float32)
    count = 40
    with ray_runtime(empty(microbatches), EMPTY) as runtime:

        def measure() -> dict[str, float]:
            before = cpu_s()
            wall = seconds(lambda: float(runtime.step([batch])[0]), count)
            return {name: wall, f"{name}, CPU": (cpu_s() - before) / (count + 3)}

        measure()
        return in_blocks(measure)


def throughput(transfer: str, size: int) -> float:
    """Bytes per second from one worker to another."""
    count = max(4, min(64, (1 << 28) // size))
    shape = (size // 4,)
    sender = Stage(
        0,
        (("d", 1),),
        {"y": Buffer("y", shape, "float32", ((),), "microbatch")},
        {"forward": Program("forward", (), ("y",))},
    )
    receiver = Stage(
        1,
        (("d", 1),),
        {
            "x": Buffer("x", shape, "float32", ((),), "microbatch"),
            "seen": Buffer("seen", (), "float32", (), "microbatch"),
            "done": Buffer("done", (), "float32", (), "step"),
        },
        {
            "forward": Program("forward", ("x",), ("seen",)),
            "update.0": Program("update.0", ("seen",), ("done",)),
        },
    )
    tasks = tuple(tuple(Task(Kind.FORWARD, s, m) for m in range(count)) for s in range(2))
    pipeline = Pipeline(
        "throughput",
        Schedule("inference", 2, count, tasks),
        (sender, receiver),
        (Transfer(0, "y", 1, "x"),),
        (),
        (),
        (Fetch(0, 1, "done"),),
    )
    made: list[Any] = []

    def make() -> tuple[Any, ...]:
        if not made:
            made.append(np.ones(shape, np.float32))
        return (made[0],)

    def take(x: Any) -> tuple[Any, ...]:
        x.block_until_ready()
        return (np.float32(0),)

    programs = [{"forward": make}, {"forward": take, "update.0": done}]
    with ray_runtime(pipeline, programs, transfer=transfer) as runtime:
        return size * count / seconds(lambda: float(runtime.step([])[0]), 5)


def main() -> int:
    """Measures, prints, writes; 1 if a bound breaks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "runtime_overhead.json")
    out = parser.parse_args().out
    rows = interpreter() | local() | ray_step(MICROBATCHES, "ray") | ray_step(1, "ray, one micro-batch")
    for name, found in rows.items():
        middle, least, largest = (n * 1e3 for n in (statistics.median(found), found[0], found[-1]))
        print(f"{name:28} {middle:8.2f} ms per step   ({least:.2f} to {largest:.2f})")
    rates = {t: {name: throughput(t, size) for name, size in SIZES.items()} for t in ("socket", "object_store")}
    for transfer, rate in rates.items():
        print(f"{transfer:28} " + "  ".join(f"{name}: {each / 1e9:.2f} GB/s" for name, each in rate.items()))
    load = psutil.getloadavg()[0]
    write_result(out, {**stamp(), "load_average": load, "seconds_per_step": rows, "bytes_per_s": rates})
    bounds = {"local": LOCAL_BOUND_S, "ray": RAY_BOUND_S}
    return int(any(statistics.median(rows[name]) > bound for name, bound in bounds.items()))


if __name__ == "__main__":
    sys.exit(main())
