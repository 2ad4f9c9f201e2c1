"""Compiled programs whose collectives and memory are known, and HLO texts of other backends."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from autopar.errors import InternalError
from autopar.lower.hlo import HloCollective, hlo_collectives, memory, total_bytes


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("x", "y"))


def compiled(mesh, f, ins, outs, *shapes, dtype=jnp.float32, donate=()):
    step = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=ins, out_specs=outs, check_vma=False), donate_argnums=donate)
    return step.lower(*(jax.ShapeDtypeStruct(s, dtype) for s in shapes)).compile()


def found(*args, **kwargs):
    collectives = hlo_collectives(compiled(*args, **kwargs).as_text())
    return [(c.kind, c.elements, c.nbytes, c.group_size, c.times, c.exact) for c in collectives]


RING = [(i, (i + 1) % 4) for i in range(4)]


@pytest.mark.parametrize(
    ("f", "ins", "outs", "expected"),
    [
        (lambda v: lax.psum(v, "y"), P("x", "y"), P("x", None), ("all-reduce", 32, 128, 4, 1, True)),
        (lambda v: lax.psum(v, "x"), P("x", "y"), P(None, "y"), ("all-reduce", 32, 128, 2, 1, True)),
        (lambda v: lax.pmax(v, ("x", "y")), P("x", "y"), P(None, None), ("all-reduce", 32, 128, 8, 1, True)),
        (
            lambda v: lax.psum_scatter(v, "y", tiled=True),
            P("x", None),
            P(("x", "y"), None),
            ("reduce-scatter", 128, 512, 4, 1, True),
        ),
        (
            lambda v: lax.all_gather(v, "y", tiled=True),
            P(("x", "y"), None),
            P("x", None),
            ("all-gather", 128, 512, 4, 1, True),
        ),
        (
            lambda v: lax.all_to_all(v, "y", 0, 1, tiled=True),
            P(None, "y"),
            P("y", None),
            ("all-to-all", 64, 256, 4, 1, True),
        ),
        (
            lambda v: lax.ppermute(v, "y", RING),
            P("x", "y"),
            P("x", "y"),
            ("collective-permute", 32, 128, 4, 1, True),
        ),
    ],
)
def test_one_collective(mesh, f, ins, outs, expected):
    assert found(mesh, f, ins, outs, (16, 16)) == [expected]


def test_no_collective(mesh):
    assert found(mesh, lambda v: v * 2, P("x"), P("x"), (8, 8)) == []


def test_combined_into_a_tuple_with_comments(mesh):
    shapes = [(8, 8 * i) for i in range(1, 8)]
    program = compiled(mesh, lambda *v: tuple(lax.psum(a, "y") for a in v), P("x", "y"), P("x", None), *shapes)
    text = program.as_text()
    assert text.count("all-reduce(") == 1, "XLA no longer combines these: the test needs another program"
    assert "/*index=5*/" in text
    collectives = hlo_collectives(text)
    assert sorted(c.elements for c in collectives) == [8 * i for i in range(1, 8)]
    assert {(c.kind, c.group_size) for c in collectives} == {("all-reduce", 4)}
    assert total_bytes(collectives) == {"all-reduce": 4 * 8 * 28}


def test_scan_multiplies_by_its_length(mesh):
    def f(v, ws):
        return lax.scan(lambda c, w: (lax.psum(c @ w, "y"), None), v, ws)[0]

    assert found(mesh, f, (P("x"), P()), P("x"), (8, 8), (5, 8, 8)) == [("all-reduce", 32, 128, 4, 5, True)]


def test_nested_scans_multiply(mesh):
    def inner(v):
        return lax.scan(lambda c, _: (lax.psum(jnp.sin(c), "y"), None), v, length=7)[0]

    def f(v):
        return lax.scan(lambda c, _: (inner(c), None), v, length=3)[0]

    assert found(mesh, f, P("x"), P("x"), (8, 8)) == [("all-reduce", 32, 128, 4, 21, True)]


def test_loop_of_unknown_length_is_flagged(mesh):
    def f(v):
        return lax.while_loop(lambda c: jnp.sum(c) < 1e3, lambda c: lax.psum(c, "y"), v)

    assert found(mesh, f, P("x"), P("x"), (8, 8)) == [("all-reduce", 32, 128, 4, 1, False)]


def test_branches_are_flagged(mesh):
    def f(v):
        return lax.cond(v[0, 0] > 0, lambda a: lax.psum(a, "y"), lambda a: lax.pmax(a, "x"), v)

    assert sorted(found(mesh, f, P(), P(), (8, 8))) == [
        ("all-reduce", 64, 256, 2, 1, False),
        ("all-reduce", 64, 256, 4, 1, False),
    ]


@pytest.mark.parametrize(
    ("f", "ins", "outs", "elements"),
    [
        (lambda v: lax.psum(v, "y"), P("x", "y"), P("x", None), 32),
        (lambda v: lax.all_gather(v, "y", tiled=True), P(("x", "y"), None), P("x", None), 128),
    ],
)
def test_bfloat16_counts_what_xla_moves(mesh, f, ins, outs, elements):
    """The CPU backend may do it in float32; bytes follow the dtype that is reported."""
    (collective,) = hlo_collectives(compiled(mesh, f, ins, outs, (16, 16), dtype=jnp.bfloat16).as_text())
    assert collective.elements == elements
    assert collective.nbytes == elements * {"bf16": 2, "f32": 4}[collective.dtype]


def test_op_name_says_where_it_comes_from(mesh):
    def f(v):
        with jax.named_scope("loss"):
            return lax.psum(v, "y")

    (collective,) = hlo_collectives(compiled(mesh, f, P("x", "y"), P("x", None), (8, 8)).as_text())
    assert "loss" in collective.op_name


def test_partitioner_programs_are_read_too(mesh):
    """Not only shard_map: a matmul whose contraction is split owes an all-reduce."""
    split = NamedSharding(mesh, P(None, "y"))
    step = jax.jit(lambda a: a @ a.T, in_shardings=split, out_shardings=NamedSharding(mesh, P()))
    text = step.lower(jax.ShapeDtypeStruct((16, 32), jnp.float32)).compile().as_text()
    assert [(c.kind, c.elements, c.group_size) for c in hlo_collectives(text)] == [("all-reduce", 256, 4)]


def test_memory_adds_up(mesh):
    program = partial(compiled, mesh, lambda v: jnp.sin(v) @ v.T @ v, P("x"), P("x"), (64, 64))
    kept, donated = memory(program()), memory(program(donate=0))
    for found_memory in (kept, donated):
        assert found_memory.argument_bytes == found_memory.output_bytes == 64 * 64 * 4 // 2
        assert found_memory.peak_bytes == (
            found_memory.argument_bytes + found_memory.output_bytes - found_memory.alias_bytes + found_memory.temp_bytes
        )
    assert kept.alias_bytes == 0
    assert donated.alias_bytes == donated.argument_bytes
    assert kept.temp_bytes > 0


def test_memory_without_analysis():
    class Silent:
        def memory_analysis(self):
            return None

    with pytest.raises(InternalError, match="no memory analysis"):
        memory(Silent())


# GPU and TPU spellings that a CPU does not produce: asynchronous pairs, iota groups, tiled layouts, quoted configs.
GPU = r"""
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[64]{0})->f32[64]{0}}, replica_count=1, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%async_computation (param_0: bf16[64,4]) -> bf16[16,4] {
  %param_0 = bf16[64,4]{1,0} parameter(0)
  ROOT %rs = bf16[16,4]{1,0} reduce-scatter(%param_0), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
}

