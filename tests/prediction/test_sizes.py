"""Sizes against the zoo itself: parameters that are made, FLOPs that are traced."""

import pytest

from autopar import Cluster
from autopar.errors import OptionError
from autopar.models import get
from autopar.prediction import Block, Chain, Op, Parallel, Sizes, predict_memory
from autopar.sizing import sizes_of

TRANSFORMERS = (
    "gpt:toy",
    "gpt:39b",
    "gspmd-dense:128b",
    "llama:toy",
    "llama:8b",
    "palm:toy",
    "palm:540b",
    "gshard:600b",
    "glam:1.2t",
    "moe:70b",
    "transformer-l:48",
    "transformer-l-translation:24-8192-16",
)


@pytest.mark.parametrize("name", [*TRANSFORMERS, "amoebanet:18-256", "amoebanet:18-208"])
def test_parameters(name):
    """Biases, norms and statistics are left out, which toys notice."""
    sizes, batch = sizes_of(name)
    recipe = get(name)
    assert sizes.parameters == pytest.approx(recipe.parameter_count(), rel=0.05 if "toy" in name else 0.005)
    assert batch == recipe.config.batch_size


@pytest.mark.parametrize(
    "name", ["gpt:toy", "gpt:350m", "llama:toy", "palm:toy", "amoebanet:18-256", "amoebanet:18-208"]
)
def test_flops_are_those_of_the_traced_model(name):
    sizes, batch = sizes_of(name)
    assert 3 * sizes.flops_per_example() * batch == pytest.approx(get(name).flops(), rel=1e-12)


def test_flops_of_the_papers():
    """Narayanan et al. 2021, equation 3, without what is computed again."""
    h, layers, seq, vocab = 8192, 48, 2048, 51_200
    sizes = Sizes(hidden=h, layers=layers, heads=64, sequence=seq, vocab=vocab)
    paper = 72 * seq * layers * h**2 * (1 + seq / (6 * h) + vocab / (12 * layers * h))
    assert 3 * sizes.flops_per_example() == pytest.approx(paper, rel=1e-12)


def test_active_parameters():
    for name in ("gshard:600b", "glam:1.2t", "moe:70b"):
        sizes, _ = sizes_of(name)
        assert sizes.active_parameters == pytest.approx(get(name).active_parameter_count(), rel=0.005)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"heads": 7}, "does not divide among 7 heads"),
        ({"kv_heads": 3}, "do not divide among 3 heads of keys"),
        ({"layers": 0}, "layers is 0; it must be 1 or more"),
        ({"hidden": "64"}, "hidden is '64'; it must be a whole number"),
        ({"hidden": 64.0}, "hidden is 64.0; it must be a whole number"),
        ({"capacity_factor": 0}, "capacity_factor is 0"),
        ({"encoder_layers": 2}, "leave some to the decoder"),
        ({"experts": 4, "choices": 5}, "sent to 5 of 4 experts"),
        ({"dtype": "int4"}, "unknown dtype 'int4'"),
        ({"optimizer": "sgd"}, "unknown optimizer 'sgd'"),
    ],
)
def test_sizes_of_no_model(changed, words):
    with pytest.raises(OptionError, match=words):
        Sizes(**{"hidden": 64, "layers": 2, "heads": 8, "sequence": 32, "vocab": 256, **changed})


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("gtp:39b", {}, "did you mean 'gpt'"),
        ("gpt:38b", {}, "did you mean '39b'"),
        ("gpt:39b", {"sequense": 1}, "did you mean 'sequence'"),
        ("gpt:39b", {"heads": 7}, "must be a multiple of heads"),
        ("conformer:toy", {}, "neither a plain transformer nor a chain"),
        ("gshard:37b", {"source": 512}, "one length for both sides"),
        ("moe:toy", {"shared_experts": 1}, "shared_experts=1"),
    ],
)
def test_names_of_no_sizes(name, changed, words):
    with pytest.raises(OptionError, match=words):
        sizes_of(name, **changed)


@pytest.mark.parametrize(
    ("blocks", "changed", "words"),
    [
        ((), {}, "at least one block"),
        ((Block("idle", (), 0.0, 0.0),), {}, "block 'idle' needs kernels"),
        ((Block("less", (Op(-1.0, 1.0),), 0.0, 0.0),), {}, "no less than 0"),
        ((Block("one", (Op(1.0, 1.0),), 0.0, 0.0),), {"dtype": "int8"}, "unknown dtype 'int8'"),
        ((Block("one", (Op(1.0, 1.0),), 0.0, 0.0),), {"optimizer": "sgd"}, "unknown optimizer 'sgd'"),
    ],
)
def test_chains_of_no_model(blocks, changed, words):
    with pytest.raises(OptionError, match=words):
        Chain("chain", blocks, **changed)


def test_flops_that_are_computed_again():
    """Narayanan et al. 2021, equation 3, counts four passes of layers and three of the output layer."""
    h, layers, seq, vocab = 8192, 48, 2048, 51_200
    sizes = Sizes(hidden=h, layers=layers, heads=64, sequence=seq, vocab=vocab)
    paper = 96 * seq * layers * h**2 * (1 + seq / (6 * h) + vocab / (16 * layers * h))
    assert 3 * sizes.flops_per_example() + sizes.again_flops_per_example("full") == pytest.approx(paper, rel=1e-12)
    # Korthikanti et al. 2022, equation 9: selective recomputation adds 4 s h of attention per token and layer.
    assert sizes.again_flops_per_example("selective") == pytest.approx(4 * seq**2 * h * layers, rel=1e-12)
    assert sizes.again_flops_per_example("none") == 0


def test_what_a_convolutional_network_keeps():
    """Huang et al. 2019, table 1: 6.26 GB of activations of 128 images of AmoebaNet-D (18, 208)."""
    model, _ = sizes_of("amoebanet:18-208", dtype="bfloat16")
    held = predict_memory(model, Cluster.parse("tpu-v3:1"), Parallel(microbatch_size=128, global_batch=128))
    assert held.activations == pytest.approx(6.26e9, rel=0.08)
