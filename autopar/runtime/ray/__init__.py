"""Runs a pipeline on the processes of a Ray cluster. Importing it imports ray, which takes a third of a second."""

from autopar.runtime.ray.handle import Handle
from autopar.runtime.ray.runtime import RayRuntime

__all__ = ["Handle", "RayRuntime"]
