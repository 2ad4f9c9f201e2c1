"""Both levels together: memory binds, schedules compete, equal stages are known by their digests."""

import itertools

import pytest

from autopar import Cluster, InfeasibleError, OptionError, Options
from autopar.lower import StagedStep
from autopar.models import get
from autopar.planner import plan_stages
from autopar.planner.search import AnyPrice, plan_step
from autopar.trace import trace

# Slow devices on fast links: it pays to split.
SLOW = Cluster.uniform(8, 1e9, 1e10, 1e-7, 1e10)
FOUR = Cluster.uniform(4, 1e9, 1e10, 1e-7, 1e10)


@pytest.fixture(scope="module")
def staged():
    recipe = get("gpt", layers=4, hidden=32, heads=4, sequence=16, vocab=64, batch_size=8, dropout=0.0)
    traced = trace(recipe.step, recipe.abstract(), donate_argnums=0)
    return StagedStep(traced, 4)


def planned(staged, cluster=SLOW, **asked):
    return plan_stages(staged, cluster, Options(microbatches=4, **asked))


def test_memory_binds_and_costs_time(staged):
    free = planned(staged, FOUR, max_stages=4)
    assert max(s.peak_bytes for s in free.stages) == free.peak_bytes
    seconds = [free.step_s]
    for share in (0.8, 0.6):
        lean = planned(staged, FOUR, max_stages=4, memory_bytes=share * free.peak_bytes)
        assert lean.peak_bytes <= share * free.peak_bytes
        seconds.append(lean.step_s)
    assert seconds == sorted(seconds) and seconds[-1] > seconds[0]
    with pytest.raises(InfeasibleError, match="micro-batches in flight"):
        planned(staged, FOUR, max_stages=4, memory_bytes=0.02 * free.peak_bytes)


def test_auto_takes_the_fastest_schedule(staged):
    found = planned(staged, stages=4, schedule="auto")
    named = {name: planned(staged, stages=4, schedule=name).step_s for name in ("1f1b", "gpipe", "zb-h1")}
    assert found.step_s == min(named.values()) and found.schedule == min(named, key=named.get)


@pytest.mark.parametrize("cluster", [SLOW, Cluster.parse("v100-16gb:2x4")], ids=["one level", "two hosts"])
def test_no_plan_of_equal_stages_is_faster(staged, cluster):
    found = planned(staged, cluster, max_stages=8)
    equal = {n: planned(staged, cluster, stages=n).step_s for n in (1, 2, 4, 8)}
    assert all(found.step_s <= step_s * (1 + 1e-9) for step_s in equal.values()), (found.step_s, equal)


def test_a_mesh_is_that_of_every_stage(staged):
    found = planned(staged, max_stages=8, mesh=(2,))
    assert {s.plan.mesh_shape for s in found.stages} == {(2,)} and len(found.stages) > 1
    with pytest.raises(OptionError, match="takes 3 devices, but a stage can have 1, 2, 4, 8"):
        planned(staged, max_stages=8, mesh=(3,))


def test_a_given_cut_is_planned_as_it_is(staged):
    options = Options(microbatches=4, mesh=(1,), max_stages=4)
    units = len(staged.units)
    cut = [(1, 1), (2, 1), (1, 1), (units - 4, 1)]
    found = plan_stages(staged, FOUR, options, cut=cut)
    assert [(s.units[1] - s.units[0], s.devices[1] - s.devices[0]) for s in found.stages] == cut
    assert plan_stages(staged, FOUR, options).step_s < found.step_s
    for wrong in ([(units, 3)], [(units - 1, 1)], [(1, 4), (units - 1, 1)], []):
        with pytest.raises(OptionError, match="a stage can have 1, 2, 4 of them"):
            plan_stages(staged, FOUR, Options(microbatches=4, max_stages=4), cut=wrong)


def test_equal_stages_are_planned_once_and_have_arguments_of_their_own(staged):
    found = planned(staged, stages=4)
    graph = staged.step.graph
    shapes = {graph.values[v].name: graph.values[v].shape for v in graph.inputs}
    kept = [{a.name: a.shape for a in s.plan.arguments if a.kind in ("parameter", "optimizer")} for s in found.stages]
    assert all(names.items() <= shapes.items() for names in kept)
    twice = [name for name in shapes if sum(name in names for names in kept) > 1]
    assert twice and all("['wte']" in name for name in twice)  # tied
    assert set().union(*kept) == {name for name in shapes if "params" in name or "mu" in name or "nu" in name}
    assert [s.plan.name[-7:] for s in found.stages] == [f"stage {s}" for s in range(4)]


def test_stages_of_equal_digest_are_the_same_step(staged):
    begins = tuple(u.begin for u in staged.units)
    kinds = {}
    for index in range(len(begins)):
        step, _ = staged.stage(begins, index)
        kinds.setdefault(staged.like(begins, index), set()).add(step.graph.fingerprint)
    assert len(kinds) < len(begins)  # layers repeat
    assert all(len(prints) == 1 for prints in kinds.values())
    for a, b in itertools.combinations(kinds.values(), 2):
        assert not a & b


def test_a_stage_holds_one_microbatch_of_what_it_gets_and_gives(staged):
    begins = (0, staged.units[2].begin, staged.units[3].begin)
    step, info = staged.stage(begins, 1)
    whole = staged.step.graph.values
    inputs = step.graph.inputs[len(info.section.whole) :]
    outputs = step.graph.outputs[len(info.section.wholes_out) :]
    assert info.section.parts and info.section.parts_out
    for mine, theirs in ((inputs, info.section.parts), (outputs, info.section.parts_out)):
        for v, w in zip(mine, theirs, strict=True):
            assert step.graph.values[v].nbytes * 4 == whole[w].nbytes


def test_a_price_on_memory_trades_time_for_bytes():
    recipe = get("mlp", batch_size=64)
    step = trace(recipe.step, recipe.abstract(), donate_argnums=0).step
    cluster, options = Cluster.parse("h100:4"), Options(mesh=(4,), mip_gap=0.0)
    program = AnyPrice(step, cluster, options)
    plans = [program.plan(price).facts for price in (0.0, 1e-3, 1.0, 1e3)]
    assert plans[0].step_s == pytest.approx(plan_step(step, cluster, options).step_s, rel=1e-9)
    seconds, held = [p.step_s for p in plans], [p.peak_bytes for p in plans]
    assert seconds == sorted(seconds) and seconds[-1] > seconds[0]
    assert held == sorted(held, reverse=True) and held[-1] < held[0]
    again = AnyPrice(step, cluster, options).plan(1e3).facts
    assert again.step_s == pytest.approx(seconds[-1], rel=1e-9)  # whatever was solved before


@pytest.mark.parametrize("price", [-1.0, float("inf"), "much"])
def test_a_price_is_a_number(price):
    with pytest.raises(OptionError, match="memory_price"):
        Options(memory_price=price)


def test_gathered_parameters_count_while_the_loop_reads_them():
    """A copy that is made before the loop and read in it is held all the while, so a price on memory drives it out."""
    recipe = get("gpt", layers=2, hidden=256, heads=4, sequence=16, vocab=64, batch_size=64, dropout=0.0)
    unit = StagedStep(trace(recipe.step, recipe.abstract(), donate_argnums=0), 16)
    step, _ = unit.stage((0, unit.units[1].begin), 1)
    cluster = Cluster.uniform(4, 1e12, 1e11, 1e-6, 1e9)
    free, lean = map(AnyPrice(step, cluster, Options(mesh=(4,))).plan, (0.0, 1e4))
    assert lean.facts.peak_bytes < free.facts.peak_bytes
