"""The table: primitive name -> the function that writes its rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autopar.ir import Reduce, Rule
from autopar.sharding.rules import batched, contracting, indexing, reducing, shaping, user, windowed
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
    "random_bits", "random_clone", "random_fold_in", "random_gamma", "random_seed", "random_split", "random_unwrap",
    "random_wrap", "rng_bit_generator",
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
    "div": div,
    "imag": elementwise(FIRST, flops=0.0),
    "mul": elementwise(ALONE),
    "name": elementwise(FIRST, flops=0.0),
    "layout_constraint": elementwise(FIRST, flops=0.0),
    "neg": elementwise(FIRST),
    "real": elementwise(FIRST, flops=0.0),
    "select_n": elementwise(CASES),
    "sharding_constraint": elementwise(FIRST, flops=0.0),
    "sub": elementwise(JOINT),
    "threefry2x32": elementwise(flops=THREEFRY_FLOPS),
    # several arrays at once, other widths
    "bitcast_convert_type": bitcast,
    "device_put": each,
    "optimization_barrier": each,
    # shapes
    "broadcast_in_dim": shaping.broadcast_in_dim,
    "concatenate": shaping.concatenate,
    "dynamic_slice": shaping.dynamic_slice,
    "dynamic_update_slice": shaping.dynamic_update_slice,
    "empty": shaping.iota,
    "iota": shaping.iota,
    "pad": shaping.pad,
    "reshape": shaping.reshape,
    "rev": shaping.rev,
    "slice": shaping.slice_,
    "split": shaping.split,
    "squeeze": shaping.squeeze,
    "stack": shaping.stack,
    "tile": shaping.tile,
    "transpose": shaping.transpose,
    "unstack": shaping.unstack,
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
    # contractions, convolutions, windows
    "conv_general_dilated": windowed.conv_general_dilated,
    "dot_general": contracting.dot_general,
    "ragged_dot_general": contracting.ragged_dot_general,
    "reduce_window": windowed.reduce_window(),
    "reduce_window_max": windowed.reduce_window(),
    "reduce_window_min": windowed.reduce_window(),
    "reduce_window_sum": windowed.reduce_window(linear=True),
    "select_and_gather_add": windowed.select_and_gather_add,
    "select_and_scatter_add": windowed.select_and_scatter_add,
    # indexing
    "gather": indexing.gather,
    "scatter": indexing.scatter(linear=(0, 2)),
    "scatter-add": indexing.scatter(sums=True, linear=(0, 2)),
    "scatter-max": indexing.scatter(),
    "scatter-min": indexing.scatter(),
    "scatter-mul": indexing.scatter(linear=(0,)),
    "scatter-sub": indexing.scatter(sums=True, linear=(0, 2)),
    # transforms and linear algebra over leading batch dims
    "cholesky": batched.batched(flops=1 / 3),
    "eigh": batched.batched(flops=9.0),
    "fft": batched.fft,
    "householder_product": batched.batched(flops=4 / 3),
    "lu": batched.batched(flops=2 / 3),
    "lu_pivots_to_permutation": batched.batched(core=1),
    "qr": batched.batched(flops=4 / 3),
    "svd": batched.batched(flops=20.0),
    "triangular_solve": batched.batched(linear=(1,)),
    "tridiagonal_solve": batched.batched(core=1),
}


def rule_for(site: Site) -> Rule | None:
    """The rule of one op, or None where the primitive is unknown and the op therefore opaque.

    A rule given by :func:`register_rule` comes before the table.

    Raises:
      RuleError: a user's rule does not fit the shapes it meets.
    """
    own = user.find(site.primitive)
    builder = own.build if own is not None else TABLE.get(site.primitive)
    return None if builder is None else builder(site)
