"""Steps as users write them, on eight devices, against plain jax.jit."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import autopar
from benchmarks._steps import relative_errors

MESHES = ((8,), (2, 4), (2, 2, 2))
rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def quick_compiles():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def data(*shape):
    return rng.standard_normal(shape)


def same(step, *args, mesh=(2, 4), strategy="auto", backend="shard_map", calls=1, static=(), donate=(), **kwargs):
    """Run both, compare all results, return the executable."""
    options = autopar.Options(mesh=mesh, strategy=strategy, backend=backend)
    static = {"static_argnames": static} if static else {}
    exe = autopar.compile(step, *args, cluster="cpu:8", options=options, donate_argnums=donate, **static, **kwargs)
    expected = jax.jit(step, **static)(*args, **kwargs)
    for _ in range(calls):
        errors = relative_errors(*jax.tree.map(numbers, (exe(*args, **kwargs), expected)))
        assert max(errors.values(), default=0.0) < 1e-12, errors
    return exe


def numbers(x):
    keyed = isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if keyed else x)


def descend(loss):
    def step(params, *batch):
        value, grads = jax.value_and_grad(loss)(params, *batch)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    return step


def regression(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2)


PARAMS = {"w": data(16, 32), "v": data(32, 8)}
BATCH = (data(64, 16), data(64, 8))


class TestArguments:
    def test_numpy_inputs(self):
        same(descend(regression), PARAMS, *BATCH, calls=2)

    def test_keyword_and_static_arguments(self):
        def step(params, x, y, *, power, flip=False, rate):
            loss = lambda p: jnp.mean(jnp.abs(x @ p - y) ** power)  # noqa: E731
            value, grad = jax.value_and_grad(loss)(params)
            return (params - rate * grad) * (-1 if flip else 1), value

        args = (data(16, 8), *BATCH)
        same(step, *args, static=("power", "flip"), power=4, flip=True, rate=0.5)
        with pytest.raises(autopar.PlanError, match=r"power.*4.*2"):
            exe = same(step, *args, static=("power", "flip"), power=4, flip=True, rate=0.5)
            exe(*args, power=2, flip=True, rate=0.5)

    def test_static_position(self):
        def step(params, mode, x, y):
            return descend(regression)(params, x if mode == "plain" else 2 * x, y)

        exe = autopar.compile(step, PARAMS, "double", *BATCH, cluster="cpu:8", static_argnums=1,
                              options=autopar.Options(mesh=(8,)))  # fmt: skip
        expected = jax.jit(step, static_argnums=1)(PARAMS, "double", *BATCH)
        assert max(relative_errors(*jax.tree.map(numbers, (exe(PARAMS, "double", *BATCH), expected))).values()) < 1e-12

    def test_python_numbers_and_partial(self):
        step = functools.partial(lambda scale, params, x, rate: params - rate * scale * x.sum(0), 3.0)
        same(step, data(16), data(64, 16), 0.25)

    def test_a_jitted_step_keeps_its_options(self):
        @functools.partial(jax.jit, static_argnums=2, donate_argnums=0)
        def step(w, x, power):
            return w - x.sum(0) ** power

        w, x = data(16), data(64, 16)
        expected = np.asarray(step(jnp.array(w), x, 3))
        exe = autopar.compile(step, jnp.array(w), x, 3, cluster="cpu:8", options=autopar.Options(mesh=(8,)))
        np.testing.assert_allclose(exe(jnp.array(w), x, 3), expected, rtol=1e-12)
        assert exe.audit.memory.alias_bytes > 0

    def test_arguments_in_other_layouts_are_moved(self):
        exe = same(descend(regression), PARAMS, *BATCH)
        mesh = jax.make_mesh((8,), ("x",), devices=jax.devices()[::-1])
        split = jax.NamedSharding(mesh, jax.P("x"))
        moved = jax.tree.map(lambda a: jax.device_put(a, split), (PARAMS, *BATCH))
        expected = jax.jit(descend(regression))(PARAMS, *BATCH)
        assert max(relative_errors(*jax.tree.map(numbers, (exe(*moved), expected))).values()) < 1e-12


class TestResults:
    def test_arguments_literals_and_repeats_among_the_results(self):
        def step(state, x):
            new = {"w": state["w"] + x.sum(0), "untouched": state["untouched"]}
            return new, {"one": 1.0, "three": jnp.float32(3), "x": x, "again": new["w"], "nothing": None, "n": len(x)}

        same(step, {"w": data(16), "untouched": data(8, 8)}, data(64, 16), donate=0)

    def test_metrics_of_any_shape_and_dtype(self):
        def step(w, x):
            y = x @ w
            return w * 2, {
                "histogram": jnp.histogram(y, bins=8, range=(-4, 4))[0],
                "argmax": y.argmax(-1),
                "any": (y > 3).any(),
                "all": (y > -9).all(0),
                "top": jax.lax.top_k(y, 3),
                "bf16": y.astype(jnp.bfloat16).astype(jnp.float32).max(),
                "norms": jnp.linalg.norm(y, axis=0),
                "empty": y[:0],
                "complex": jnp.fft.fft(y, axis=0)[:2].real,
                "quantile": jnp.sort(y, axis=0)[5],
                "logsumexp": jax.nn.logsumexp(y),
            }

        for mesh in MESHES:
            same(step, data(16, 8), data(64, 16), mesh=mesh)

    def test_odd_dims_stay_whole(self):
        exe = same(descend(regression), {"w": data(7, 9), "v": data(9, 5)}, data(11, 7), data(11, 5))
        assert all(all(p == -1 for p in a.layout) for a in exe.plan.arguments)

    def test_scalars_alone(self):
        same(lambda a, b: (a * b + 1, a > b), 3.0, 4.0)


class Carry(NamedTuple):
    x: jax.Array
    count: jax.Array


class TestControlFlow:
    @pytest.mark.parametrize("backend", ["shard_map", "gspmd"])
    def test_while(self, backend):
        def step(w, x):
            """Power iteration until it moves little."""

            def body(c):
                y = x.T @ (x @ c.x)
                return Carry(y / jnp.linalg.norm(y), c.count + 1)

            start = Carry(w / jnp.linalg.norm(w), jnp.zeros((), jnp.int32))
            unsettled = lambda c: (c.count < 20) & (jnp.abs(body(c).x - c.x).max() > 1e-3)  # noqa: E731
            return jax.lax.while_loop(unsettled, body, start)

        same(step, data(16), data(64, 16), backend=backend)

    @pytest.mark.parametrize("backend", ["shard_map", "gspmd"])
    def test_cond(self, backend):
        def step(params, x, y, skip):
            new, value = descend(regression)(params, x, y)
            kept = jax.lax.cond(skip, lambda: params, lambda: new)
            size = jax.lax.switch(jnp.int32(value > 0), [lambda v: jnp.sum(v), lambda v: jnp.max(v)], x)
            return kept, (value, size)

        exe = same(step, PARAMS, *BATCH, True, backend=backend)
        found, expected = exe(PARAMS, *BATCH, False), jax.jit(step)(PARAMS, *BATCH, False)
        assert max(relative_errors(*jax.tree.map(numbers, (found, expected))).values()) < 1e-12

    def test_optax_apply_if_finite_and_schedules(self):
        tx = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.apply_if_finite(optax.adam(optax.warmup_cosine_decay_schedule(0, 0.1, 5, 20)), 3),
            optax.ema(0.9),
        )

        def step(state, x, y):
            value, grads = jax.value_and_grad(regression)(state[0], x, y)
            updates, opt = tx.update(grads, state[1], state[0])
            return (optax.apply_updates(state[0], updates), opt), value

        params = jax.tree.map(jnp.asarray, PARAMS)
        same(step, (params, tx.init(params)), *BATCH)

    def test_optax_multisteps(self):
        tx = optax.MultiSteps(optax.adamw(0.1), every_k_schedule=2).gradient_transformation()

        def step(state, x, y):
            value, grads = jax.value_and_grad(regression)(state[0], x, y)
            updates, opt = tx.update(grads, state[1], state[0])
            return (optax.apply_updates(state[0], updates), opt), value

        params = jax.tree.map(jnp.asarray, PARAMS)
        same(step, (params, tx.init(params)), *BATCH)

    @pytest.mark.parametrize("mesh", MESHES)
    def test_gradient_accumulation_by_scan(self, mesh):
        def step(params, x, y):
            def body(total, batch):
                value, grads = jax.value_and_grad(regression)(params, *batch)
                return jax.tree.map(jnp.add, total, grads), value

            zero = jax.tree.map(jnp.zeros_like, params)
            grads, values = jax.lax.scan(body, zero, (x.reshape(4, 16, 16), y.reshape(4, 16, 8)))
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), values.mean()

        same(step, PARAMS, *BATCH, mesh=mesh)

    def test_recurrent_network(self):
        def loss(params, x, y):
            cell = lambda h, x: ((h := jnp.tanh(x @ params["w"] + h @ params["u"])), h)  # noqa: E731
            h, hs = jax.lax.scan(cell, jnp.zeros((x.shape[1], 32)), x)
            return jnp.mean((h @ params["v"] - y) ** 2) + 0.01 * jnp.mean(hs**2)

        params = PARAMS | {"u": data(32, 32)}
        for mesh in MESHES:
            same(descend(loss), params, data(5, 64, 16), data(64, 8), mesh=mesh)

    def test_fori_loop_map_and_nested_scan(self):
        def step(w, x):
            def outer(c, row):
                inner = jax.lax.scan(lambda a, b: (a + b, a * b), c, jnp.stack([row, 2 * row]))
                return inner[0], inner[1].sum(0)

            total, rows = jax.lax.scan(outer, w, x)
            rows = jax.lax.map(lambda r: r - r.mean(), rows)
            return jax.lax.fori_loop(0, 3, lambda i, c: c * 0.5 + i, total), rows

        same(step, data(16), data(8, 16))


class TestRandom:
    @pytest.mark.parametrize("mesh", MESHES)
    @pytest.mark.parametrize("backend", ["shard_map", "gspmd"])
    def test_dropout_masks_are_bit_identical(self, mesh, backend):
        def step(key, x):
            key, use, other = jax.random.split(key, 3)
            mask = jax.random.bernoulli(use, 0.9, x.shape)
            return key, jnp.where(mask, x, 0), jax.random.normal(other, x.shape), jax.random.permutation(use, 16)

        key, x = jax.random.key(7), data(64, 32)
        options = autopar.Options(mesh=mesh, backend=backend, hints={"x": ",".join(["S0"] * len(mesh))})
        exe = autopar.compile(step, key, x, cluster="cpu:8", options=options)
        assert exe.plan.results[1].layout == (0,) * len(mesh)  # masks are made in parts
        found, expected = exe(key, x), jax.jit(step)(key, x)
        for a, b in zip(jax.tree.map(numbers, found), jax.tree.map(numbers, expected), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_old_style_keys(self):
        def step(key, x):
            key, use = jax.random.split(key)
            return key, x * jax.random.uniform(use, x.shape)

        same(step, jax.random.PRNGKey(3), data(64, 32))

    def test_keys_split_over_a_batch(self):
        def step(key, x):
            keys = jax.random.split(key, x.shape[0])
            return jax.random.fold_in(key, 1), jax.vmap(lambda k, r: r + jax.random.normal(k, r.shape))(keys, x)

        same(step, jax.random.key(3), data(64, 32))


class TestDonation:
    def test_donated_buffers_are_reused(self):
        tx = optax.adamw(0.1)

        def step(state, x, y):
            value, grads = jax.value_and_grad(regression)(state[0], x, y)
            updates, opt = tx.update(grads, state[1], state[0])
            return (optax.apply_updates(state[0], updates), opt), value

        params = jax.tree.map(jnp.asarray, PARAMS)
        state = (params, tx.init(params))
        for strategy in ("auto", "data", "fsdp"):
            options = autopar.Options(mesh=(2, 4), strategy=strategy)
            exe = autopar.compile(step, state, *BATCH, cluster="cpu:8", options=options, donate_argnums=0)
            second, _ = exe(state, *BATCH)
            third, _ = exe(second, *BATCH)
            assert all(x.is_deleted() for x in jax.tree.leaves(second))
            assert not any(x.is_deleted() for x in jax.tree.leaves((state, third)))
            held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(third))
            assert exe.audit.memory.alias_bytes >= held

    def test_what_is_not_donated_stays(self):
        exe = same(descend(regression), PARAMS, *BATCH)
        params, _ = exe(PARAMS, *BATCH)
        exe(params, *BATCH)
        assert not any(x.is_deleted() for x in jax.tree.leaves(params))


def test_decorator():
    @autopar.parallelize(cluster="cpu:8", donate_argnums=0)
    def step(params, x, y):
        return descend(regression)(params, x, y)

    expected = jax.jit(descend(regression))
    a = b = PARAMS
    for _ in range(3):
        (a, loss), (b, wanted) = step(a, *BATCH), expected(b, *BATCH)
        assert float(loss) == pytest.approx(float(wanted), rel=1e-12)
    assert max(relative_errors(*jax.tree.map(numbers, (a, b))).values()) < 1e-12
    assert step.plan.devices == 8


def test_captured_arrays_are_constants():
    table, key = jnp.asarray(data(64, 8)), jax.random.key(5)

    def step(w, tokens):
        x = table[tokens] + jax.random.normal(key, (8,))
        return w - x.reshape(-1, 8).T @ x.reshape(-1, 8)

    for mesh in MESHES:
        same(step, data(8, 8), rng.integers(0, 64, (16, 8)), mesh=mesh)


def test_stop_gradient_and_custom_derivatives():
    @jax.custom_vjp
    def clipped(x):
        return x

    clipped.defvjp(lambda x: (x, x), lambda x, g: (jnp.clip(g, -0.1, 0.1) * jnp.sign(x),))

    @jax.custom_jvp
    def softplus(x):
        return jnp.logaddexp(x, 0)

    softplus.defjvp(lambda p, t: (softplus(*p), jax.nn.sigmoid(p[0]) * t[0]))

    def loss(params, x, y):
        h = softplus(clipped(x @ params["w"]))
        quantised = h + jax.lax.stop_gradient(jnp.round(h) - h)
        return jnp.mean((quantised @ params["v"] - y) ** 2)

    exe = same(descend(loss), PARAMS, *BATCH)
    assert not exe.plan.warnings


def test_depthwise_convolution_left_to_the_partitioner():
    # Split over one axis of two, XLA's partitioner counts the gradient of a depthwise kernel several times.
    def loss(kernel, x):
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", feature_group_count=4, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.mean(y**2)

    for strategy in ("megatron", "auto"):
        options = autopar.Options(mesh=(2, 4), strategy=strategy, backend="gspmd", hints={"x": "S0,R"})
        args = data(3, 3, 1, 4), data(16, 8, 8, 4)
        exe = autopar.compile(lambda kernel, x: jax.grad(loss)(kernel, x), *args, cluster="cpu:8", options=options)
        np.testing.assert_allclose(exe(*args), jax.grad(loss)(*args), rtol=1e-10)
