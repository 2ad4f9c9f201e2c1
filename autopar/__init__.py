"""autopar: automatic parallelisation of JAX training steps.

Example:
  >>> import autopar
  >>> @autopar.parallelize(cluster="cpu:8")
  ... def train_step(state, batch): ...
"""

import importlib
from typing import TYPE_CHECKING, Any

from autopar.api import (
    Executable,
    Explanation,
    Parallelized,
    Plan,
    StagedExecutable,
    WhatIf,
    compile,
    load_plan,
    parallelize,
    plan,
    shutdown,
    stage_boundary,
)
from autopar.errors import (
    AutoparError,
    ClusterError,
    CouplingError,
    HintError,
    InfeasibleError,
    InternalError,
    OptionError,
    PlanError,
    RuleError,
    SolverError,
    StageError,
    TraceError,
)
from autopar.lower import Audit
from autopar.mesh import Cluster
from autopar.planner import Hint, Options
from autopar.sharding.rules import register_rule
from autopar.simulate import Simulation, simulate
from autopar.sweep import SweepResult, sweep
from autopar.version import __version__ as __version__

if TYPE_CHECKING:
    from autopar.sizing import predict

__all__ = [
    "Audit",
    "AutoparError",
    "Cluster",
    "ClusterError",
    "CouplingError",
    "Executable",
    "Explanation",
    "Hint",
    "HintError",
    "InfeasibleError",
    "InternalError",
    "OptionError",
    "Options",
    "Parallelized",
    "Plan",
    "PlanError",
    "RuleError",
    "Simulation",
    "SolverError",
    "StageError",
    "StagedExecutable",
    "SweepResult",
    "TraceError",
    "WhatIf",
    "compile",
    "load_plan",
    "parallelize",
    "plan",
    "predict",
    "register_rule",
    "shutdown",
    "simulate",
    "stage_boundary",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """``predict`` knows the models of the zoo, which import flax and optax: it is loaded when it is first asked for."""
    if name == "predict":
        return importlib.import_module("autopar.sizing").predict
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
