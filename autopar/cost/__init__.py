"""Prices of a choice: local work by roofline, communication by latency and bandwidth. No jax."""

from autopar.cost.collectives import LevelPart, collective_line, collective_s, level_parts
from autopar.cost.compute import compute_s
from autopar.cost.transfers import transfer_s

__all__ = ["LevelPart", "collective_line", "collective_s", "compute_s", "level_parts", "transfer_s"]
