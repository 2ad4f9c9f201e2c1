"""What users call."""

from autopar.api.executable import Executable
from autopar.api.parallelize import Parallelized, compile, parallelize
from autopar.api.plan import Plan, load_plan
from autopar.api.planning import plan

__all__ = ["Executable", "Parallelized", "Plan", "compile", "load_plan", "parallelize", "plan"]
