"""Layouts forced, by a hint and by an explanation, cost what enumeration says."""

import math
import random

import pytest

from autopar.explain import explain_part
from autopar.mesh import Cluster
from autopar.planner import Hint, Options, plan_step
from autopar.sharding.words import layout_on
from tests.planner.graphs import exhaustive, random_step

BALANCED = Cluster.uniform(4, 1e3, 1e3, 0.5, 1e2)
SAME = {"rel": 1e-6, "abs": 1e-9}


@pytest.mark.parametrize("seed, shape", [(s, (4,)) for s in range(30)] + [(100 + s, (2, 2)) for s in range(12)])
def test_forced_layouts(seed, shape):
    step = random_step(random.Random(5000 + seed), 2 + seed % 3)
    graph, mesh = step.graph, BALANCED.mesh(shape)
    options = Options(mesh=shape, mip_gap=0.0)
    plan = plan_step(step, BALANCED, options)
    name = random.Random(seed).choice([graph.values[v].name for v in graph.inputs])
    (v,) = (v for v in graph.inputs if graph.values[v].name == name)
    found = explain_part(step, BALANCED, options, plan, name, most=4)
    best = []
    for a in found.alternatives:
        if a.by == "dims":
            continue
        layout = layout_on(a.words, len(graph.values[v].shape), mesh.names)
        best.append(exhaustive(step, BALANCED, mesh, {v: layout}))
        assert a.figures.step_s == pytest.approx(best[-1], **SAME), a.words
        hinted = plan_step(step, BALANCED, Options(mesh=shape, mip_gap=0.0, hints=[Hint.layout(name, a.words)]))
        assert hinted.step_s == pytest.approx(best[-1], **SAME)
        assert plan.step_s <= best[-1] * (1 + 1e-6) + 1e-9
    if not found.left_out:
        assert min(best) == pytest.approx(plan.step_s, **SAME)
    assert math.isinf(found.budget_bytes) or found.more is None
