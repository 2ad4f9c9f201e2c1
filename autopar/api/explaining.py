"""Explanations of a plan: what it is asked, and the step that it needs for the answer."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Console

from autopar.api.searching import Progress, check_made_for, search
from autopar.api.sharing import Sharing
from autopar.errors import AutoparError, OptionError, PlanError
from autopar.explain import ExplanationFacts, WhatIfFacts, explain_part
from autopar.ir import Step
from autopar.mesh import Cluster
from autopar.plan import PlanFacts, to_json
from autopar.planner import Options
from autopar.planner.parts import check_named, holds
from autopar.report import page_text, print_page
from autopar.report.explanation import explanation_page, what_if_page
from autopar.schedule import CHUNKED
from autopar.trace import Traced

_WIDTH = 80


@dataclass(frozen=True)
class Explanation(ExplanationFacts):
    """Why a part of the model lies as it does, as :meth:`autopar.Plan.explain` returns it. ``print`` shows the page."""

    @classmethod
    def of(cls, facts: ExplanationFacts) -> Self:
        """Facts as an explanation.

        Args:
          facts: what was found.
        """
        return cls(**{f.name: getattr(facts, f.name) for f in dataclasses.fields(ExplanationFacts)})

    def show(self, console: Console | None = None) -> None:
        """Print the page.

        Args:
          console: where to; by default standard output.
        """
        print_page(explanation_page(self), console or Console(highlight=False))

    def to_json(self) -> str:
        """The facts as JSON text."""
        return json.dumps(_finite(dataclasses.asdict(self)), indent=1)

    def __str__(self) -> str:
        return page_text(explanation_page(self), _WIDTH)


@dataclass(frozen=True)
class WhatIf(WhatIfFacts):
    """A plan and what other options would make of it, as :meth:`autopar.Plan.what_if` returns it."""

    @property
    def longer_s(self) -> float:
        """How many seconds longer the step is; infinite where there is no plan."""
        return self.after.step_s - self.before.step_s if self.after is not None else math.inf

    def show(self, console: Console | None = None) -> None:
        """Print the page.

        Args:
          console: where to; by default standard output.
        """
        print_page(what_if_page(self), console or Console(highlight=False))

    def to_json(self) -> str:
        """The facts as JSON text, both plans in full."""
        plans = {
            "before": json.loads(to_json(self.before)),
            "after": json.loads(to_json(self.after)) if self.after else None,
        }
        return json.dumps({"changed": dict(self.changed), "refused": self.refused} | plans, indent=1)

    def __str__(self) -> str:
        return page_text(what_if_page(self), _WIDTH)


def options_of(plan: PlanFacts) -> Options:
    """The options that a plan shows: of a plan from a file, which says no more.

    The budget of memory, the time limit and whether the number of stages was asked for are not among its facts.
    """
    stages, workers = len(plan.stages), len({stage.devices for stage in plan.stages})
    chunked = plan.schedule in CHUNKED
    return Options(
        strategy=plan.strategy,
        hints=plan.hints,
        microbatches=plan.microbatches,
        per_microbatch=plan.per_microbatch,
        schedule=plan.schedule if plan.stages and plan.schedule != "inference" else "1f1b",
        stages=stages if chunked or stages == 1 else None,
        max_stages=max(stages, 1),
        stages_per_worker=stages // workers if chunked else 1,
    )


def explain(
    plan: PlanFacts,
    traced: Traced,
    asked: str,
    options: Options,
    *,
    most: int = 12,
    stage: int | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """Why a part of a plan's step lies as it does; see :meth:`autopar.Plan.explain`."""
    check_made_for(plan, traced)
    check_named(traced.step, [asked], "name")
    known, say = Sharing(traced), progress or (lambda _: None)
    if not plan.stages:
        written = known.written(plan.microbatches, per_microbatch=plan.per_microbatch)
        cluster = Cluster.from_dict(plan.cluster)
        return Explanation.of(explain_part(written.step, cluster, options, plan, asked, most=most, progress=say))
    found = next(((k, step) for k, step in _stages(plan, known) if stage in (None, k) and holds(step, asked)), None)
    if found is None:
        where = f"stage {stage} holds" if stage is not None else "no stage holds"
        raise OptionError(f"{where} nothing named {asked!r}, or nothing that its other ops read.")
    k, step = found
    facts = plan.stages[k].plan
    priced = dataclasses.replace(options, memory_price=plan.stages[k].memory_price)
    cluster = Cluster.from_dict(facts.cluster)
    explained = explain_part(
        step, cluster, priced, facts, asked, most=most, progress=say, stage=k, memory_bytes=math.inf
    )  # what a stage may take of a device depends on the micro-batches in flight: that is what memory's price is for
    return Explanation.of(explained)


def _stages(plan: PlanFacts, known: Sharing) -> Iterator[tuple[int, Step]]:
    """Each stage as the step that was planned."""
    staged = known.staged(plan.microbatches, plan.chunks, per_microbatch=plan.per_microbatch)
    begins = tuple(stage.begin for stage in plan.stages)
    for k in range(len(plan.stages)):
        yield k, staged.stage(begins, k)[0]


def what_if(
    plan: PlanFacts, traced: Traced, options: Options, changes: Mapping[str, Any], progress: Progress | None = None
) -> WhatIf:
    """The plan that other options would give; see :meth:`autopar.Plan.what_if`."""
    check_made_for(plan, traced)
    changes = dict(changes)
    target = changes.pop("cluster", None)
    cluster = Cluster.from_dict(plan.cluster) if target is None else target
    cluster = Cluster.parse(cluster) if isinstance(cluster, str) else cluster
    unknown = changes.keys() - {f.name for f in dataclasses.fields(Options)}
    if unknown:
        known = ", ".join(f.name for f in dataclasses.fields(Options))
        raise OptionError(f"there is no option {sorted(unknown)[0]!r}. Known: cluster, {known}.")
    if "stages" not in changes and "max_stages" in changes:
        changes["stages"] = None
    other = dataclasses.replace(options, **changes, hint_costs=False)
    words = {name: _words(getattr(other, name)) for name in changes if getattr(other, name) != getattr(options, name)}
    words |= {"cluster": cluster.name} if target is not None else {}
    try:
        after = search(traced, cluster, other, progress)
    except AutoparError as error:
        return WhatIf(words, plan, None, str(error))
    return WhatIf(words, plan, after)


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(str, value))})"
    return "any" if value is None else str(value)


def no_step(verb: str) -> PlanError:
    """The error that a plan from a file meets when it is asked about a step that it does not have."""
    return PlanError(
        f"a plan from a file does not hold its step, and plan.{verb} plans it again: pass it, as in "
        f"plan.{verb}(..., step=train_step, args=(state, batch)); on the command line: autopar explain PLAN.json "
        "--model gpt."
    )


def _finite(value: Any) -> Any:
    """Without infinities, which JSON does not know."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


__all__ = ["Explanation", "WhatIf", "explain", "no_step", "options_of", "what_if"]
