"""What all runtimes have in common, and the one place where the Ray runtime is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from autopar.runtime.interpreter import Span
from autopar.schedule import Pipeline

Arguments = Mapping[int, Any] | Sequence[Any]  # by index among the step's flat arguments


class Runtime(Protocol):
    """Runs the steps of one pipeline. The state stays with it from step to step."""

    def load_state(self, arguments: Arguments) -> None:
        """Takes the first values of the state; arguments that are not state are ignored."""

    def step(self, arguments: Arguments) -> Mapping[int, Any]:
        """Dispatches one step: the results that are not state, by index among the flat results. May not wait."""

    def timeline(self, arguments: Arguments) -> tuple[Mapping[int, Any], list[Span]]:
        """Runs one step, and measures when each program ran."""

    def fetch_state(self) -> Mapping[int, Any]:
        """The state after every step so far, by index among the step's flat results."""

    def close(self) -> None:
        """Ends it, and what it started."""


def accelerator(device: str) -> str:
    """What Ray calls the nodes of a device, as their accelerator type: its memory is not part of the name.

    >>> accelerator("v100-16gb"), accelerator("h100")
    ('V100', 'H100')
    """
    return device.upper().split("-")[0]


def ray_runtime(pipeline: Pipeline, programs: Sequence[Mapping[str, Callable]], **options: Any) -> Runtime:
    """A :class:`autopar.runtime.ray.RayRuntime`, whose docstring has the options and errors.

    Loaded here and not at the top: importing ray takes a third of a second, which people who stay in one process
    should not pay with every ``import autopar``.
    """
    return importlib.import_module("autopar.runtime.ray").RayRuntime(pipeline, programs, **options)
