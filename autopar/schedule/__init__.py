"""The order of work in a pipeline, as data with one checker."""

from autopar.schedule.task import Kind, Schedule, Task

__all__ = ["Kind", "Schedule", "Task"]
