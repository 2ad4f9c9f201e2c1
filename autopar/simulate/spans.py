"""The spans of a step that ran, read back from a trace that :meth:`Simulation.to_perfetto` wrote."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopar.errors import OptionError
from autopar.simulate.perfetto import MEASURED


@dataclass(frozen=True, slots=True)
class ReadSpan:
    """One measured run of a program (:class:`autopar.simulate.Measured`), in seconds since the step began."""

    worker: int
    stage: int
    program: str
    microbatch: int | None
    start_s: float
    end_s: float


def load_spans(path: str | os.PathLike[str]) -> tuple[ReadSpan, ...]:
    """The measured spans of a trace.

    Args:
      path: of a file that ``plan.simulate().to_perfetto(path, measured=executable.timeline)`` wrote.

    Raises:
      OptionError: there is no such file, it is no trace, or nothing in it was measured.
    """
    name = os.fspath(path)
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        events = [e for e in data["traceEvents"] if e["pid"] == MEASURED and e["ph"] == "X"]
        found = tuple(map(_span, events))
    except OSError as error:
        raise OptionError(f"the trace {name!r} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise OptionError(
            f"{name!r} is not a trace with measured spans; such a file is what "
            "step.plan.simulate().to_perfetto(path, measured=step.timeline) writes."
        ) from error
    if not found:
        raise OptionError(
            f"nothing in the trace {name!r} was measured, only predicted. Run a step and write its spans, too: "
            "step.timed(...), then step.plan.simulate().to_perfetto(path, measured=step.timeline)."
        )
    return found


def _span(event: dict[str, Any]) -> ReadSpan:
    about = event["args"]
    start_s = event["ts"] / 1e6
    return ReadSpan(
        event["tid"], about["stage"], about["program"], about["microbatch"], start_s, start_s + event["dur"] / 1e6
    )
