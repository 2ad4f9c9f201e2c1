"""Routers against loops over tokens that follow the papers' equations; the layer against a sum over experts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autopar.models.layers.experts import Experts, moe_init, moe_layer, router_loss
from autopar.models.layers.router_spec import TOP_K
from autopar.models.layers.routers import ROUTERS, balanced

GROUPS, TOKENS, EXPERTS, HIDDEN = 3, 12, 6, 4
KEY = jax.eval_shape(lambda: jax.random.key(0))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def ranked(scores):
    """Experts, best first; of equals the first one."""
    return sorted(range(len(scores)), key=lambda e: (-scores[e], e))


def in_order(wishes, capacity):
    """Slots in the order of asking: (token, expert) pairs -> those that find one, and their slots."""
    taken, slots = {}, {}
    for token, expert in wishes:
        if (n := taken.get(expert, 0)) < capacity:
            slots[token, expert] = n
        taken[expert] = taken.get(expert, 0) + 1
    return slots


def balance(gates, firsts):
    e = len(gates[0])
    return e * sum(np.mean([f == i for f in firsts]) * np.mean([g[i] for g in gates]) for i in range(e))


def naive_top2(logits, spec, bias):
    gates = [softmax(x) for x in logits]
    best = [ranked(g)[:2] for g in gates]
    slots = in_order(
        [(t, b[0]) for t, b in enumerate(best)] + [(t, b[1]) for t, b in enumerate(best)], spec.capacity(len(logits))
    )
    weights = {(t, e): gates[t][e] / sum(gates[t][i] for i in best[t]) for t, e in slots}
    return slots, weights, best, {"aux_loss": balance(gates, [b[0] for b in best])}


def naive_st_moe(logits, spec, bias):
    *routing, losses = naive_top2(logits, spec, bias)
    return *routing, losses | {"z_loss": np.mean([np.log(np.exp(x).sum()) ** 2 for x in logits])}


def naive_switch(logits, spec, bias):
    gates = [softmax(x) for x in logits]
    best = [ranked(g)[:1] for g in gates]
    slots = in_order([(t, b[0]) for t, b in enumerate(best)], spec.capacity(len(logits)))
    return slots, {(t, e): gates[t][e] for t, e in slots}, best, {"aux_loss": balance(gates, [b[0] for b in best])}


def naive_expert_choice(logits, spec, bias):
    gates = np.array([softmax(x) for x in logits])
    slots = {}
    for expert in range(gates.shape[1]):
        for slot, token in enumerate(ranked(gates[:, expert])[: spec.capacity(len(logits))]):
            slots[token, expert] = slot
    best = [[e for t, e in slots if t == token] for token in range(len(logits))]
    return slots, {(t, e): gates[t, e] for t, e in slots}, best, {}


def naive_sigmoid(logits, spec, bias):
    best, affinities = [], [1 / (1 + np.exp(-x)) for x in logits]
    size = spec.experts // spec.expert_groups
    for affinity in affinities:
        score = affinity + bias
        parts = [list(range(i * size, (i + 1) * size)) for i in range(spec.expert_groups)]
        each = spec.choices // spec.chosen_groups
        sums = [sum(sorted((score[e] for e in part), reverse=True)[:each]) for part in parts]
        allowed = sorted(e for i in ranked(sums)[: spec.chosen_groups] for e in parts[i])
        best.append(sorted(allowed, key=lambda e: (-score[e], e))[: spec.choices])
    slots = in_order([(t, e) for t, b in enumerate(best) for e in b], spec.capacity(len(logits)))
    weights = {(t, e): spec.scale * affinities[t][e] / sum(affinities[t][i] for i in best[t]) for t, e in slots}
    return slots, weights, best, {}


NAIVE = {
    "top2": naive_top2,
    "switch": naive_switch,
    "expert-choice": naive_expert_choice,
    "st-moe": naive_st_moe,
    "task": naive_top2,
    "image": naive_switch,
    "sigmoid": naive_sigmoid,
}


def spec(router, **sizes):
    return Experts(**{"router": router, "experts": EXPERTS, "group": TOKENS, "ffn": 5} | sizes)


def logits(kind):
    values = np.random.default_rng(0).normal(size=(GROUPS, TOKENS, EXPERTS))
    match kind:
        case "ties":
            return np.where(values > 0, 0.0, -np.log(2.0))  # powers of two, whose sums lose no digit
        case "crowded":  # all want the same experts
            return values + 5.0 * np.arange(EXPERTS)
    return values


VARIANTS = [
    *((router, {}) for router in ROUTERS),
    *((router, {"capacity_factor": 0.5}) for router in ROUTERS),
    ("top2", {"capacity_factor": 10.0}),
    ("expert-choice", {"top_k": 3}),
    ("sigmoid", {"top_k": 3, "scale": 2.5, "capacity_factor": 2.0}),
    ("sigmoid", {"top_k": 4, "expert_groups": 3, "chosen_groups": 2, "capacity_factor": 1.5}),
    ("sigmoid", {"top_k": 2, "expert_groups": 3, "chosen_groups": 2}),
]


@pytest.mark.parametrize("kind", ["random", "ties", "crowded"])
@pytest.mark.parametrize(("router", "sizes"), VARIANTS)
def test_routes_as_the_paper_says(router, sizes, kind):
    s, x = spec(router, **sizes), logits(kind)
    bias = np.zeros(EXPERTS) if kind == "ties" else np.random.default_rng(1).normal(size=EXPERTS)
    found = ROUTERS[router](jnp.asarray(x), s, jnp.asarray(bias))
    combine, dispatch = np.zeros(found.combine.shape), np.zeros(found.dispatch.shape, bool)
    assert combine.shape == (GROUPS, TOKENS, EXPERTS, s.capacity(TOKENS))
    load, losses = np.zeros(EXPERTS), []
    for g in range(GROUPS):
        slots, weights, best, loss = NAIVE[router](x[g], s, bias)
        for (token, expert), slot in slots.items():
            combine[g, token, expert, slot] = weights[token, expert]
            dispatch[g, token, expert, slot] = True
        for expert in (e for b in best for e in b):
            load[expert] += 1
        losses.append(loss)
    np.testing.assert_array_equal(found.dispatch, dispatch)
    np.testing.assert_allclose(found.combine, combine, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(found.load, load)
    assert found.losses.keys() == losses[0].keys()
    for name, value in found.losses.items():
        assert float(value) == pytest.approx(np.mean([loss[name] for loss in losses]), rel=1e-12)
    if kind == "crowded" and router != "expert-choice" and s.capacity_factor < 1:
        assert dispatch.sum() < load.sum()  # some found no slot


def naive_expert(p, e, x, gated, activation):
    inner = activation(x @ p["w1"][e])
    return (inner * (x @ p["gate"][e]) if gated else inner) @ p["w2"][e]


@pytest.mark.parametrize("router", ROUTERS)
def test_the_layer_is_a_weighted_sum_of_experts(router):
    examples, sequence, gated = 6, 4, router != "top2"
    s = spec(router, gated=gated, shared=2, group=12, capacity_factor=0.7)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(functools.partial(moe_init, hidden=HIDDEN, spec=s, dtype="float64", out_std=1.0), KEY)
    p = jax.tree.map(lambda w: rng.normal(size=w.shape), shapes)
    x = rng.normal(size=(examples, sequence, HIDDEN))
    task = rng.normal(size=(3, HIDDEN))[[0, 1, 0, 2, 0, 1]]  # three examples have the same one
    bias = np.linspace(-0.2, 0.2, EXPERTS)
    layer = jax.jit(functools.partial(moe_layer, spec=s, activation=jax.nn.relu))
    found, aux = layer(p, x, task=task if s.by_example else None, bias=bias)
    items = x.reshape(2, 3, sequence, HIDDEN) if s.by_example else x.reshape(2, 12, HIDDEN)
    asking = task.reshape(2, 3, HIDDEN) if s.by_example else items
    relu = lambda x: np.maximum(x, 0.0)  # noqa: E731
    expected, losses = np.zeros(items.shape), []
    for g in range(2):
        slots, weights, _, loss = NAIVE[router](asking[g] @ p["router"], s, bias)
        losses.append(loss)
        for t, e in slots:
            expected[g, t] += weights[t, e] * naive_expert(p, e, items[g, t], gated, relu)
    side_by_side = p["shared"]
    for i in range(2):
        at = slice(5 * i, 5 * (i + 1))
        one = {k: w[None, at] if k == "w2" else w[None, :, at] for k, w in side_by_side.items()}
        expected += naive_expert(one, 0, items, gated, relu)
    np.testing.assert_allclose(found, expected.reshape(x.shape), rtol=1e-11, atol=1e-13)
    weighted, means = router_loss([aux, aux], s)
    assert means.keys() == losses[0].keys()
    each = {name: np.mean([loss[name] for loss in losses]) for name in losses[0]}
    assert float(weighted) == pytest.approx(0.01 * each.get("aux_loss", 0) + 0.001 * each.get("z_loss", 0), rel=1e-12)


def test_the_bias_moves_choices_and_not_weights():
    x, s = jnp.asarray(logits("random")), spec("sigmoid", capacity_factor=3.0)
    bias = jnp.zeros(EXPERTS).at[2].set(10.0)
    found = ROUTERS["sigmoid"](x, s, bias)
    assert int(found.load[2]) == GROUPS * TOKENS
    assert not np.asarray(jax.grad(lambda b: ROUTERS["sigmoid"](x, s, b).combine.sum())(bias)).any()
    after = balanced(bias, found.load, s)
    mean = found.load.mean()
    np.testing.assert_allclose(after - bias, -0.001 * np.sign(found.load - mean), atol=1e-15)
    assert float(after[2]) == pytest.approx(10.0 - 0.001)


def test_a_bias_balances():
    s = spec("sigmoid", bias_speed=0.02)
    x = jnp.asarray(logits("random") + 0.5 * np.arange(EXPERTS))
    load = jax.jit(lambda bias: ROUTERS["sigmoid"](x, s, bias).load)
    bias = jnp.zeros(EXPERTS)
    first = load(bias)
    for _ in range(50):
        bias = balanced(bias, load(bias), s)
    assert float(load(bias).std()) < 0.3 * float(first.std())


def test_tables_agree():
    assert ROUTERS.keys() == TOP_K.keys() == NAIVE.keys()


def test_idle_parameters():
    s = spec("sigmoid", top_k=2, gated=True, shared=1)
    p = jax.eval_shape(functools.partial(moe_init, hidden=HIDDEN, spec=s, dtype="float64", out_std=1.0), KEY)
    expert = sum(p[name].size // EXPERTS for name in ("w1", "w2", "gate"))
    assert s.idle_parameters(HIDDEN) == 4 * expert


@pytest.mark.parametrize(
    ("router", "sizes", "hint"),
    [
        ("top3", {}, "unknown router: 'top3'; did you mean 'top2'"),
        ("switch", {"top_k": 2}, "to 1 experts, top_k=2"),
        ("top2", {"experts": 1}, "2 of 1 experts"),
        ("sigmoid", {"top_k": 1}, "the router learns nothing"),
        ("sigmoid", {"expert_groups": 4}, "multiple of expert_groups"),
        ("sigmoid", {"top_k": 3, "expert_groups": 3, "chosen_groups": 2}, "of chosen_groups"),
        ("sigmoid", {"top_k": 3, "expert_groups": 3}, "3 experts cannot be chosen from 1 of 3 groups of 2"),
    ],
)
def test_impossible_sizes(router, sizes, hint):
    with pytest.raises(ValueError, match=hint):
        spec(router, **sizes)


def test_groups_divide_the_batch():
    with pytest.raises(ValueError, match=r"3 x 5 tokens\) must be a multiple of the routing group \(12\)"):
        spec("top2").check_groups(3, 5)
    with pytest.raises(ValueError, match=r"must be a multiple of the sequence \(8\)"):
        spec("task").check_groups(3, 8)
    spec("task").check_groups(4, 6)
