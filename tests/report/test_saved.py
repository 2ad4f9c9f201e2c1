"""The pages of large plans: two screens at most, whatever the depth, and every byte of a stage accounted for."""

import functools
import lzma
from pathlib import Path

import pytest

from autopar.plan import from_json
from autopar.report import plan_text, sentence
from autopar.report.common import workers
from autopar.report.memory import stage_memory

SAVED = Path(__file__).parent / "saved"
SCREEN = 50
LARGE = ("gpt-39b-v100", "gpt-39b-h100", "gpt-39b-one-mesh")
ALL = (*LARGE, *(f"gpt-{layers}-layers-{stages}-stages" for layers in (12, 96) for stages in (1, 4)))


@functools.cache
def saved(name):
    return from_json(lzma.decompress((SAVED / f"{name}.json.xz").read_bytes()).decode(), name)


@pytest.mark.parametrize("name", LARGE)
def test_gpt_39b_on_64_devices_takes_two_screens(name):
    lines = plan_text(saved(name)).splitlines()
    assert len(lines) <= 2 * SCREEN and max(map(len, lines)) <= 80


@pytest.mark.parametrize("stages", [1, 4])
def test_96_layers_take_no_more_lines_than_12(stages):
    shallow, deep = (plan_text(saved(f"gpt-{layers}-layers-{stages}-stages")).splitlines() for layers in (12, 96))
    assert len(deep) <= len(shallow) and max(map(len, deep)) <= 80


@pytest.mark.parametrize("name", ALL)
def test_every_byte_of_a_stage_is_of_some_kind(name):
    plan = saved(name)
    for stage in plan.stages:
        held = stage_memory(stage)
        assert sum(held.values()) == stage.peak_bytes and min(held.values()) >= 0
    if plan.stages:
        assert max(sum(plan.stages[s].peak_bytes for s in found) for found in workers(plan)) == plan.peak_bytes


def test_the_sentence_is_in_the_words_of_the_field():
    assert sentence(saved("gpt-39b-v100")) == "8-stage 1F1B, 1024 micro-batches, tensor parallel 8 in the host (x)"
    assert sentence(saved("gpt-39b-h100")).endswith(
        "; stages 2-4: data parallel 16 across hosts (x, y), tensor parallel 8 (y), FSDP (ZeRO-3) over 2 (x)"
    )


def test_layouts_are_in_words_and_layers_are_said_once():
    rows = [" ".join(line.split()) for line in plan_text(saved("gpt-39b-v100")).splitlines()]
    table = rows[next(i for i, row in enumerate(rows) if row.startswith("Parameters")) :]
    assert "layers[*].attn.wo x48 0-7 64x128x8192 by heads over x 672 MiB" in table
    assert "layers[*].attn.{wk, x144 0-7 8192x64x128 by heads over x 1.97 GiB" in table and "wq, wv}" in table
    assert "wte 7 51200x8192 by vocabulary over x 600 MiB" in table
