"""Runs a step that is cut into stages."""

from autopar.runtime.arrays import stage_meshes
from autopar.runtime.check import check_instructions
from autopar.runtime.instructions import instructions
from autopar.runtime.interpreter import Span
from autopar.runtime.launch import Runtime, ray_runtime
from autopar.runtime.local import LocalRuntime
from autopar.schedule import Buffer, Feed, Fetch, Keep, Pipeline, Program, Stage, Transfer

__all__ = [
    "Buffer",
    "Feed",
    "Fetch",
    "Keep",
    "LocalRuntime",
    "Pipeline",
    "Program",
    "Runtime",
    "Span",
    "Stage",
    "Transfer",
    "check_instructions",
    "instructions",
    "ray_runtime",
    "stage_meshes",
]
