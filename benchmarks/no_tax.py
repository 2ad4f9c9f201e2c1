"""No tax: autopar's step against a hand-written `jax.jit` program with the same layouts, on 2 CPU devices.

    python benchmarks/no_tax.py

Each program is written by hand as JAX users do: `NamedSharding` on what goes in and comes out, and
`with_sharding_constraint` on the activations. Autopar plans the same step with those same layouts of the arguments
as hints, for a cluster on which memory traffic is free and each collective has a long latency: there one all-reduce
is better than the reduce-scatter and all-gather of sequence parallelism, so the activations lie as in the
hand-written program too (with 50 us in place of 500 they do not, and on this CPU the ratio was 1.09). The
collectives of both compiled programs are printed, for the comparison means nothing unless they agree.
Both run in one process, in turn, for many rounds, and swap who goes first; the figure is the median over rounds
of the ratio of autopar's seconds to the hand-written program's, in pairs, so that a machine that slows down slows
both. The overhead of a call alone (checking arguments, dispatch) is measured on a step that computes next to nothing.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from _common import RESULTS, stamp, virtual_devices, write_result

virtual_devices(2)

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from autopar import Cluster, Options
from autopar.api.executable import Executable
from autopar.api.planning import plan_traced
from autopar.lower.hlo import hlo_collectives
from autopar.models.layers.plain import causal_attention, layer_norm
from autopar.trace import trace

LIMIT = 1.05
CLUSTER = Cluster.uniform(2, flops_per_s=5e10, bytes_per_s=float("inf"), link_latency_s=5e-4, link_bytes_per_s=3e9)
MESH = Mesh(np.array(jax.devices()[:2]), ("d",))

Pytree = Any
Row = dict[str, Any]


@dataclass(frozen=True)
class Program:
    """A hand-written program.

    Attributes:
        name: of the table.
        loss: (params, batch, constrain) -> scalar; `constrain(x, *axes)` fixes a layout, or does nothing.
        params: initial parameters.
        batch: the batch.
        param_specs: path pattern -> mesh axis of each dim, for what is split; all else is replicated.
        batch_split: whether the batch is split along its first dim.
    """

    name: str
    loss: Callable[..., jax.Array]
    params: Pytree
    batch: Pytree
    param_specs: dict[str, tuple[str | None, ...]]
    batch_split: bool


def step_of(program: Program, constrain: Callable[..., jax.Array]) -> Callable[[Any, Any], Any]:
    """The training step: Adam on the loss."""
    tx = optax.adam(1e-3)

    def step(state: Any, batch: Any) -> Any:
        params, opt = state
        value, grads = jax.value_and_grad(program.loss)(params, batch, constrain)
        updates, opt = tx.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt), value

    return step


def unconstrained(x: jax.Array, *axes: str | None) -> jax.Array:
    """For autopar: the step without layouts."""
    return x


def constrained(x: jax.Array, *axes: str | None) -> jax.Array:
    """For `jax.jit`: fix the layout."""
    return jax.lax.with_sharding_constraint(x, NamedSharding(MESH, PartitionSpec(*axes)))


def mlp_loss(params: Pytree, batch: Pytree, constrain: Callable[..., jax.Array], megatron: bool) -> jax.Array:
    """Blocks of two products with a residual; Megatron splits the inner dim, data parallel the batch."""
    x = batch["x"]
    for p in params:
        h = jax.nn.gelu(constrain(x @ p["up"], *((None, "d") if megatron else ("d", None))))
        x = x + constrain(h @ p["down"], *((None, None) if megatron else ("d", None)))
    return jnp.mean((x - batch["y"]) ** 2)


def gpt_loss(params: Pytree, batch: Pytree, constrain: Callable[..., jax.Array], megatron: bool) -> jax.Array:
    """GPT blocks; Megatron splits heads and the inner dim, data parallel the batch."""
    rows = None if megatron else "d"
    x = batch["x"]
    for p in params:
        x = constrain(x + causal_attention(p["attn"], layer_norm(p["ln1"], x)), rows, None, None)
        h = constrain(layer_norm(p["ln2"], x) @ p["up"], rows, None, "d" if megatron else None)
        x = constrain(x + jax.nn.gelu(h) @ p["down"], rows, None, None)
    return jnp.mean((x - batch["y"]) ** 2)


def programs() -> list[Program]:
    """Megatron-style and data-parallel forms of an MLP and of GPT blocks."""
    rng = np.random.default_rng(0)
    hidden, sequence, batch = 256, 64, 8

    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * shape[0] ** -0.5

    def attention() -> Pytree:
        heads, width = 8, hidden // 8
        bias = {name: np.zeros((heads, width), np.float32) for name in ("bq", "bv")}
        weights = {name: array(hidden, heads, width) for name in ("wq", "wk", "wv")}
        return {**weights, **bias, "wo": array(heads, width, hidden), "bo": np.zeros(hidden, np.float32)}

    def norm() -> Pytree:
        return {"scale": np.ones(hidden, np.float32), "bias": np.zeros(hidden, np.float32)}

    def feed_forward(width: int) -> Pytree:
        return {"up": array(width, 4 * width), "down": array(4 * width, width)}

    mlp = [feed_forward(hidden) for _ in range(3)]
    gpt = [{"attn": attention(), "ln1": norm(), "ln2": norm(), **feed_forward(hidden)} for _ in range(2)]
    rows = {k: array(256 * batch, hidden) for k in "xy"}  # more rows than columns: data parallel moves less
    tokens = {k: array(batch, sequence, hidden) for k in "xy"}
    tiny = [feed_forward(8) for _ in range(24)]
    few = {k: array(8, 8) for k in "xy"}
    inner = {"up": (None, "d"), "down": ("d", None)}
    heads = {
        **dict.fromkeys(("wq", "wk", "wv"), (None, "d", None)),
        **dict.fromkeys(("bq", "bv"), ("d", None)),
        "wo": ("d", None, None),
    }
    return [
        Program("mlp, megatron", partial(mlp_loss, megatron=True), mlp, rows, inner, False),
        Program("mlp, data", partial(mlp_loss, megatron=False), mlp, rows, {}, True),
        Program("gpt, megatron", partial(gpt_loss, megatron=True), gpt, tokens, {**inner, **heads}, False),
        Program("gpt, data", partial(gpt_loss, megatron=False), gpt, tokens, {}, True),
        Program("dispatch only", partial(mlp_loss, megatron=False), tiny, few, {}, True),
    ]


def spec_of(program: Program, path: Any, leaf: Any) -> PartitionSpec:
    """Layout of a leaf of (state, batch), by the last name in its path."""
    inside = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
    if path[0].idx == 1:
        return PartitionSpec(*(["d"] if program.batch_split else []))
    found = next((program.param_specs[name] for name in reversed(inside) if name in program.param_specs), ())
    return PartitionSpec(*found) if len(found) == np.ndim(leaf) else PartitionSpec()


def measure(program: Program, args: argparse.Namespace) -> Row:
    """Compile both, check that they agree, and run them in turn."""
    state = (program.params, optax.adam(1e-3).init(program.params))
    specs = jax.tree_util.tree_map_with_path(partial(spec_of, program), (state, program.batch))
    places = jax.tree.map(lambda s: NamedSharding(MESH, s), specs)
    placed = jax.tree.map(lambda x, s: jax.device_put(jnp.asarray(x), s), (state, program.batch), places)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), placed)

    hand = jax.jit(
        step_of(program, constrained),
        in_shardings=places,
        out_shardings=(places[0], NamedSharding(MESH, PartitionSpec())),
        donate_argnums=0,
    )
    traced = trace(step_of(program, unconstrained), shapes, {}, donate_argnums=(0,))
    # The paths of the arguments are in the order of the leaves.
    hints = {path: _placement(spec) for path, spec in zip(traced.in_paths, jax.tree.leaves(specs), strict=True)}
    options = Options(mesh=(2,), hints=hints, hint_costs=False, divide_work=True)
    ours = Executable(traced, plan_traced(traced, CLUSTER, options), devices=jax.devices()[:2])

    runs = {"hand": _stepper(hand, placed), "autopar": _stepper(ours, placed)}
    losses = {name: run() for name, run in runs.items()}
    if not np.allclose(losses["hand"], losses["autopar"], rtol=1e-4):
        raise AssertionError(f"{program.name}: the programs disagree, {losses}")
    moved = {"hand": _collectives(hand.lower(*placed).compile()), "autopar": _collectives(ours.programs["step"])}
    return _timed(program, runs, args) | {"collectives": moved}


def _collectives(compiled: jax.stages.Compiled) -> dict[str, tuple[int, int]]:
    """Kind -> count and bytes of the compiled program's collectives of more than a scalar."""
    found: dict[str, tuple[int, int]] = {}
    for c in hlo_collectives(compiled.as_text() or ""):
        if c.elements > 1:
            count, nbytes = found.get(c.kind, (0, 0))
            found[c.kind] = (count + c.times, nbytes + c.times * c.nbytes)
    return found


