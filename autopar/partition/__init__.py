"""Cuts a traced step over time (micro-batches) and over devices (stages). Plain data, no jax."""

from autopar.partition.depth import Depth, Part, cut_depth
from autopar.partition.likeness import stage_digest
from autopar.partition.loop_stages import forward_ops
from autopar.partition.remat import Recomputable, recomputable
from autopar.partition.section import Section
from autopar.partition.stacks import chunks_for, stacked_lengths
from autopar.partition.staging import Crossing, StageSection, Staging, stage_step
from autopar.partition.timing import AFTER, LOCAL, SAME, Timing, examples_of, time_step
from autopar.partition.units import BOUNDARY, Unit, find_units

__all__ = [
    "AFTER",
    "BOUNDARY",
    "LOCAL",
    "SAME",
    "Crossing",
    "Depth",
    "Part",
    "Recomputable",
    "Section",
    "StageSection",
    "Staging",
    "Timing",
    "Unit",
    "chunks_for",
    "cut_depth",
    "examples_of",
    "find_units",
    "forward_ops",
    "recomputable",
    "stacked_lengths",
    "stage_digest",
    "stage_step",
    "time_step",
]
