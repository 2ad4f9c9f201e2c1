"""Plan a step on one cluster after another: which size, which parallelism, how fast, does it fit."""

from autopar.sweep.rows import Row, SweepResult, read_result
from autopar.sweep.sweeping import Case, sweep

__all__ = ["Case", "Row", "SweepResult", "read_result", "sweep"]
