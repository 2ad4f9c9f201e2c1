"""The actors' answers to calls through Ray, and which of them are failures."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from autopar.runtime.ray.links import LinkError
from autopar.runtime.ray.messages import Failure

CAUSE_S = 3.0  # how long the consequences of a failure wait for its cause
_LOOK_S = 0.5  # how often somebody who waits looks for failures


def gather(futures: Sequence[Any]) -> dict[int, Any]:
    """Actor -> its answer, or the RayError that took its place; all of them, or what came after a failure."""
    numbers = {future: n for n, future in enumerate(futures)}
    found: dict[int, Any] = {}
    waiting, until = list(futures), math.inf
    while waiting and time.monotonic() < until:
        ready, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_LOOK_S)
        found |= {numbers[future]: answer for future, answer in _answers(ready).items()}
        if until == math.inf and any(map(is_bad, found.values())):
            until = time.monotonic() + CAUSE_S
    return found


def _answers(futures: Sequence[Any]) -> dict[Any, Any]:
    """What is ready, errors included. One call for all is the fast way, and fails as a whole."""
    try:
        return dict(zip(futures, ray.get(futures), strict=True))
    except RayError as error:
        if len(futures) == 1:
            return {futures[0]: error}
    return {future: answer for single in futures for future, answer in _answers([single]).items()}


def is_bad(answer: Any) -> bool:
    """Whether an answer is a failure, or says that there is no actor any more."""
    return isinstance(answer, Failure | RayError | LinkError)


def rank(failure: Any) -> int:
    """0 for a process that is gone, 1 for what failed in a living one, 2 for a mere consequence."""
    if isinstance(failure, Failure):
        return 2 if failure.consequence else 1
    return 0
