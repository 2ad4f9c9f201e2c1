"""From a plan and the traced step to SPMD programs with explicit collectives, and back: what XLA made of them."""

from autopar.lower.audit import Audit, AuditRow, PipelineAudit, StageAudit, audit, audit_rows, memory_shortfall
from autopar.lower.compiling import compiled
from autopar.lower.constrained import constrained_program
from autopar.lower.emit import microbatched
from autopar.lower.hlo import HloCollective, Memory, hlo_collectives, memory
from autopar.lower.keys import KEY_IMPLS
from autopar.lower.pipeline import assemble
from autopar.lower.program import spmd_program
from autopar.lower.specs import buffer_spec, device_mesh, enough_devices, partition_spec, shardings
from autopar.lower.stage_programs import StagePrograms, stage_programs
from autopar.lower.staged import StagedStep
from autopar.lower.unstack import Unstacked, cut_parts, join_parts, unstacked

__all__ = [
    "KEY_IMPLS",
    "Audit",
    "AuditRow",
    "HloCollective",
    "Memory",
    "PipelineAudit",
    "StageAudit",
    "StagePrograms",
    "StagedStep",
    "Unstacked",
    "assemble",
    "audit",
    "audit_rows",
    "buffer_spec",
    "compiled",
    "constrained_program",
    "cut_parts",
    "device_mesh",
    "enough_devices",
    "hlo_collectives",
    "join_parts",
    "memory",
    "memory_shortfall",
    "microbatched",
    "partition_spec",
    "shardings",
    "spmd_program",
    "stage_programs",
    "unstacked",
]
