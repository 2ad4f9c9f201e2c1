"""A step cut into stages and run on this process's devices, every stage on its own."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np

from autopar.lower import device_mesh
from autopar.lower.emit import emit
from autopar.lower.pipeline import assemble
from autopar.lower.stage_programs import stage_programs
from autopar.mesh import Cluster
from autopar.partition import forward_ops, stage_step, time_step
from autopar.planner import Options, plan_step
from autopar.runtime import LocalRuntime
from autopar.schedule import make_schedule
from autopar.trace import Traced


def stage_runtime(traced: Traced, cut: Sequence[int], microbatches: int, schedule: str = "1f1b", devices: int = 1):
    """A runtime of the step in stages, each planned for ``devices`` devices, and the pipeline that it runs."""
    timing = time_step(traced.step, microbatches)
    staging = stage_step(traced.step, timing, cut)
    programs, meshes = [], []
    for info in staging.stages:
        written = emit(traced, timing, info.section)
        leaves = range(len(info.state))
        step = replace(written.step, state=tuple((k, k) for k in leaves), donated=frozenset(leaves), batch=())
        facts = plan_step(step, Cluster.parse(f"cpu:{devices}"), Options(), lambda _: None)
        meshes.append(device_mesh(facts, jax.devices()[info.index * devices : (info.index + 1) * devices]))
        split = schedule == "zb-h1"
        found = stage_programs(replace(written, step=step), facts, info, meshes[-1], microbatches, split_backward=split)
        programs.append(found)
    order = make_schedule(schedule, len(cut), microbatches)
    pipeline = assemble(traced.step, timing, staging, order, programs)
    return LocalRuntime(pipeline, [p.functions for p in programs], meshes), pipeline


def cut_before_scans(traced: Traced, stages: int, microbatches: int) -> list[int]:
    """A cut that gives every stage equally many of the forward pass's scans."""
    forward = forward_ops(traced.step, time_step(traced.step, microbatches))
    scans = [k for k, op in enumerate(forward) if op.loop is not None]
    each = len(scans) // stages
    return [0, *(scans[k * each] for k in range(1, stages))]


def words(x):
    """A random key as the numbers it is made of; any other array as it is."""
    keyed = isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if keyed else x)
