"""Every move keeps the value and is exactly one collective of its kind (or none) in the compiled program."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from autopar.lower.convert import convert
from autopar.lower.localize import Axes
from autopar.sharding.layout import LOCAL, MAX, MIN, REPLICATED, SUM, Collective, Layout, Move, fits, local_shape, moves
from tests.rules.draw import Draw
from tests.rules.machine import MESHES, NAMES, combine, per_device, spread

SETTINGS = settings(deadline=None, derandomize=True, database=None, phases=[Phase.generate])
KINDS = "|".join(kind.value for kind in Collective if kind not in LOCAL)


def collectives(hlo: str) -> list[str]:
    """The collectives of a compiled program, by their HLO names."""
    return re.findall(rf" ({KINDS})(?:-start)?\(", hlo)


def draw_layout(draw: Draw, shape: tuple[int, ...], mesh: tuple[int, ...], partial: tuple[int, ...]) -> Layout:
    while True:
        layout = tuple(draw.of((REPLICATED, *partial, *range(len(shape)))) for _ in mesh)
        if fits(shape, layout, mesh):
            return layout


def draw_array(draw: Draw, dtype: str) -> np.ndarray:
    shape = tuple(draw.of((4, 8)) for _ in range(draw.int(1, 3)))
    if dtype == "bool":
        return draw.bools(shape)
    if dtype == "complex128":
        return draw.complexes(shape)
    return draw.floats(shape) if dtype.startswith("float") else draw.ints(shape, 1, 9, dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32", "int32", "uint8", "bool", "complex128"])
def test_a_move_keeps_the_value_and_is_one_collective(dtype):
    @settings(SETTINGS, max_examples=5)
    @given(seed=st.integers(0, 2**32 - 1))
    def prove(seed):
        draw = Draw(seed)
        mesh = draw.of(MESHES)
        x = draw_array(draw, dtype)
        partial = (MAX, MIN) if dtype == "bool" else (SUM,) if dtype == "complex128" else (SUM, SUM, MAX, MIN)
        layout = draw_layout(draw, x.shape, mesh, (draw.of(partial),))
        axes = Axes(NAMES[: len(mesh)], mesh)
        parts = spread(x, layout, mesh, draw.rng)
        for move in moves(x.shape, layout, mesh):
            after = move.apply(layout)
            if {SUM, MAX} <= set(after) or {SUM, MIN} <= set(after) or {MAX, MIN} <= set(after):
                continue  # a sum of maxima is no value: no rule makes one
            run = per_device(lambda p, move=move: convert(p, move, axes, x.shape), mesh)
            compiled = run.lower(parts).compile()
            out = np.asarray(compiled(parts))
            assert out.shape == (*mesh, *local_shape(x.shape, after, mesh))
            tolerance = 1e-4 if dtype == "float32" else 1e-9
            np.testing.assert_allclose(combine(out, after, mesh, tolerance), x, tolerance, tolerance, err_msg=str(move))
            wanted = [] if move.kind in LOCAL else [move.kind.value]
            assert collectives(compiled.as_text()) == wanted, (move, layout, mesh, x.shape)

    prove()


def test_a_whole_path_of_moves_returns_to_the_value():
    @settings(SETTINGS, max_examples=25)
    @given(seed=st.integers(0, 2**32 - 1))
    def prove(seed):
        draw = Draw(seed)
        mesh = draw.of(MESHES)
        x = draw.floats((8, 4, 8))
        start = draw_layout(draw, x.shape, mesh, (SUM,))
        axes = Axes(NAMES[: len(mesh)], mesh)
        layout, path = start, []
        for _ in range(5):
            if steps := list(moves(x.shape, layout, mesh)):
                path.append(draw.of(steps))
                layout = path[-1].apply(layout)

        def walk(part):
            for move in path:
                part = convert(part, move, axes, x.shape)
            return part

        out = np.asarray(per_device(walk, mesh)(spread(x, start, mesh, draw.rng)))
        np.testing.assert_allclose(combine(out, layout, mesh), x, 1e-9, 1e-9, err_msg=str(path))

    prove()


@pytest.mark.parametrize("move", [Move(0, REPLICATED, 0), Move(0, 0, REPLICATED), Move(0, REPLICATED, SUM)])
def test_random_keys_move_as_their_words(move):
    mesh = (2,)
    keys = jax.random.split(jax.random.key(0), 4)
    whole = np.asarray(jax.random.key_data(keys))
    layout = (move.src,)
    parts = spread(whole, layout, mesh, np.random.default_rng(0))
    axes = Axes(("x",), mesh)

    def run(words):
        moved = convert(jax.random.wrap_key_data(words), move, axes, (4,))
        assert jax.numpy.issubdtype(moved.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(moved)

    out = np.asarray(per_device(run, mesh)(parts))
    np.testing.assert_array_equal(combine(out, move.apply(layout), mesh), whole)
