"""Runs a step that is cut into stages."""

from autopar.runtime.arrays import program_avals, stage_meshes
from autopar.runtime.check import check_instructions
from autopar.runtime.instructions import Run, instructions
from autopar.runtime.interpreter import Span
from autopar.runtime.launch import Runtime, accelerator, ray_runtime
from autopar.runtime.local import LocalRuntime
from autopar.runtime.occupancy import peak_bytes
from autopar.schedule import Buffer, Feed, Fetch, Keep, Pipeline, Program, Stage, Transfer

__all__ = [
    "Buffer",
    "Feed",
    "Fetch",
    "Keep",
    "LocalRuntime",
    "Pipeline",
    "Program",
    "Run",
    "Runtime",
    "Span",
    "Stage",
    "Transfer",
    "accelerator",
    "check_instructions",
    "instructions",
    "peak_bytes",
    "program_avals",
    "ray_runtime",
    "stage_meshes",
]