def _placement(spec: PartitionSpec) -> str:
    split = [d for d, axis in enumerate(spec) if axis == "d"]
    return f"S{split[0]}" if split else "R"


def _stepper(step: Callable[..., Any], placed: Any) -> Callable[[], float]:
    """Runs a step on its own copy of the state, kept from call to call; returns the loss when it is there."""
    state, batch = jax.tree.map(lambda x: x.copy(), placed)

    def run() -> float:
        nonlocal state
        state, loss = step(state, batch)
        jax.block_until_ready(state)
        return float(loss)

    return run


def _timed(program: Program, runs: dict[str, Callable[[], float]], args: argparse.Namespace) -> Row:
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {"hand": [], "autopar": []}
    order = list(runs)
    for _ in range(args.rounds):
        order.reverse()
        for name in order:
            begin = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - begin)
    ratios = [b / a for a, b in zip(seconds["hand"], seconds["autopar"], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    dispatch = program.name.startswith("dispatch")
    return {
        "name": program.name,
        "hand_s": statistics.median(seconds["hand"]),
        "autopar_s": statistics.median(seconds["autopar"]),
        "ratio": median,
        "quartiles": [low, high],
        # What a call costs on top of the program shows only where the program is next to nothing: no bound there.
        "passes": dispatch or median <= LIMIT,
        "leaves": len(jax.tree.leaves(program.params)) * 3 + 3,
        "seconds": seconds,
    }


def main() -> int:
    """Measure every program; 1 if autopar is slower than the bound."""
    args = _arguments()
    print(
        f"{'program':<16}{'hand ms':>9}{'autopar ms':>12}{'ratio':>8}{'quartiles':>16}  collectives by hand | autopar"
    )
    rows: list[Row] = []
    for program in programs():
        if args.only and program.name not in args.only:
            continue
        rows.append(row := measure(program, args))
        low, high = row["quartiles"]
        print(
            f"{row['name']:<16}{row['hand_s'] * 1e3:>9.2f}{row['autopar_s'] * 1e3:>12.2f}{row['ratio']:>8.3f}"
            f"{f'{low:.3f}..{high:.3f}':>16}  "
            + " | ".join(_text(c) for c in row["collectives"].values())
            + ("" if row["passes"] else "  FAILS"),
            flush=True,
        )
        write_result(args.out, {"stamp": stamp(), "limit": LIMIT, "rows": rows})
    return int(not all(row["passes"] for row in rows))


def _text(collectives: dict[str, tuple[int, int]]) -> str:
    return ", ".join(f"{n} {kind} {size / 1e6:.2f} MB" for kind, (n, size) in collectives.items()) or "none"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=100, help="runs of each program (default 100)")
    parser.add_argument("--only", action="append", help="a program's name; may be given again")
    parser.add_argument("--out", type=Path, default=RESULTS / "no_tax.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
