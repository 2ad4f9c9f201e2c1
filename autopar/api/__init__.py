"""What users call."""

from autopar.api.boundary import stage_boundary
from autopar.api.executable import Executable
from autopar.api.explaining import Explanation, WhatIf
from autopar.api.parallelize import Parallelized, compile, parallelize
from autopar.api.plan import Plan, load_plan
from autopar.api.planning import plan
from autopar.api.staged import StagedExecutable, shutdown

__all__ = [
    "Executable",
    "Explanation",
    "Parallelized",
    "Plan",
    "StagedExecutable",
    "WhatIf",
    "compile",
    "load_plan",
    "parallelize",
    "plan",
    "shutdown",
    "stage_boundary",
]
