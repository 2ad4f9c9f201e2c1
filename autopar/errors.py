"""Every error that a user can meet. A message says what was asked, what was found, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AutoparError(Exception):
    """Base of all errors raised by autopar."""


class TraceError(AutoparError):
    """The step function cannot be traced, or holds something that cannot be spread."""


class RuleError(AutoparError):
    """A factor rule is malformed or disagrees with the op it describes."""


class ClusterError(AutoparError):
    """A cluster is unknown, malformed, or larger than the devices present."""


class PlanError(AutoparError):
    """A plan cannot be loaded, or does not fit the step, the cluster or the arguments."""


class CouplingError(AutoparError):
    """A step joins the examples of its batch, so it cannot be computed in micro-batches."""


class InfeasibleError(AutoparError):
    """No plan fits into memory or satisfies the hints."""


class HintError(InfeasibleError):
    """A hint cannot be kept, or two contradict each other."""


class SolverError(AutoparError):
    """The ILP solver is missing, failed, or found nothing in time."""


class OptionError(AutoparError, ValueError):
    """An option has a value that autopar does not know."""


class StageError(AutoparError):
    """A stage of a pipeline failed while it ran, or its worker is gone."""


class MemoryWarning(UserWarning):
    """A compiled step needs more memory than its plan predicted."""


class InternalError(AutoparError):
    """autopar broke its own rules; please report it with the message."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A clause naming the known words nearest to ``word``: ``did you mean 'fsdp'? Known: ...``."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return f"{hint}Known: {', '.join(known)}."
