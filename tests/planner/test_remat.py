"""Recomputation per unit: as little as fits, against trying every mix."""

import dataclasses
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar import Cluster, Options
from autopar.ir import ATTENTION, FULL, NONE, REMATS
from autopar.lower import StagedStep
from autopar.models import get
from autopar.planner import plan_stages
from autopar.planner.stages.cost import Span
from autopar.planner.stages.remat import Again, Rungs, least_again
from autopar.planner.stages.survey import Survey
from autopar.schedule import Flight
from autopar.trace import trace

ALONE, FOUR = (Flight(0),), (Flight(3),)
SLOW = Cluster.uniform(2, 1e9, 1e10, 1e-7, 1e10)


def ways(words):
    numbers = st.tuples(st.integers(1, 12), st.integers(0, 12))
    return st.tuples(*(st.none() | numbers.map(lambda n, w=w: Again(w, n[0], float(n[1]))) for w in words))


menus = ways(REMATS[1:]).map(lambda found: tuple(a for a in found if a is not None))
chains = st.lists(menus, min_size=1, max_size=5)


def cheapest(chain, need):
    """Seconds of the cheapest of all mixes that free enough; infinite if none does."""
    mixes = itertools.product(*([Again(NONE, 0, 0.0), *menu] for menu in chain))
    fitting = [mix for mix in mixes if sum(a.freed_bytes for a in mix) >= need]
    return min((sum(a.again_s for a in mix) for mix in fitting), default=math.inf)


@given(chains, st.integers(-1, 60))
def test_no_mix_that_fits_is_cheaper(chain, need):
    found = least_again(chain, need)
    if found is None:
        assert cheapest(chain, need) == math.inf
        return
    mix = [a for menu, word in zip(chain, found, strict=True) for a in menu if a.remat == word]
    assert len(mix) == sum(word != NONE for word in found)
    assert sum(a.freed_bytes for a in mix) >= need
    assert sum(a.again_s for a in mix) == cheapest(chain, need)


@given(chains, st.integers(1, 60), st.data())
def test_a_look_up_is_at_most_one_step_dearer_than_the_cheapest_mix(chain, need, data):
    rungs = Rungs.of(chain)
    first = data.draw(st.integers(0, len(chain) - 1))
    stop = data.draw(st.integers(first + 1, len(chain)))
    least = cheapest(chain[first:stop], need)
    found = rungs.least_s(first, stop, need)
    assert math.isinf(found) == math.isinf(least)
    if math.isfinite(least):
        assert least - 1e-9 <= found <= least + max(rungs.step_s) + 1e-9


@pytest.fixture(scope="module")
def staged():
    recipe = get("gpt", layers=2, hidden=32, heads=4, sequence=64, vocab=64, batch_size=8, dropout=0.0)
    return StagedStep(trace(recipe.step, recipe.abstract(), donate_argnums=0), 4)


@pytest.fixture(scope="module")
def whole(staged):
    """The step as one stage, planned as a whole, nothing computed again."""
    survey = Survey(staged, SLOW, Options(microbatches=4), SLOW.submeshes(powers=True))
    (found,) = survey.wholes((0,), [Span(0, len(staged.units), 0)], [ALONE], split_backward=False)
    return found


@pytest.mark.parametrize(("in_turn", "within"), [(False, 1e-9), (True, 1e-3)])
def test_a_planned_stage_computes_again_as_little_as_any_mix_of_its_units(whole, in_turn, within):
    # In turn, what is there at a time is that of the largest unit, and neighbours free more together than one by one:
    # the search goes by what they free one by one.
    whole = dataclasses.replace(whole, in_turn=in_turn)
    mixes = [whole.rematerialised(mix) for mix in itertools.product(REMATS, repeat=len(whole.remat))]
    assert whole.remat == (NONE,) * len(whole.remat)
    leanest = min(e.kept_bytes for e in mixes)
    for share in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        memory = whole.peak_bytes + 3 * (leanest + share * (whole.kept_bytes - leanest))
        found = whole.fitted(FOUR, memory)
        assert found.peak_with(FOUR) <= memory
        least = min(e.backward_s for e in mixes if e.peak_with(FOUR) <= memory)
        assert least <= found.backward_s * (1 + 1e-12) and found.backward_s <= least * (1 + within)
    assert whole.fitted(FOUR, min(e.peak_with(FOUR) for e in mixes) - 1) is None
    assert whole.fitted(ALONE, whole.peak_bytes) is whole


def test_units_together_free_at_least_what_they_free_one_by_one(whole):
    kept = whole.rematerialised(whole.remat).kept_bytes
    for mix in itertools.product(REMATS, repeat=len(whole.remat)):
        chosen = [a for menu, word in zip(whole.menus, mix, strict=True) for a in menu if a.remat == word]
        assert whole.rematerialised(mix).kept_bytes <= kept - sum(a.freed_bytes for a in chosen)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("remat", REMATS)
def test_what_the_search_goes_by_is_what_the_programs_do(whole, remat, split):
    found = whole.rematerialised([remat] * len(whole.remat))
    settled = found.settled(split_backward=split)
    assert settled.kept_bytes == pytest.approx(found.kept_bytes, rel=0.02)
    assert settled.backward_s == pytest.approx(found.backward_s, rel=0.02)
    assert settled.again_s == pytest.approx(found.again_s, rel=0.02)
    if split:  # of one stage there is no earlier one to hand gradients to: all is the weight program's
        assert settled.pending_bytes == pytest.approx(found.pending_bytes, rel=0.02)
        assert settled.weight_s == pytest.approx(found.weight_s + found.again_s, rel=0.02)


def test_attention_frees_what_grows_with_the_square_of_the_sequence(staged, whole):
    attending = [u for u, menu in enumerate(whole.menus) if any(a.remat == ATTENTION for a in menu)]
    assert len(attending) == 2  # layers; embedding, MLPs and loss have none
    for u in attending:
        found = {a.remat: a for a in whole.menus[u]}
        assert found[ATTENTION].freed_bytes >= 0.9 * 2 * 4 * 64 * 64 * 4  # 2 examples, 4 heads, float32
        if FULL in found:
            assert found[ATTENTION].again_s < found[FULL].again_s
    cores = staged.recomputable.cores
    names = [op.primitive for op in staged.timing.loop if op.id in cores]
    assert names.count("dot_general") == names.count("exp") == 2


def test_memory_that_binds_makes_a_mix_the_best(staged):
    def planned(remat, memory_bytes=None):
        options = Options(microbatches=4, stages=2, schedule="gpipe", remat=remat, memory_bytes=memory_bytes)
        return plan_stages(staged, SLOW, options)

    free, full = planned(NONE), planned(FULL)
    assert planned("auto").step_s == pytest.approx(free.step_s)
    assert not any(stage.remat for stage in free.stages)
    assert {word for stage in full.stages for word in stage.remat} == {FULL}
    memory = (free.peak_bytes + full.peak_bytes) / 2
    best = planned("auto", memory)
    assert best.peak_bytes <= memory < free.peak_bytes
    assert len({word for stage in best.stages for word in stage.remat}) > 1
    assert free.step_s < best.step_s < full.step_s
