"""Small pipelines made by hand: a chain of tanh layers with a clipped SGD update, and what plain jax makes of it."""

import heapq
import random

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh

from autopar.runtime import Buffer, Feed, Fetch, Keep, Pipeline, Program, Stage, Transfer
from autopar.runtime.arrays import buffer_spec, buffers_of
from autopar.schedule import Kind, Schedule, Task

WIDTH, CLIP, RATE = 8, 0.05, 0.5


def schedule(stages, microbatches, *, workers=None, weight=False, seed=None, forward_only=False):
    """A valid schedule. ``seed`` None: all forwards first; else a random order that respects the dependencies."""
    workers = workers or stages
    rng = random.Random(seed)
    lists = [[] for _ in range(workers)]
    done, waiting = set(), []

    def push(kind, s, m):
        rank = (m, s) if seed is None else (rng.random(), 0)
        heapq.heappush(waiting, (seed is None and kind != Kind.FORWARD, rank, Task(kind, s, m)))

    for m in range(microbatches):
        push(Kind.FORWARD, 0, m)
    while waiting:
        _, _, task = heapq.heappop(waiting)
        lists[task.stage % workers].append(task)
        done.add(task)
        s, m = task.stage, task.microbatch
        if task.kind == Kind.FORWARD and s + 1 < stages:
            push(Kind.FORWARD, s + 1, m)
        elif task.kind == Kind.FORWARD and not forward_only:
            push(Kind.BACKWARD, s, m)
        elif task.kind == Kind.BACKWARD:
            if s > 0:
                push(Kind.BACKWARD, s - 1, m)
            if weight:
                push(Kind.WEIGHT, s, m)
    return Schedule("toy", stages, microbatches, tuple(map(tuple, lists)))


def chain(order, *, rows=4, devices=1, dtype="float32"):
    """The pipeline: argument s is the weight of stage s, then the inputs and the labels; results likewise."""
    stages = tuple(_stage(order, s, rows, devices, dtype) for s in range(order.stages))
    transfers = [Transfer(s, "y", s + 1, "x") for s in range(order.stages - 1)]
    transfers += [Transfer(s + 1, "gx", s, "gy") for s in range(order.stages - 1)]
    transfers += [
        Transfer(s, "square", t, f"square.{s}") for s in range(order.stages) for t in range(order.stages) if s != t
    ]
    last, n = order.stages - 1, order.stages
    return Pipeline(
        name="toy",
        schedule=order,
        stages=stages,
        transfers=tuple(transfers),
        feeds=(Feed(n, 0, "x", 0), Feed(n + 1, last, "labels", 0)),
        keeps=tuple(Keep(s, s, s, "w") for s in range(n)),
        fetches=(Fetch(n, last, "mean"), Fetch(n + 1, 0, "norm")),
    )


def _stage(order, s, rows, devices, dtype):
    first, last = s == 0, s == order.stages - 1
    split, whole = (("data",), ()), ((), ())
    each = {"x": split, "saved": split} | ({"labels": split} if last else {"y": split, "gy": split})
    if not first:
        each["gx"] = split
    found = [Buffer(name, (rows, WIDTH), dtype, spec, "microbatch") for name, spec in each.items()]
    found += [Buffer("w", (WIDTH, WIDTH), dtype, whole, "state"), Buffer("acc", (WIDTH, WIDTH), dtype, whole, "step")]
    others = tuple(f"square.{t}" for t in range(order.stages) if t != s)
    found += [Buffer(name, (), dtype, (), "step") for name in ("square", "norm", "mean", *others)]
    found.append(Buffer("loss", (), dtype, (), "microbatch"))
    labels, loss = (("labels",), ("loss",)) if last else ((), ())
    seed = "labels" if last else "gy"
    gx = () if first else ("gx",)
    programs = [
        Program("prepare", (), ("acc",)),
        Program("forward", ("w", "x", *labels), ("loss",) if last else ("y",)),
        Program("update.0", ("acc", *loss), ("square", *(("mean",) if last else ()))),
        Program(
            "update.1", ("w", "acc", "square", *others), ("w", *(("norm",) if first else ())), frozenset({"w", "acc"})
        ),
    ]
    if Kind.WEIGHT in order.kinds:
        programs.append(Program("backward", ("w", "x", seed), ("saved", *gx)))
        programs.append(Program("weight", ("x", "saved", "acc"), ("acc",), frozenset({"acc", "x"})))
    else:
        programs.append(Program("backward", ("w", "x", seed, "acc"), ("acc", *gx), frozenset({"acc", "x"})))
    return Stage(s, (("data", devices),), {b.name: b for b in found}, {p.name: p for p in programs})


