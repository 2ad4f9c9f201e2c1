"""The planner chooses the number of micro-batches and the schedule."""

import pytest

import autopar
from tests.api import pipelines


def planned(**asked):
    return autopar.plan(
        pipelines.step, pipelines.STATE, pipelines.X, pipelines.Y, cluster=pipelines.SLOW,
        options=autopar.Options(**asked),
    )  # fmt: skip


def test_it_takes_the_best_number_of_microbatches():
    found = planned(stages=2, microbatches="auto", schedule="auto")
    each = {m: planned(stages=2, microbatches=m, schedule="auto") for m in (1, 2, 4, 8, 16, 32)}
    assert found.step_s == min(p.step_s for p in each.values())
    assert found.microbatches == min(each, key=lambda m: each[m].step_s)
    assert found.microbatches in {m for m in each if m > 1}  # one micro-batch leaves a stage idle
    assert {r.microbatches for r in found.other_pipelines} - {found.microbatches}


def test_without_stages_too():
    found = planned(microbatches="auto")
    assert found.step_s <= planned(microbatches=1).step_s


def test_nothing_that_fits_is_the_last_reason():
    with pytest.raises(autopar.InfeasibleError, match="micro-batches in flight"):
        planned(stages=2, microbatches="auto", memory_bytes=100.0)


@pytest.mark.parametrize("count", [0, -2, "many", 2.5, True])
def test_other_numbers_are_refused(count):
    with pytest.raises(autopar.OptionError, match="microbatches"):
        autopar.Options(microbatches=count)
