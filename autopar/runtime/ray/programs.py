"""Programs on their way to a worker: exported by jax, compiled where they run.

A worker has other devices than the driver, so a jitted program travels as StableHLO with its sharding inside
(``jax.export``) and is compiled once, for the worker's mesh, with the layouts and donations of the pipeline. A plain
callable travels by cloudpickle and is called as it is, on whatever arrives.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
from jax import export
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from ray import cloudpickle

from autopar.lower import buffer_spec
from autopar.runtime.arrays import buffers_of, program_avals
from autopar.schedule import Pipeline, Program, Stage


@dataclass(frozen=True, slots=True)
class Parcel:
    """A program's bytes; ``exported`` or pickled."""

    exported: bool
    content: bytes


def pack(
    pipeline: Pipeline, programs: Sequence[Mapping[str, Callable]], platform: str
) -> tuple[dict[str, Parcel], ...]:
    """Each stage's programs by name.

    Args:
      pipeline: what they are programs of.
      programs: for each stage, by name: jitted functions over a mesh like the stage's, or plain callables.
      platform: what the workers run on, in jax's words: ``cpu``, ``cuda``, ``rocm`` or ``tpu``.
    """
    return tuple(
        {name: _pack(pipeline, stage, program, programs[stage.index][name], platform) for name, program in
         stage.programs.items()}
        for stage in pipeline.stages
    )  # fmt: skip


def unpack(parcel: Parcel, pipeline: Pipeline, stage: Stage, program: Program, mesh: Mesh) -> Callable:
    """The program, compiled for ``mesh``."""
    if not parcel.exported:
        return cloudpickle.loads(parcel.content)
    called = export.deserialize(bytearray(parcel.content)).call
    count = pipeline.schedule.microbatches
    ins = buffers_of(stage, program.inputs, program, count)
    outs = buffers_of(stage, program.outputs, program, count)
    donated = tuple(i for i, b in enumerate(ins) if b.name in program.donated)
    jitted = jax.jit(
        called,
        in_shardings=tuple(NamedSharding(mesh, buffer_spec(b)) for b in ins),
        out_shardings=tuple(NamedSharding(mesh, buffer_spec(b)) for b in outs),
        donate_argnums=donated,
    )
    with _donation_is_a_wish():
        return jitted.lower(*program_avals(stage, program, mesh, count)).compile()


def _pack(pipeline: Pipeline, stage: Stage, program: Program, function: Callable, platform: str) -> Parcel:
    if not isinstance(function, jax.stages.Wrapped):
        return Parcel(False, cloudpickle.dumps(function))
    names, sizes = zip(*stage.mesh, strict=True)
    avals = program_avals(stage, program, AbstractMesh(sizes, names), pipeline.schedule.microbatches)
    with _donation_is_a_wish():
        exported = export.export(function, platforms=(platform,))(*avals)
    return Parcel(True, bytes(exported.serialize()))


@contextlib.contextmanager
def _donation_is_a_wish():
    """A donated input that no result can use is no loss; jax warns, as most people mean otherwise."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
        yield
