"""Pipelines: a chain of units cut into stages, each with devices of its own. No jax."""

from autopar.planner.stages.cost import CostOf, Partition, Span, StageCost, partition_s
from autopar.planner.stages.partition import Finalists, even_partition, partition
from autopar.planner.stages.problem import StagedProblem
from autopar.planner.stages.search import plan_stages
from autopar.planner.stages.sharing import Shared

__all__ = [
    "CostOf",
    "Finalists",
    "Partition",
    "Shared",
    "Span",
    "StageCost",
    "StagedProblem",
    "even_partition",
    "partition",
    "partition_s",
    "plan_stages",
]