def functions(pipeline):
    """For each stage, its programs as functions of the local parts of their arguments, by name."""
    rows = next(iter(pipeline.stages[0].buffers.values())).shape[0]
    total = rows * pipeline.schedule.microbatches * WIDTH
    return [_functions(stage, total, pipeline) for stage in pipeline.stages]


def _functions(stage, total, pipeline):
    first, last = stage.index == 0, stage.index == len(pipeline.stages) - 1

    def through(w, x):
        return jnp.tanh(x @ w)

    def loss(w, x, labels):
        return (jax.lax.psum(jnp.sum((through(w, x) - labels) ** 2), "data") / total,)

    def signal(w, x, seed):
        y = through(w, x)
        gy = 2 * (y - seed) / total if last else seed
        return gy * (1 - y * y)

    def split_backward(w, x, seed):
        inner = signal(w, x, seed)
        return (inner,) if first else (inner, inner @ w.T)

    def weight(x, inner, acc):
        return (acc + jax.lax.psum(x.T @ inner, "data"),)

    def backward(w, x, seed, acc):
        inner, *gx = split_backward(w, x, seed)
        return (*weight(x, inner, acc), *gx)

    def update0(acc, *losses):
        return (jnp.sum(acc * acc), *((sum(losses),) if last else ()))

    def update1(w, acc, *squares):
        norm = jnp.sqrt(sum(squares))
        return (w - RATE * acc * jnp.minimum(1, CLIP / norm), *((norm,) if first else ()))

    dtype = stage.buffers["w"].dtype
    return {
        "prepare": lambda: (jnp.zeros((WIDTH, WIDTH), dtype),),
        "forward": loss if last else lambda w, x: (through(w, x),),
        "backward": split_backward if "weight" in stage.programs else backward,
        "weight": weight,
        "update.0": update0,
        "update.1": update1,
    }


def jitted(pipeline, meshes=None):
    """For each stage, its programs as jitted functions over ``meshes``, or over abstract ones."""
    found = []
    for stage, local in zip(pipeline.stages, functions(pipeline), strict=True):
        mesh = meshes[stage.index] if meshes else AbstractMesh(*zip(*((n, a) for a, n in stage.mesh), strict=True))
        found.append(
            {name: _jit(pipeline, stage, program, local[name], mesh) for name, program in stage.programs.items()}
        )
    return found


def _jit(pipeline, stage, program, local, mesh):
    count = pipeline.schedule.microbatches
    ins = buffers_of(stage, program.inputs, program, count)
    outs = buffers_of(stage, program.outputs, program, count)
    specs = tuple(map(buffer_spec, ins)), tuple(map(buffer_spec, outs))
    donated = tuple(i for i, b in enumerate(ins) if b.name in program.donated)
    whole = jax.shard_map(local, mesh=mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False)
    return jax.jit(whole, donate_argnums=donated)


def arguments(pipeline, seed=0):
    """Weights, inputs and labels."""
    rng = np.random.default_rng(seed)
    n, dtype = len(pipeline.stages), pipeline.stages[0].buffers["w"].dtype
    rows = pipeline.stages[0].buffers["x"].shape[0] * pipeline.schedule.microbatches
    shapes = [(WIDTH, WIDTH)] * n + [(rows, WIDTH)] * 2
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def plain(arguments):
    """One step without a pipeline: (weights, loss, norm of the gradient)."""
    *weights, x, labels = map(jnp.asarray, arguments)

    def mean_loss(weights):
        y = x
        for w in weights:
            y = jnp.tanh(y @ w)
        return jnp.mean((y - labels) ** 2)

    value, grads = jax.value_and_grad(mean_loss)(weights)
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in grads))
    scale = jnp.minimum(1, CLIP / norm)
    return [np.asarray(w - RATE * g * scale) for w, g in zip(weights, grads, strict=True)], float(value), float(norm)


def plain_steps(arguments, count):
    """``count`` steps on one batch: final weights, and the loss and norm of each step."""
    weights, rest, seen = list(arguments[:-2]), list(arguments[-2:]), []
    for _ in range(count):
        weights, *values = plain([*weights, *rest])
        seen.append(values)
    return weights, seen
