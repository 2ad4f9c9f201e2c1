"""Choose: from a step and a cluster to a plan, by integer programming. No jax."""

from autopar.planner.hints import Hint
from autopar.planner.options import BACKENDS, STRATEGIES, Options
from autopar.planner.search import plan_step
from autopar.planner.shortage import ShortageError
from autopar.planner.stages import Shared, plan_stages

__all__ = ["BACKENDS", "STRATEGIES", "Hint", "Options", "Shared", "ShortageError", "plan_stages", "plan_step"]
