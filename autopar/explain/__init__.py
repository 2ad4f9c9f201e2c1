"""Why a plan is as it is: what else it could have chosen, and what that would cost, found by planning it. No jax."""

from autopar.explain.facts import Alternative, ExplanationFacts, Figures, MoreMemory, WhatIfFacts
from autopar.explain.search import explain_part

__all__ = ["Alternative", "ExplanationFacts", "Figures", "MoreMemory", "WhatIfFacts", "explain_part"]
