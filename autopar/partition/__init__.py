"""Cuts a traced step over time (micro-batches) and over devices (stages). Plain data, no jax."""

from autopar.partition.section import Section
from autopar.partition.timing import AFTER, LOCAL, SAME, Timing, time_step

__all__ = ["AFTER", "LOCAL", "SAME", "Section", "Timing", "time_step"]
