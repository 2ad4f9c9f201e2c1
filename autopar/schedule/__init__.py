"""The order of work in a pipeline, as data with one checker."""

from autopar.schedule.pipeline import Buffer, Feed, Fetch, Keep, Pipeline, Program, Spec, Stage, Transfer
from autopar.schedule.task import Kind, Schedule, Task

__all__ = [
    "Buffer",
    "Feed",
    "Fetch",
    "Keep",
    "Kind",
    "Pipeline",
    "Program",
    "Schedule",
    "Spec",
    "Stage",
    "Task",
    "Transfer",
]
