"""What hints cost: the same step planned again without them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from autopar.errors import AutoparError, HintError, InfeasibleError
from autopar.plan import HintCost, PlanFacts
from autopar.planner import Hint, Options, ShortageError
from autopar.units import bytes_text, seconds_text

Again = Callable[[Options], PlanFacts]

_EACH = 4  # up to so many hints are also left out one by one


def with_hints(facts: PlanFacts, options: Options, again: Again) -> PlanFacts:
    """A plan that records its hints, and what it would be without them.

    Args:
      facts: the plan.
      options: what it was made with.
      again: plans the same step with other options.
    """
    hints = options.known
    every = [hints] if len(hints) > 1 else []
    left_out = [*([(hint,) for hint in hints] if len(hints) <= _EACH else []), *every] if options.hint_costs else []
    costs = tuple(cost for out in left_out for cost in _cost(options, out, again))
    return dataclasses.replace(facts, hints=tuple(map(str, hints)), hint_costs=costs)


def without(options: Options, out: Sequence[Hint]) -> Options:
    """Options without some of their hints."""
    return dataclasses.replace(options, hints=tuple(h for h in options.known if h not in out), hint_costs=False)


def _cost(options: Options, out: Sequence[Hint], again: Again) -> list[HintCost]:
    try:
        found = again(without(options, out))
    except AutoparError:  # the solver may run out of time without a hint, which leaves it less to search
        return []
    return [HintCost(tuple(map(str, out)), found.step_s, found.peak_bytes, found.collective_bytes)]


def explained(error: InfeasibleError, options: Options, again: Again) -> InfeasibleError:
    """The error that hints leave no plan, with what is known of plans without them."""
    hints = options.known
    if isinstance(error, HintError):  # it says all there is to know
        return error
    tried = [(hint,) for hint in hints] if 1 < len(hints) <= _EACH else []
    for out in (*tried, hints) if options.hint_costs else ():
        try:
            found = again(without(options, out))
        except AutoparError:
            continue
        names = " and ".join(f"'{hint}'" for hint in out) if len(out) <= _EACH else f"its {len(out)} hints"
        missing = ""
        if isinstance(error, ShortageError) and math.isfinite(error.enough_bytes):
            short = bytes_text(error.enough_bytes - error.budget_bytes)
            missing = f" With {names} the smallest plan found is {short} short."
        said = type(error)(
            f"{error}{missing} Without {names} there is a plan: {seconds_text(found.step_s)} per step, "
            f"{bytes_text(found.peak_bytes)} at the peak of a device."
        )
        vars(said).update(vars(error))  # how short it is
        return said
    return error


__all__ = ["explained", "with_hints", "without"]
