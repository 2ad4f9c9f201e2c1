"""Instruction lists are right by construction, and the checker finds every way to break them."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopar.errors import InternalError
from autopar.runtime import Transfer
from autopar.runtime.check import check_instructions
from autopar.runtime.instructions import Copy, Free, Recv, Run, Send, instructions
from tests.runtime import toys


@st.composite
def pipelines(draw):
    stages = draw(st.integers(1, 5))
    workers = draw(st.sampled_from([w for w in range(1, stages + 1) if stages % w == 0]))
    order = toys.schedule(
        stages,
        draw(st.integers(1, 5)),
        workers=workers,
        weight=draw(st.booleans()),
        seed=draw(st.none() | st.integers(0, 1000)),
    )
    return toys.chain(order)


@settings(max_examples=60, deadline=None)
@given(pipelines())
def test_every_list_passes(pipeline):
    lists = instructions(pipeline)
    order = check_instructions(pipeline, lists)
    assert [[i for w, i in order if w == worker] for worker in range(len(lists))] == [list(code) for code in lists]
    programs = [(i.stage, i.program, i.microbatch) for code in lists for i in code if isinstance(i, Run)]
    assert len(set(programs)) == len(programs)
    once = sum(name not in ("forward", "backward", "weight") for s in pipeline.stages for name in s.programs)
    assert len(programs) == once + sum(map(len, pipeline.schedule.workers))
    for worker, code in enumerate(lists):
        assert not any(isinstance(i, Send) and i.worker == worker for i in code)


@settings(max_examples=60, deadline=None)
@given(pipelines(), st.data())
def test_no_instruction_can_be_left_out(pipeline, data):
    lists = instructions(pipeline)
    worker = data.draw(st.integers(0, len(lists) - 1))
    at = data.draw(st.integers(0, len(lists[worker]) - 1))
    broken = list(lists)
    broken[worker] = lists[worker][:at] + lists[worker][at + 1 :]
    with pytest.raises(InternalError, match="worker"):
        check_instructions(pipeline, broken)


def lists_of(order):
    pipeline = toys.chain(order)
    return pipeline, [list(code) for code in instructions(pipeline)]


def position(code, kind, **attributes):
    return next(
        n
        for n, i in enumerate(code)
        if isinstance(i, kind) and all(getattr(i, name) == value for name, value in attributes.items())
    )


def test_sends_follow_writers_and_receives_precede_readers():
    _, (first, second) = lists_of(toys.schedule(2, 2))
    assert isinstance(first[position(first, Send)], Send)
    at = position(first, Send)
    assert isinstance(first[at - 1], Run) and first[at].source in first[at - 1].outputs
    at = position(second, Recv)
    assert isinstance(second[at + 1], Run) and second[at].target in second[at + 1].inputs


def test_stages_of_one_worker_need_no_messages():
    pipeline, (code,) = lists_of(toys.schedule(3, 2, workers=1))
    assert not any(isinstance(i, Send | Recv) for i in code)
    assert sum(isinstance(i, Copy) for i in code) == 2 * 2 * 2 + 6  # activations, gradients, squares
    check_instructions(pipeline, [code])


def test_updates_run_in_rounds():
    _, (code,) = lists_of(toys.schedule(2, 1, workers=1))
    names = [(i.program, i.stage) for i in code if isinstance(i, Run) and i.program.startswith("update")]
    assert names == [("update.0", 0), ("update.0", 1), ("update.1", 0), ("update.1", 1)]


def test_an_update_reads_every_microbatch():
    _, (_, code) = lists_of(toys.schedule(2, 3))
    update = code[position(code, Run, program="update.0")]
    assert [r.microbatch for r in update.inputs if r.buffer == "loss"] == [0, 1, 2]


def broken_by_use_after_free(lists):
    run = next(n for n, i in enumerate(lists[0]) if isinstance(i, Run) and i.program == "backward")
    lists[0].insert(run, Free((lists[0][run].inputs[1],)))


def broken_by_waiting_for_each_other(lists):
    for code in lists:
        receive = code.pop(position(code, Recv))
        code.insert(0, receive)


def broken_by_two_sends(lists):
    at = position(lists[0], Send)
    lists[0].insert(at, lists[0][at])


def broken_by_a_mislabelled_receive(lists):
    at = position(lists[1], Recv)
    lists[1][at] = dataclasses.replace(lists[1][at], worker=1)


def broken_by_freeing_state(lists):
    state = next(r for i in lists[0] if isinstance(i, Run) for r in i.inputs if r.buffer == "w")
    lists[0].append(Free((state,)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken_by_use_after_free, r"worker 0, 'run backward .*gone after 'free"),
        (broken_by_waiting_for_each_other, "wait for each other.*worker 0 waits in 'receive.*worker 1 waits in"),
        (broken_by_two_sends, "worker 0, 'send.*sent before"),
        (broken_by_a_mislabelled_receive, "worker 1, 'receive.*was sent .* by worker 0"),
        (broken_by_freeing_state, "worker 0 ends the step without 0:w"),
    ],
)
def test_broken_lists_are_refused(damage, message):
    pipeline, lists = lists_of(toys.schedule(2, 2))
    damage(lists)
    with pytest.raises(InternalError, match=message):
        check_instructions(pipeline, lists)


@pytest.mark.parametrize(
    ("transfer", "message"),
    [
        (Transfer(0, "w", 1, "w"), "moves state"),
        (Transfer(0, "x", 1, "w"), "unlike buffers"),
        (Transfer(1, "x", 0, "x"), "forwards a received buffer"),
        (Transfer(0, "acc", 1, "mean"), "unlike buffers"),
        (Transfer(0, "square", 1, "norm"), "which no program of its stage reads"),
        (Transfer(0, "mean", 1, "norm"), "which no program of its stage (writes|reads)"),
    ],
)
def test_contradictory_transfers_are_refused(transfer, message):
    pipeline = toys.chain(toys.schedule(2, 2))
    with pytest.raises(InternalError, match=message):
        instructions(dataclasses.replace(pipeline, transfers=(*pipeline.transfers, transfer)))
