"""Hints: their texts, what their patterns name, and that plans keep them."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autopar
from autopar.models import get
from autopar.paths import named
from autopar.planner.atoms import build_atoms
from autopar.planner.factors import Factors
from autopar.planner.hints import PARALLELISMS, as_hints
from autopar.planner.parts import find_part, handed_out
from autopar.sharding.layout import fits
from autopar.sharding.words import layout_on, layout_text
from autopar.trace import trace

Hint = autopar.Hint
PARTS = st.sampled_from(["wte", "layers[*].attn.wq", "state.params['layers'][3]['w']", "layer3/attn/wq", "gpt.py:117"])
OVER = st.sampled_from([(), ("x",), ("x", "z")])
HINTS = st.one_of(
    st.builds(
        Hint.layout, PARTS, st.sampled_from(["whole", "S0,R", "rows over x, columns over y", "dim 2 over x and y"])
    ),
    st.builds(lambda p, w, o: Hint.forbid(p, w, over=o), PARTS, st.sampled_from(PARALLELISMS), OVER),
    st.builds(lambda p, w, o: Hint.require(p, w, over=o), PARTS, st.sampled_from(PARALLELISMS), OVER),
    st.builds(Hint.stage, PARTS),
    st.builds(Hint.mesh, PARTS, st.lists(st.integers(1, 16), min_size=1, max_size=3)),
)


@given(HINTS)
def test_a_hint_is_its_text(hint):
    assert Hint.parse(str(hint)) == hint
    assert as_hints(str(hint)) == as_hints([hint]) == (hint,)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.data())
def test_layouts_in_words_lead_back(mesh, data):
    names = ("x", "y", "z")[: len(mesh)]
    rank = data.draw(st.integers(1, 4))
    layout = tuple(data.draw(st.integers(-1, rank - 1)) for _ in mesh)
    words = layout_text(layout, rank, names)
    assert layout_on(words, rank, names) == layout
    assert fits((12,) * rank, layout_on("whole", rank, names), mesh)


@pytest.mark.parametrize(
    "pattern, name, found",
    [
        ("wte", "state.params['wte']", True),
        ("wt", "state.params['wte']", False),
        ("layers[3].attn.wq", "state.params['layers'][3]['attn']['wq']", True),
        ("layers[3]", "state.params['layers'][31]['attn']['wq']", False),
        ("layer3/attn/wq", "params.layer_3.attn.wq", True),
        ("layers_3/attn", "params['layers_3']['attn']['kernel']", True),
        ("state.params['layers'][3]", "state.params['layers'][3]['w']", True),
        ("layers[*].w1", "params.layers[12].w1", True),
        ("layers[*].w1", "params.layers.w1", False),
        ("w*", "params.w1", True),
        ("state*w1*", "state.opt[0].mu['mlp']['w1']", True),
        ("[xy]", "x", True),
        ("mlp/w1", "block_2/mlp/w1", True),
        ("mlp", "layers[0].mlp", True),
        ("params.*.kernel", "params.Dense_0.kernel", True),
    ],
)
def test_one_name_has_many_spellings(pattern, name, found):
    assert named(pattern, name) is found


@pytest.fixture(scope="module")
def gpt():
    recipe = get("gpt")
    traced = trace(recipe.step, recipe.abstract(), donate_argnums=0)
    return traced, build_atoms(traced.step)


def ops(atoms, indices, phase):
    return [atoms.atoms[i].op.primitive for i in indices if atoms.atoms[i].op.where.phase == phase]


def test_a_parameter_brings_the_ops_that_use_it_and_make_its_gradient(gpt):
    _, atoms = gpt
    part = find_part(atoms, "layers[1].mlp.w1")
    assert [atoms.atoms[i].name for i in part.arguments] == ["state.params['layers'][1]['mlp']['w1']"]
    assert ops(atoms, part.users, "forward") == ["dot_general"]
    assert ops(atoms, part.users, "backward").count("dot_general") == 2  # of its input and of itself
    assert len(find_part(atoms, "layers[1].mlp.w1", state=True).arguments) == 3  # and Adam's moments
    assert len(find_part(atoms, "state*w1*").arguments) == 6  # of whole names it means just what it says


def test_a_function_hands_out_what_others_read(gpt):
    traced, atoms = gpt
    part = find_part(atoms, "attention")
    assert not part.arguments and len(part.ops) > 100
    assert [traced.step.graph.values[v].shape for v in handed_out(atoms, part)] == [(16, 32, 64)] * 2


def plan(model, *hints, cluster="cpu:8", **options):
    recipe = get(model)
    chosen = autopar.Options(**({"mesh": (8,)} | options), hints=hints, hint_costs=False)
    return autopar.plan(recipe.step, *recipe.abstract(), cluster=cluster, options=chosen, donate_argnums=0)


def used(found, pattern):
    """The parallelisms that the products of a part have in a plan."""
    atoms = build_atoms(found.traced.step)
    factors, part = Factors(atoms), find_part(atoms, pattern)
    kinds = set()
    for i in part.work:
        atom = atoms.atoms[i]
        if atom.op.primitive == "dot_general":
            kinds |= {factors.parallelism(atom).get(action, "") for action in found.ops[atom.op.id]}
    return kinds


@pytest.mark.parametrize("kind", ["data", "tensor"])
def test_what_is_forbidden_is_not_there_and_what_is_required_is(kind):
    assert kind not in used(plan("mlp", Hint.forbid("params", kind)), "params")
    assert used(plan("mlp", Hint.require("params", kind)), "params") == {kind}


def test_experts_over_an_axis():
    found = plan("moe", "moe: require expert over y", mesh=(2, 4), mip_gap=0.05)
    atoms = build_atoms(found.traced.step)
    factors = Factors(atoms)
    for i in find_part(atoms, "moe.w*").users:
        atom = atoms.atoms[i]
        if atom.op.primitive == "dot_general":
            assert factors.parallelism(atom)[found.ops[atom.op.id][1]] == "expert"


def test_layouts_of_arguments_and_activations():
    def step(w, x):
        def loss(w):
            with jax.named_scope("layer_1/attn"):
                h = x @ w["a"]
            return jnp.sum(jnp.tanh(h) @ w["b"])

        return jax.tree.map(lambda p, g: p - g, w, jax.grad(loss)(w))

    shapes = {k: jax.ShapeDtypeStruct((64, 64), "float32") for k in "ab"}, jax.ShapeDtypeStruct((128, 64), "float32")
    for words, layout in (("rows over x", (0,)), ("columns over x", (1,)), ("whole", (-1,))):
        options = autopar.Options(mesh=(8,), hints=[f"layer1/attn: {words}", "w.b: rows over x"], hint_costs=False)
        found = autopar.plan(step, *shapes, cluster="cpu:8", options=options)
        assert {a.name: a.layout for a in found.arguments}["w['b']"] == (0,)
        assert found.explain("layer1/attn", most=1).chosen == (words,), layout


def test_hints_on_one_layer_of_tied_ones():
    found = plan("gpt", "layers[0].mlp.w1: whole", "layers[1].mlp.w1: columns over x", tie_above=100)
    layouts = {a.name: a.layout for a in found.arguments}
    assert found.certificate.tied
    assert layouts["state.params['layers'][0]['mlp']['w1']"] == (-1,)
    assert layouts["state.params['layers'][1]['mlp']['w1']"] == (1,)


def test_a_plan_with_hints_runs():
    recipe = get("mlp")
    options = autopar.Options(mesh=(8,), hints=["params[1]: require zero", "params[2].w: S1"], hint_costs=False)
    state, batch = recipe.init(jax.random.key(0)), recipe.batch(0)
    exe = autopar.compile(recipe.step, state, batch, cluster="cpu:8", options=options)
    _, metrics = exe(state, batch)
    _, wanted = jax.jit(recipe.step)(state, batch)
    assert exe.audit.agrees and float(metrics["loss"]) == pytest.approx(float(wanted["loss"]), rel=1e-5)


STAGES = {"cluster": "cpu:4", "mesh": None, "microbatches": 4, "max_stages": 2}


def test_where_a_stage_begins_and_its_mesh():
    found = plan("mlp", "params[1]: stage", "params[3]: mesh 1x2", **STAGES)
    assert found.stages[1].units[0] == 2 and found.stages[1].plan.mesh_shape == (1, 2)
    assert found.hints == ("params[1]: stage", "params[3]: mesh 1x2")
    free = plan("mlp", **STAGES)
    assert free.stages[1].units[0] != 2 and free.step_s <= found.step_s


def test_an_axis_that_coarser_meshes_do_not_have():
    hints = ["params[1].w: columns over z", "params[2].w: require tensor over z"]
    for mesh in ((2, 2, 2), None):  # given, and among all that are tried
        found = plan("mlp", *hints, mesh=mesh)
        assert found.mesh_shape == (2, 2, 2) and found.certificate.pruned
        assert {a.name: a.layout for a in found.arguments}["state.params[1]['w']"] == (-1, -1, 1)
