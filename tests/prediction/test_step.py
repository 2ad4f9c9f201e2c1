"""A step against closed forms: bubbles, activations, ZeRO, rings; and laws that any step obeys."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopar import Cluster
from autopar.errors import ClusterError, OptionError
from autopar.mesh import AxisLinks, Crossing
from autopar.prediction import Block, Chain, Op, Parallel, Sizes, predict_memory, predict_step
from autopar.prediction.rates import Wiring
from autopar.prediction.setting import Setting
from autopar.prediction.transformer import transformer
from autopar.sharding.layout import Collective
from autopar.sizing import predict

GPT = Sizes(hidden=1024, layers=8, heads=16, sequence=512, vocab=8192, dropout=True)
FREE = Cluster.uniform(16, 1e12, 1e12, 0.0, 1e30)


def chain(blocks: int) -> Chain:
    """Equal blocks that only compute."""
    return Chain("chain", (Block("block", (Op(1e12, 0.0),), 0.0, 0.0),) * blocks, dtype="float32")


@pytest.mark.parametrize(("stages", "many"), [(2, 1), (4, 4), (8, 3), (16, 64)])
@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_bubble(stages, many, schedule):
    """(p - 1) / (m + p - 1) of the step: Huang et al. 2018, Narayanan et al. 2021."""
    cluster = replace(FREE, levels=(replace(FREE.levels[0], size=stages),))
    asked = Parallel(pipeline=stages, global_batch=many, schedule=schedule)
    assert predict_step(chain(stages), cluster, asked).bubble == pytest.approx((stages - 1) / (many + stages - 1))


def test_interleaving_divides_the_bubble():
    cluster = replace(FREE, levels=(replace(FREE.levels[0], size=4),))
    plain = predict_step(chain(16), cluster, Parallel(pipeline=4, global_batch=8))
    chunks = predict_step(chain(16), cluster, Parallel(pipeline=4, global_batch=8, interleave=4))
    assert chunks.seconds["bubble"] == pytest.approx(plain.seconds["bubble"] / 4)


def test_gpipe_computes_again_while_it_waits():
    """One micro-batch through p equal stages: forward 1, then only the last stage computes again, backward 2."""
    cluster = replace(FREE, levels=(replace(FREE.levels[0], size=4),))
    model = replace(chain(4), blocks=(*chain(4).blocks[:3], Block("last", (Op(1e12, 0.0),), 0.0, 0.0)))
    late = predict_step(model, cluster, Parallel(pipeline=4, global_batch=1, remat="full"))
    early = predict_step(model, cluster, Parallel(pipeline=4, global_batch=1, remat="full", schedule="gpipe"))
    # The last unit is not computed again: 4 forward, 8 backward, and three stages again or none.
    assert late.step_s == pytest.approx(15.0)
    assert early.step_s == pytest.approx(12.0)


@pytest.mark.parametrize("tensor", [1, 8])
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("remat", ["none", "selective", "full"])
def test_activations_of_a_layer(tensor, sequence_parallel, remat):
    """Korthikanti et al. 2022, table 2: bytes of one layer, s b h (...)."""
    if sequence_parallel and tensor == 1:
        pytest.skip("sequence parallelism is over the devices of tensor parallelism")
    s, b, h, a = GPT.sequence, 2, GPT.hidden, GPT.heads
    scores = 5 * a * s / h
    whole = {
        ("none", False): 10 + 24 / tensor + scores / tensor,
        ("none", True): (34 + scores) / tensor,
        ("selective", False): 10 + 24 / tensor,
        ("selective", True): 34 / tensor,
        ("full", False): 2,
        ("full", True): 2 / tensor,
    }[remat, sequence_parallel]
    cluster = Cluster.parse(f"a100-80gb:{tensor}")
    asked = Parallel(tensor=tensor, sequence_parallel=sequence_parallel, remat=remat, microbatch_size=b, global_batch=b)
    held = predict_memory(GPT, cluster, asked)
    assert held.activations == pytest.approx(GPT.layers * s * b * h * whole)


@pytest.mark.parametrize(("zero", "per_parameter"), [(0, 16), (1, 4 + 12 / 8), (2, 2 + 14 / 8), (3, 16 / 8)])
def test_state_of_zero(zero, per_parameter):
    """Rajbhandari et al. 2020, figure 1: 16 bytes with Adam in mixed precision; under ZeRO-3 two layers are whole."""
    held = predict_memory(GPT, Cluster.parse("a100-80gb:8"), Parallel(data=8, global_batch=8, zero=zero))
    parameters = sum(unit.parameters for unit in transformer(GPT, Setting()))
    whole = 2 * 2 * max(unit.parameters for unit in transformer(GPT, Setting())) if zero == 3 else 0
    state = held.parameters + held.gradients + held.moments
    assert state == pytest.approx(per_parameter * parameters + whole)


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_parameters_are_divided(tensor):
    """Each device of a group holds its part of every matrix, and all of the positions."""
    units = transformer(replace(GPT, positions=512), Setting(tensor=tensor))
    assert sum(unit.parameters for unit in units) == pytest.approx(
        # The output layer is a second reader of the embedding, which it holds too where it is on a stage of its own.
        (replace(GPT, tied=False).parameters) / tensor + 512 * GPT.hidden
    )


def ring_by_hand(devices: int, per_host: int, inner: float, outer: float, nbytes: float) -> float:
    """All-reduce of a ring that visits host after host: 2 (n - 1) steps, each as slow as its slowest hop.

    Between hosts, as many rings run as a host has devices, each with its part of the bytes and of the network.
    """
    part = nbytes / devices
    across = part / (per_host * outer) if devices > per_host else 0.0
    return 2 * (devices - 1) * max(part / inner, across)


@pytest.mark.parametrize(("hosts", "per_host"), [(1, 8), (2, 8), (4, 4)])
def test_rings_across_hosts(hosts, per_host):
    levels = [Crossing(per_host, 0.0, 300e9)] + ([Crossing(hosts, 0.0, 25e9)] if hosts > 1 else [])
    axis, wiring = AxisLinks(hosts * per_host, tuple(levels)), Wiring(Cluster.parse("a100-80gb:4x8"), 1.0)
    expected = ring_by_hand(hosts * per_host, per_host, 300e9, 25e9, 1e9)
    assert wiring.seconds(Collective.ALL_REDUCE, axis, 1e9) == pytest.approx(expected)


def test_pairs_of_v100s_have_two_of_six_links():
    cluster = Cluster.parse("v100-16gb:8")
    whole, pair = (cluster.mesh((8 // n, n)).axes[1] for n in (8, 2))
    wiring = Wiring(cluster, 1.0)
    latency = cluster.levels[0].latency_s
    ratio = (wiring.seconds(Collective.ALL_GATHER, pair, 1e9) - latency) / (
        wiring.seconds(Collective.ALL_GATHER, whole, 1e9) - latency
    )
    assert ratio == pytest.approx((1 / 2) / (7 / 8) * 3)


def test_a_stage_alone_on_a_host_boundary_has_the_network_card():
    wiring = Wiring(Cluster.parse("v100-16gb:2x8"), 1.0)
    alone = wiring.transfer_s(range(7, 8), range(8, 9), 1e9)
    host = wiring.transfer_s(range(8), range(8, 16), 1e9)
    assert host - alone == pytest.approx(1e9 / (25e9 / 8 / 8) - 1e9 / (25e9 / 8))


parallels = st.builds(
    lambda t, p, d, m, remat, sp, zero, v: Parallel(
        tensor=t,
        pipeline=p,
        data=d,
        microbatch_size=2,
        global_batch=2 * d * m * p,
        remat=remat,
        sequence_parallel=sp and t > 1,
        zero=zero,
        interleave=v if p > 1 else 1,
    ),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 8]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from(["none", "selective", "full"]),
    st.booleans(),
    st.sampled_from([0, 1, 2, 3]),
    st.sampled_from([1, 2]),
)


@settings(deadline=None)  # other work on the machine
@given(parallels, st.sampled_from(["a100-80gb", "v100-16gb", "tpu-v3", "h100", "tpu-v5e"]))
def test_laws(asked, device):
    many = asked.tensor * asked.pipeline * asked.data
    cluster = Cluster.parse(f"{device}:{many}" if many <= 8 or device.startswith("tpu") else f"{device}:{many // 8}x8")
    found = predict_step(GPT, cluster, asked)
    # Every second has a cause.
    assert sum(found.seconds.values()) == pytest.approx(found.step_s)
    assert all(seconds >= 0 for seconds in found.seconds.values()) and math.isfinite(found.step_s)
    assert 0 < found.mfu <= found.hfu < 1 and 0 <= found.bubble < 1
    # Nothing is faster than the data sheet: the model's matrix products at the peak, on all devices.
    flops = 3 * GPT.flops_per_example() * asked.global_batch
    flash = 1 - 0.5 * 4 * GPT.sequence * GPT.hidden * GPT.layers * GPT.sequence / GPT.flops_per_example()
    assert found.step_s >= flops * flash / many / cluster.device.peak("float16" if "v100" in device else "bfloat16")
    # Twice the share of the data sheet is not slower, and at most twice as fast.
    slow = predict_step(GPT, cluster, asked, efficiency=0.4)
    fast = predict_step(GPT, cluster, asked, efficiency=0.8)
    assert fast.step_s < slow.step_s <= 2 * fast.step_s * (1 + 1e-9)
    # Computing again takes time and gives memory back.
    kept = replace(asked, remat="none")
    assert found.step_s >= predict_step(GPT, cluster, kept).step_s * (1 - 1e-9)
    assert found.held.activations <= predict_memory(GPT, cluster, kept).activations
    # Sharding more holds no more, but for the two layers that are whole at a time.
    less = predict_memory(GPT, cluster, replace(asked, zero=max(0, asked.zero - 1)))
    whole = 4 * max(GPT.ffn_parameters, GPT.vocab * GPT.hidden)
    assert found.peak_bytes <= less.peak_bytes + whole + 1


def test_more_micro_batches_hide_the_bubble():
    cluster, bubbles = Cluster.parse("a100-80gb:8"), []
    for many in (8, 16, 32, 64):
        bubbles.append(predict_step(GPT, cluster, Parallel(pipeline=8, global_batch=many)).bubble)
    assert bubbles == sorted(bubbles, reverse=True)


def test_a_balanced_cut_is_not_slower():
    """A large output layer makes the last stage slow, unless it has fewer layers."""
    model, cluster = replace(GPT, vocab=65_536), Cluster.parse("a100-80gb:4")
    even, balanced = (
        predict_step(model, cluster, Parallel(pipeline=4, global_batch=16, split=split)).step_s
        for split in ("even", "balanced")
    )
    assert balanced < 0.9 * even


def test_stages_of_given_numbers_of_layers():
    cluster = replace(FREE, levels=(replace(FREE.levels[0], size=3),))
    found = predict_step(chain(12), cluster, Parallel(pipeline=3, global_batch=1000, split=(2, 7, 3)))
    # The slowest stage decides: 7 blocks of 3 seconds for each micro-batch.
    assert found.step_s == pytest.approx(1000 * 7 * 3, rel=0.01)
    even = predict_step(chain(12), cluster, Parallel(pipeline=3, global_batch=1000, split=(4, 4, 4)))
    assert even.step_s == predict_step(chain(12), cluster, Parallel(pipeline=3, global_batch=1000)).step_s


def test_an_all_to_all_on_a_torus_starts_a_message_to_each():
    """Pairwise exchange: (p - 1) a + n b (Thakur et al. 2005)."""
    cluster = Cluster.parse("tpu-v3:512")
    axis, wiring = cluster.mesh((512,)).axes[0], Wiring(cluster, 1.0)
    nothing = wiring.seconds(Collective.ALL_TO_ALL, axis, 0.0)
    assert nothing == pytest.approx(511 * cluster.levels[0].latency_s)
    gathered = wiring.seconds(Collective.ALL_GATHER, axis, 0.0)
    assert gathered == pytest.approx(cluster.levels[0].latency_s)


def test_sixteen_bits_are_those_that_the_device_has():
    half, brain = (
        predict_step(replace(GPT, dtype=d), Cluster.parse("v100-16gb:1"), Parallel()) for d in ("float16", "bfloat16")
    )
    assert half.step_s == brain.step_s


def test_experts_among_replicas_or_beside_them():
    """Both ways to count devices are the same step."""
    args = {"remat": "full", "microbatch_size": 1, "global_batch": 512}
    among = predict("gshard:50b", "tpu-v3:512", data=512, expert=512, **args)
    beside = predict("gshard:50b", "tpu-v3:512", data=1, expert=512, **args)
    assert among.step_s == beside.step_s


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"tensor": 3}, ClusterError, "is 3 devices, and the cluster has 8"),
        ({"data": 2}, ClusterError, "data=8 would fit"),
        (
            {"data": 8, "global_batch": 12},
            OptionError,
            "does not divide into micro-batches of 1 on each of 8 replicas; 16",
        ),
        ({"data": 8, "microbatch_size": 0}, OptionError, "microbatch_size=0"),
        ({"tensor": True, "data": 8}, OptionError, "tensor=True"),
        ({"pipeline": 8, "interleave": 9, "global_batch": 8}, OptionError, "48 layers do not divide among"),
        (
            {"pipeline": 8, "split": (6, 42)},
            OptionError,
            "48 layers to 2 stages; there are 48 layers and 8",
        ),
        ({"pipeline": 8, "split": (48, 0)}, OptionError, "nor the layers of each stage"),
        ({"pipeline": 8, "schedule": "1f1c"}, OptionError, "did you mean '1f1b'"),
        ({"pipeline": 8, "schedule": "inference"}, OptionError, "unknown schedule 'inference'"),
        ({"pipeline": 8, "schedule": "gpipe", "interleave": 2}, OptionError, "puts one stage on a device"),
        ({"data": 8, "remat": "ful"}, OptionError, "did you mean 'full'"),
        ({"data": 8, "zero": 4}, OptionError, "no stage of ZeRO"),
        ({"data": 8, "zero": 1, "shard": 3}, OptionError, "shard=3"),
        ({"data": 8, "shard": 8}, OptionError, "zero=0"),
        ({"data": 8, "expert": 2}, OptionError, "0 experts do not divide"),
        ({"data": 8, "attention": "flsh"}, OptionError, "did you mean 'flash'"),
        ({"data": 8, "gradients": "int8"}, OptionError, "unknown gradients"),
        ({"data": 8, "efficiency": 2.0}, OptionError, "efficiency=2.0"),
        ({"data": 8, "efficiency": "most"}, OptionError, "efficiency='most'"),
        ({"data": 8, "zero": True}, OptionError, "zero=True"),
        ({"data": 8, "zero": 1, "shard": 2.0}, OptionError, "shard=2.0"),
        ({"data": 8, "split": 3}, OptionError, "split=3 is neither even"),
        ({"tensor": 16}, ClusterError, "no data= fits, for tensor x pipeline = 16 does not divide 8"),
        ({"data": 8, "sequense": 2}, OptionError, "did you mean 'sequence'"),
    ],
)
def test_bad_input(asked, error, words):
    with pytest.raises(error, match=words):
        predict("gpt:39b", "a100-80gb:8", **{"global_batch": 8, **asked})


def test_bad_models_and_clusters():
    with pytest.raises(ClusterError, match="no device is called 'a1000'"):
        predict("gpt:39b", "a1000:8", data=8)
    with pytest.raises(ClusterError, match="for equal devices"):
        predict("gpt:39b", "a100-80gb:8+h100:8", data=16)
    with pytest.raises(OptionError, match="64 heads do not divide among tensor=3"):
        predict("gpt:39b", "a100-80gb:3", tensor=3)
    with pytest.raises(OptionError, match="sizes sequence, vocab are missing"):
        predict({"hidden": 64, "layers": 2, "heads": 8}, "a100-80gb:8", data=8, global_batch=8)
    with pytest.raises(OptionError, match="unknown size 'widht'"):
        predict({"widht": 64}, "a100-80gb:8", data=8, global_batch=8)
    with pytest.raises(OptionError, match="a mapping of sizes, a Sizes or a Chain, not 7"):
        predict(7, "a100-80gb:8", data=8, global_batch=8)
    with pytest.raises(OptionError, match="give global_batch"):
        predict(GPT, "a100-80gb:8", data=8)
    with pytest.raises(OptionError, match="chain of blocks"):
        predict("amoebanet:18-256", "tpu-v3:4", tensor=4)
    with pytest.raises(OptionError, match="beside a model that has all"):
        predict(GPT, "a100-80gb:8", data=8, global_batch=8, layers=3)
