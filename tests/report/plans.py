"""Hand-made plans: a decoder of any depth on a mesh x=2, y=4."""

from __future__ import annotations

import dataclasses
import math

from autopar.mesh import Cluster
from autopar.plan import (
    Argument,
    Certificate,
    CollectiveRecord,
    MeshAxis,
    PipelineRunnerUp,
    PlanFacts,
    RunnerUp,
    StageFacts,
)
from autopar.simulate import simulate_plan

WHOLE = (-1, -1)
PARAMS, MU, NU = "state.params", "state.opt_state[1][0].mu", "state.opt_state[1][0].nu"


def leaf(path, shape, layout, kind, dtype="float32"):
    return Argument(path, shape, dtype, layout, kind)


def trained(path, shape, layout, state=None):
    """A parameter and its Adam state (laid out as the parameter unless said otherwise)."""
    state = layout if state is None else state
    return [
        leaf(f"{PARAMS}{path}", shape, layout, "parameter"),
        leaf(f"{MU}{path}", shape, state, "optimizer"),
        leaf(f"{NU}{path}", shape, state, "optimizer"),
    ]


def collective(kind, axis, nbytes, cause, phase="forward", where="layers.py:40 (mlp)", count=1, seconds=1e-3):
    return CollectiveRecord(kind, (axis,), nbytes, count, count, seconds, phase, where, cause)


def decoder(layers=2, arrays=None, collectives=None, **changes):
    """Data parallel over x, Megatron over y, optimizer state split over x: unless arrays are given."""
    if arrays is None:
        arrays = [a for i in range(layers) for a in layer(i)]
        arrays += trained("['wte']", (256, 64), WHOLE, (0, -1))
    if collectives is None:
        collectives = [c for i in range(layers) for c in exchanges(i)]
    fixed = [
        leaf("state.step", (), WHOLE, "state", "int32"),
        leaf("batch['tokens']", (16, 32), (0, -1), "batch", "int32"),
        leaf("batch['targets']", (16, 32), (0, -1), "batch", "int32"),
    ]
    communication_s = sum(c.seconds for c in collectives)
    values = {
        "name": "train_step",
        "strategy": "auto",
        "fingerprint": "f" * 32,
        "cluster": Cluster.parse("cpu:8").to_dict(),
        "mesh": (MeshAxis("x", 2), MeshAxis("y", 4)),
        "arguments": (*arrays, *fixed),
        "results": (),
        "ops": {},
        "layouts": {},
        "moves": {},
        "remade": {},
        "step_s": 0.01 + communication_s,
        "compute_s": 0.01,
        "communication_s": communication_s,
        "peak_bytes": 300 * 2**20,
        "memory": {"parameter": 100 * 2**20, "activation": 199 * 2**20, "batch": 2**20, "output": 0},
        "collectives": tuple(collectives),
        "certificate": Certificate(
            "optimal",
            0.01 + communication_s,
            0.01,
            0.0004,
            "highs",
            tied=True,
            variables=2712,
            constraints=1311,
            build_s=0.8,
            solve_s=0.25,
        ),
        "runners_up": (RunnerUp((8,), 0.05, 2**29, "optimal"), RunnerUp((4, 2), 0.06, 2**29, "within gap")),
        "warnings": (),
    }
    return PlanFacts(**(values | changes))


def layer(i):
    at = f"['layers'][{i}]"
    return [
        *trained(f"{at}['w1']", (64, 256), (-1, 1), (0, 1)),
        *trained(f"{at}['w2']", (256, 64), (-1, 0), (1, 0)),
        *trained(f"{at}['ln']['scale']", (64,), WHOLE),
    ]


def exchanges(i):
    local = 64 * 256
    return [
        collective("all-reduce", "y", 32768, "P(sum)->R", where=f"layer_{i}/mlp"),
        collective("reduce-scatter", "x", 2 * local, "P(sum)->S0", "update", "optax.py:1 (update)", 2),
        collective("all-gather", "x", 2 * local, "S0->R", "update", "optax.py:2 (apply)", 2),
    ]


def stacked(share):
    """Mesh of one axis with 100 float32 of parameters, the given share split."""
    split = math.floor(share * 100)
    return [
        leaf(f"{PARAMS}['a']", (split, 8), (0, -1), "parameter"),
        leaf(f"{PARAMS}['b']", (100 - split, 8), WHOLE, "parameter"),
    ]


def pipeline(schedule="1f1b", microbatches=4, hosts=2, **changes):
    """Two decoders as stages, on devices 0-7 and 8-15 of a few hosts."""
    stages = (stage(0, schedule, microbatches), stage(1, schedule, microbatches))
    busy_s = sum(s.plan.step_s for s in stages) / 2
    values = {
        "cluster": Cluster.parse(f"h100:{hosts}x8").to_dict(),
        "mesh": (),
        "arguments": (),
        "compute_s": sum(s.plan.compute_s for s in stages) / 2,
        "communication_s": sum(s.plan.communication_s for s in stages) / 2,
        "peak_bytes": 360 * 2**20,
        "memory": dict(stages[0].plan.memory) | {"micro-batches in flight": 60 * 2**20},
        "collectives": tuple(c for s in stages for c in s.plan.collectives),
        "runners_up": (),
        "microbatches": microbatches,
        "schedule": schedule,
        "stages": stages,
        "pipeline_bound_s": 0.105,
        "other_pipelines": (
            PipelineRunnerUp(((2, 4), (2, 4), (2, 8)), schedule, microbatches, 0.13, 2**29),
            PipelineRunnerUp(((1, 4),) * 4, schedule, microbatches, 0.15, 2**28),
        ),
    }
    plan = decoder(**values)
    step_s = simulate_plan(plan).step_s + 0.01
    return dataclasses.replace(plan, **({"step_s": step_s, "idle_s": step_s - busy_s} | changes))


def stage(index, schedule="1f1b", microbatches=4):
    """A decoder of six layers as a stage; its batch is one micro-batch."""
    plan = decoder(6, name=f"train_step, stage {index}", cluster=Cluster.parse("h100:8").to_dict(), runners_up=())
    plan = dataclasses.replace(plan, step_s=0.09, compute_s=0.072)
    forward_s, backward_s = 0.03 / microbatches, 0.05 / microbatches
    held = 2 - index if schedule == "1f1b" else microbatches
    sends = (2**22, 0) if index == 0 else (0, 2**22)
    return StageFacts(
        plan, 40 * index, (3 * index, 3 * index + 3), (8 * index, 8 * index + 8), forward_s, backward_s,
        backward_s / 2, 0.01, held, 60 * 2**20, *sends,
    )  # fmt: skip


change = dataclasses.replace
