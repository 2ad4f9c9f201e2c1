"""Cuts a traced step over time (micro-batches) and over devices (stages). Plain data, no jax."""

from autopar.partition.section import Section
from autopar.partition.timing import AFTER, LOCAL, SAME, Timing, examples_of, time_step

__all__ = ["AFTER", "LOCAL", "SAME", "Section", "Timing", "examples_of", "time_step"]
