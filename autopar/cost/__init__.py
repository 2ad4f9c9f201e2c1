"""Prices of a choice: local work by roofline, communication by latency and bandwidth. No jax."""

from autopar.cost.collectives import collective_line, collective_s
from autopar.cost.compute import compute_s
from autopar.cost.transfers import transfer_s

__all__ = ["collective_line", "collective_s", "compute_s", "transfer_s"]
