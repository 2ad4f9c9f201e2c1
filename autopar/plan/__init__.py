"""The waist: a plan is written by planners and read by everything below them."""

from autopar.plan.facts import (
    FORMAT,
    Argument,
    Certificate,
    CollectiveRecord,
    HintCost,
    MeshAxis,
    PipelineRunnerUp,
    PlanFacts,
    RunnerUp,
    StageFacts,
)
from autopar.plan.serialize import from_json, load, save, to_json

__all__ = [
    "FORMAT",
    "Argument",
    "Certificate",
    "CollectiveRecord",
    "HintCost",
    "MeshAxis",
    "PipelineRunnerUp",
    "PlanFacts",
    "RunnerUp",
    "StageFacts",
    "from_json",
    "load",
    "save",
    "to_json",
]