%body (arg: (s32[], f32[64])) -> (s32[], f32[64]) {
  %arg = (s32[], f32[64]{0}) parameter(0)
  %v = f32[64]{0} get-tuple-element(%arg), index=1
  %ar-start = f32[64]{0} all-reduce-start(%v), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %ar-done = f32[64]{0} all-reduce-done(%ar-start)
  ROOT %t = (s32[], f32[64]{0}) tuple(%i, %ar-done)
}

ENTRY %main (p: f32[64], q: bf16[64,4]) -> f32[64] {
  %p = f32[64]{0:T(256)} parameter(0)
  %q = bf16[64,4]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %r = s4[10]{0} parameter(2)
  %k = f8e4m3fn[8]{0} parameter(3)
  %ag-start = ((f32[64]{0}, bf16[64,4]{1,0}), (f32[256]{0}, /*index=1*/bf16[256,4]{1,0})) all-gather-start(f32[64]{0:T(256)} %p, bf16[64,4]{1,0} %q), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  %ag-done = (f32[256]{0}, bf16[256,4]{1,0}) all-gather-done(%ag-start)
  %cp-start = (f32[64]{0}, f32[64]{0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1},{1,2},{4,5}}, metadata={op_name="jit(f)/body=%fake(x)"}
  %cp-done = f32[64]{0} collective-permute-done(%cp-start)
  %rs-start = ((bf16[64,4]{1,0}), bf16[16,4]{1,0}) async-start(%q), calls=%async_computation
  %rs-done = bf16[16,4]{1,0} async-done(%rs-start), calls=%async_computation
  %rs2-start = ((bf16[64,4]{1,0}), bf16[16,4]{1,0}) reduce-scatter-start(%q), replica_groups={}, dimensions={0}, to_apply=%add
  %rs2-done = bf16[16,4]{1,0} reduce-scatter-done(%rs2-start)
  %a2a = s4[10]{0} all-to-all(%r), replica_groups={}, dimensions={0}
  %f8 = f8e4m3fn[8]{0} all-reduce(%k), replica_groups={{0,1}}, to_apply=%add
  %w = (s32[], f32[64]{0}) while(%t0), condition=%cond, body=%body, backend_config="{\"known_trip_count\":{\"n\":\"6\"}}"
  ROOT %out = f32[64]{0} get-tuple-element(%w), index=1
}
"""  # noqa: E501


def test_spellings_of_other_backends():
    kinds = [(c.kind, c.dtype, c.elements, c.nbytes, c.group_size, c.times) for c in hlo_collectives(GPU)]
    assert kinds == [
        ("all-gather", "f32", 256, 1024, 2, 1),
        ("all-gather", "bf16", 1024, 2048, 2, 1),
        ("collective-permute", "f32", 64, 256, 3, 1),
        ("reduce-scatter", "bf16", 256, 512, 4, 1),
        ("reduce-scatter", "bf16", 256, 512, 8, 1),
        ("all-to-all", "s4", 10, 5, 8, 1),
        ("all-reduce", "f8e4m3fn", 8, 8, 2, 1),
        ("all-reduce", "f32", 64, 256, 4, 6),
    ]
    assert all(c.exact for c in hlo_collectives(GPU))
    assert total_bytes([HloCollective("all-reduce", "f32", 1, 4, 2, times=3)]) == {"all-reduce": 12}


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("{}", 8),
        ("[4,2]<=[2,2,2]T(2,1,0)", 2),
        ("mesh['a'=2,'b'=4] {'b'}", 4),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'c'}", 2),
        ("mesh['a'=8] {'a':(2)4}", 4),
        ("something-new", 0),
    ],
)
def test_group_spellings(groups, size):
    text = f"""HloModule m, num_partitions=8
ENTRY %main (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %r = f32[8]{{0}} all-reduce(%p), channel_id=1, replica_groups={groups}, use_global_device_ids=true, to_apply=%a
}}"""
    assert [c.group_size for c in hlo_collectives(text)] == [size]


def test_text_that_is_no_program():
    with pytest.raises(InternalError, match="ENTRY"):
        hlo_collectives("hello")
