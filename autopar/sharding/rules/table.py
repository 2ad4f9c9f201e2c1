"""The table: primitive name -> the function that writes its rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autopar.ir import Reduce, Rule
from autopar.sharding.rules import contracting, reducing, shaping
from autopar.sharding.rules.elementwise import (
    ALONE,
    ARITHMETIC,
    CASES,
    FIRST,
    JOINT,
    THREEFRY_FLOPS,
    TRANSCENDENTAL,
    TRANSCENDENTAL_FLOPS,
    bitcast,
    div,
    each,
    elementwise,
)
from autopar.sharding.rules.site import Site, opaque_rule

Builder = Callable[[Site], Rule]

# Random keys are small and their primitives are no functions of position: everything whole, but known.
WHOLE = frozenset({
    "random_bits", "random_clone", "random_fold_in", "random_seed", "random_split", "random_unwrap", "random_wrap",
    "rng_bit_generator", "rng_uniform",
})  # fmt: skip

TABLE: Mapping[str, Builder] = {
    **dict.fromkeys(TRANSCENDENTAL, elementwise(flops=TRANSCENDENTAL_FLOPS)),
    **dict.fromkeys(ARITHMETIC, elementwise()),
    **dict.fromkeys(WHOLE, opaque_rule),
    # elementwise and linear
    "add": elementwise(JOINT),
    "add_any": elementwise(JOINT),
    "complex": elementwise(JOINT, flops=0.0),
    "conj": elementwise(FIRST),
    "convert_element_type": elementwise(FIRST),
    "copy": elementwise(FIRST, flops=0.0),
    "copy_p": elementwise(FIRST, flops=0.0),
    "div": div,
    "imag": elementwise(FIRST, flops=0.0),
    "mul": elementwise(ALONE),
    "name": elementwise(FIRST, flops=0.0),
    "neg": elementwise(FIRST),
    "real": elementwise(FIRST, flops=0.0),
    "select_n": elementwise(CASES),
    "sub": elementwise(JOINT),
    "threefry2x32": elementwise(flops=THREEFRY_FLOPS),
    # several arrays at once, other widths
    "bitcast_convert_type": bitcast,
    "optimization_barrier": each,
    # shapes
    "broadcast_in_dim": shaping.broadcast_in_dim,
    "concatenate": shaping.concatenate,
    "dynamic_slice": shaping.dynamic_slice,
    "dynamic_update_slice": shaping.dynamic_update_slice,
    "iota": shaping.iota,
    "pad": shaping.pad,
    "reshape": shaping.reshape,
    "rev": shaping.rev,
    "slice": shaping.slice_,
    "split": shaping.split,
    "squeeze": shaping.squeeze,
    "transpose": shaping.transpose,
    # reductions, scans, sorting
    "argmax": reducing.reduction(None),
    "argmin": reducing.reduction(None),
    "cumlogsumexp": reducing.along("axis"),
    "cummax": reducing.along("axis"),
    "cummin": reducing.along("axis"),
    "cumprod": reducing.along("axis"),
    "cumsum": reducing.along("axis", linear=True),
    "reduce": reducing.reduce_any,
    "reduce_and": reducing.reduction(Reduce.MIN, bools=True),
    "reduce_max": reducing.reduction(Reduce.MAX),
    "reduce_min": reducing.reduction(Reduce.MIN),
    "reduce_or": reducing.reduction(Reduce.MAX, bools=True),
    "reduce_prod": reducing.reduction(None),
    "reduce_sum": reducing.reduction(Reduce.SUM, linear=True),
    "reduce_xor": reducing.reduction(None),
    "sort": reducing.along("dimension"),
    "top_k": reducing.top_k,
    # contractions
    "dot_general": contracting.dot_general,
}


def rule_for(site: Site) -> Rule | None:
    """The rule of one op, or None where the primitive is unknown and the op therefore opaque."""
    builder = TABLE.get(site.primitive)
    return None if builder is None else builder(site)
