"""Stacked layers on a pipeline: a step in chunks, cut over time and into stages, computes what plain jax computes."""

import jax
import numpy as np
import pytest

from autopar.lower import cut_parts, unstacked
from tests.lower.stacked import CASES, leaves, run_plain, worst_error
from tests.lower.staged import cut_before_scans, stage_runtime

LAYERS, MICROBATCHES, STEPS = 4, 4, 2


@pytest.mark.parametrize(
    ("name", "chunks", "stages", "schedule"),
    [
        ("checkpoint", 2, 2, "1f1b"),
        ("linen", 2, 2, "gpipe"),
        ("shared", 4, 4, "1f1b"),
        ("orthogonal", 4, 2, "zb-h1"),
    ],
)
def test_on_stages(name, chunks, stages, schedule):
    case = CASES[name](LAYERS)
    found = unstacked(case.traced, chunks)
    cut = cut_before_scans(found.traced, stages, MICROBATCHES)
    runtime, pipeline = stage_runtime(found.traced, cut, MICROBATCHES, schedule)
    runtime.load_state(cut_parts(found.inputs, leaves(case, 0)))
    flat = [cut_parts(found.inputs, leaves(case, i)) for i in range(STEPS)]
    metrics = [runtime.step([np.asarray(x) for x in arrays]) for arrays in flat]
    state, expected = run_plain(case, STEPS)
    for found_metrics, wanted in zip(metrics, expected, strict=True):
        compare(found, found_metrics, (state, wanted))
    compare(found, runtime.fetch_state(), (state, expected[-1]))
    # Each stage keeps its own layers alone, with all that the optimizer knows of them.
    ranges = {stage: set() for stage in range(stages)}
    for keep in pipeline.keeps:
        part = found.inputs[keep.argument]
        if part.start is not None:
            ranges[keep.stage].add((part.start, part.stop))
    each, size = chunks // stages, LAYERS // chunks
    assert ranges == {
        s: {(k * size, (k + 1) * size) for k in range(s * each, (s + 1) * each)} for s in range(stages)
    }  # fmt: skip


def compare(found, by_output, expected):
    wanted = cut_parts(found.outputs, jax.tree.leaves(expected))
    assert max(worst_error(x, wanted[o]) for o, x in by_output.items()) <= 1e-9
