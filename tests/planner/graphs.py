"""Small random steps built by hand, and the exhaustive oracle. Neither knows anything of the planner's program."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping

from autopar.cost import collective_s, compute_s
from autopar.ir import Graph, Op, Step, Value, Where, item_bytes, verify
from autopar.mesh import Cluster, LogicalMesh
from autopar.sharding.layout import LOCAL, Layout, fits, local_size, moves
from autopar.sharding.rules import Site, rule_for
from autopar.sharding.strategy import strategies

Option = tuple[tuple[Layout, ...], tuple[Layout, ...], float]


class StepBuilder:
    """Builds a graph op by op."""

    def __init__(self) -> None:
        self.values: dict[int, Value] = {}
        self.ops: list[Op] = []
        self.inputs: list[int] = []

    def value(self, shape, name="") -> int:
        v = len(self.values)
        self.values[v] = Value(v, tuple(shape), "float32", name)
        return v

    def input(self, shape, name) -> int:
        v = self.value(shape, name)
        self.inputs.append(v)
        return v

    def op(self, primitive, operands, shape, phase="forward", **params) -> int:
        v = self.value(shape)
        site = Site(primitive, tuple(self.values[x] for x in operands), (self.values[v],), params, {})
        where = Where(line=f"line {len(self.ops)}", stack=str(len(self.ops)), phase=phase)
        self.ops.append(Op(len(self.ops), primitive, tuple(operands), (v,), rule_for(site), repr(params), where))
        return v

    def matmul(self, a, b, ca=1, cb=0) -> int:
        sa, sb = self.values[a].shape, self.values[b].shape
        dims = (((ca,), (cb,)), ((), ()))
        shape = (sa[1 - ca], sb[1 - cb])
        return self.op("dot_general", (a, b), shape, dimension_numbers=dims, preferred_element_type="float32")

    def step(self, outputs, state=()) -> Step:
        batch = tuple(i for i, v in enumerate(self.inputs) if self.values[v].name.startswith("x"))
        graph = Graph(tuple(self.inputs), tuple(outputs), tuple(self.ops), self.values)
        return Step(verify(graph), state=tuple(state), batch=batch)


def random_step(rng: random.Random, ops: int) -> Step:
    """A few matrix products, sums, elementwise ops and reductions over 2-d values, some kept as state."""
    b = StepBuilder()
    n = 8
    pool = [b.input((rng.choice([4, 8, 16]), n), "x0"), b.input((n, n), "w0")]
    for _ in range(ops):
        kind = rng.choice(["matmul", "matmul", "add", "mul", "tanh", "reduce", "transpose"])
        a = rng.choice([v for v in pool if len(b.values[v].shape) == 2])
        shape = b.values[a].shape
        if kind == "matmul":
            ca = rng.choice([0, 1])
            mates = [(v, d) for v in pool for d, size in enumerate(b.values[v].shape)
                     if len(b.values[v].shape) == 2 and size == shape[ca]]  # fmt: skip
            v, cb = rng.choice(mates)
            pool.append(b.matmul(a, v, ca, cb))
        elif kind in ("add", "mul"):
            other = rng.choice([v for v in pool if b.values[v].shape == shape])
            pool.append(b.op(kind, (a, other), shape))
        elif kind == "tanh":
            pool.append(b.op("tanh", (a,), shape, accuracy=None))
        elif kind == "transpose":
            pool.append(b.op("transpose", (a,), shape[::-1], permutation=(1, 0)))
        else:
            pool.append(b.op("reduce_sum", (a,), (shape[1],), axes=(0,)))
    used = {v for op in b.ops for v in op.operands}
    outputs = [v for v in pool if v not in used and v not in b.inputs] or [pool[-1]]
    state = []
    for o, v in enumerate(outputs):
        for i, w in enumerate(b.inputs):
            if b.values[v].shape == b.values[w].shape and all(i != j for j, _ in state):
                state.append((i, o))
                break
    return b.step(outputs, state)


def exhaustive(step: Step, cluster: Cluster, mesh: LogicalMesh, fixed: Mapping[int, Layout] | None = None) -> float:
    """The least step time over every combination of strategies and layouts: enumeration, no program.

    Atoms are enumerated in order with a bound (partial cost already above the best), conversions by an own
    all-pairs shortest path and a Steiner tree over reader orders. Inputs that are ``fixed`` lie so.
    """
    graph = step.graph
    values = graph.values
    sizes = mesh.shape
    conversion = _Trees(mesh)
    state = {graph.inputs[i]: graph.outputs[o] for i, o in step.state}
    options: list[tuple[tuple[int, ...], tuple[int, ...], list[Option]]] = []
    for v in graph.inputs:
        every = [fixed[v]] if fixed and v in fixed else _layouts(values[v], sizes)
        reads = (state[v],) if v in state else ()
        options.append((reads, (v,), [((x,) * len(reads), (x,), 0.0) for x in every]))
    price = _prices(graph, cluster, sizes)
    for op in graph.ops:
        found = [(s.operands, s.results, price(op, s)) for s in strategies(op.rule, sizes)]
        options.append((op.operands, op.results, found))
    for o, v in enumerate(graph.outputs):
        if o not in {o for _, o in step.state}:
            every = _layouts(values[v], sizes)
            options.append(((v,), (), [((x,), (), 0.0) for x in every]))
    readers: dict[int, list[tuple[int, int]]] = {}
    for a, (reads, _, _) in enumerate(options):
        for k, v in enumerate(reads):
            readers.setdefault(v, []).append((a, k))
    maker = {v: (a, j) for a, (_, makes, _) in enumerate(options) for j, v in enumerate(makes)}
    ready: dict[int, list[int]] = {}  # option index -> values whose maker and readers are all chosen by then
    for v, (a, _) in maker.items():
        if v in readers:
            ready.setdefault(max([a, *(r for r, _ in readers[v])]), []).append(v)
    best = float("inf")
    chosen: list[int] = []

    def descend(a: int, cost: float) -> None:
        nonlocal best
        if cost >= best:
            return
        if a == len(options):
            best = cost
            return
        for i in sorted(range(len(options[a][2])), key=lambda i: options[a][2][i][2]):
            chosen.append(i)
            extra = options[a][2][i][2]
            for v in ready.get(a, ()):
                m, j = maker[v]
                made = options[m][2][chosen[m]][1][j]
                wants = {options[r][2][chosen[r]][0][k] for r, k in readers[v]}
                extra += conversion.tree(values[v], made, wants)
                if cost + extra >= best:
                    break
            descend(a + 1, cost + extra)
            chosen.pop()

    descend(0, 0.0)
    return best


def _layouts(value: Value, sizes) -> list[Layout]:
    states = (-1, *range(len(value.shape)))
    return [x for x in itertools.product(states, repeat=len(sizes)) if fits(value.shape, x, sizes)]


class _Trees:
    """Least cost of serving a set of layouts from one, by dynamic programming over the layout graph."""

    def __init__(self, mesh: LogicalMesh) -> None:
        self.mesh = mesh
        self.distances: dict[object, dict[Layout, dict[Layout, float]]] = {}
        self.trees: dict[object, float] = {}

    def tree(self, value: Value, made: Layout, wants: set[Layout]) -> float:
        targets = frozenset(wants - {made})
        if not targets:
            return 0.0
        key = (value.shape, made, targets)
        if key not in self.trees:
            self.trees[key] = self._steiner(self._all_pairs(value.shape), made, targets)
        return self.trees[key]

    def _steiner(self, d, root: Layout, targets: frozenset[Layout]) -> float:
        """Dreyfus-Wagner on the directed graph."""
        terminals = sorted(targets)
        nodes = list(d)
        inf = float("inf")
        table = {}
        for i, t in enumerate(terminals):
            table[1 << i] = {v: d[v].get(t, inf) for v in nodes}
        for mask in range(1, 1 << len(terminals)):
            if mask in table:
                continue
            joined = dict.fromkeys(nodes, inf)
            part = (mask - 1) & mask
            while part:
                for v in nodes:
                    joined[v] = min(joined[v], table[part][v] + table[mask ^ part][v])
                part = (part - 1) & mask
            table[mask] = {v: min(d[v].get(u, inf) + joined[u] for u in nodes) for v in nodes}
        return table[(1 << len(terminals)) - 1][root]

    def _all_pairs(self, shape):
        if shape in self.distances:
            return self.distances[shape]
        sizes = self.mesh.shape
        start = (-1,) * len(sizes)
        todo, edges = [start], {}
        while todo:
            x = todo.pop()
            if x in edges:
                continue
            edges[x] = {}
            for m in moves(shape, x, sizes):
                y = m.apply(x)
                nbytes = 4 * max(local_size(shape, x, sizes), local_size(shape, y, sizes))
                edges[x][y] = 0.0 if m.kind in LOCAL else collective_s(m.kind, self.mesh.axes[m.axis], nbytes)
                todo.append(y)
        d = {x: {**e, x: 0.0} for x, e in edges.items()}
        for k in d:
            for i in d:
                if k in d[i]:
                    base = d[i][k]
                    for j, c in d[k].items():
                        if base + c < d[i].get(j, float("inf")):
                            d[i][j] = base + c
        self.distances[shape] = d
        return d


def _prices(graph: Graph, cluster: Cluster, sizes) -> Callable[..., float]:
    """Roofline of one op, with memory traffic only where a value crosses kernels, written out afresh."""
    fused = {"tanh", "add", "mul", "transpose", "reduce_sum"}
    parent = {op.id: op.id for op in graph.ops}

    def find(i):
        while parent[i] != i:
            i = parent[i]
        return i

    maker = {op.results[0]: op for op in graph.ops}
    for op in graph.ops:
        for v in op.operands:
            m = maker.get(v)
            if m is not None and op.primitive in fused and m.primitive in fused - {"reduce_sum"}:
                parent[find(op.id)] = find(m.id)
    readers: dict[int, list[Op]] = {}
    for op in graph.ops:
        for v in op.operands:
            readers.setdefault(v, []).append(op)
    reads: dict[int, list[bool]] = {}
    seen = set()
    for op in graph.ops:
        flags = []
        for v in op.operands:
            outside = v not in maker or find(maker[v].id) != find(op.id)
            flags.append(outside and (find(op.id), v) not in seen)
            seen.add((find(op.id), v))
        reads[op.id] = flags

    def price(op, s):
        nbytes = 0
        for v, x, flag in zip(op.operands, s.operands, reads[op.id], strict=True):
            nbytes += flag * item_bytes("float32") * local_size(graph.values[v].shape, x, sizes)
        v = op.results[0]
        if v in graph.outputs or any(find(r.id) != find(op.id) for r in readers.get(v, [])):
            nbytes += 4 * local_size(graph.values[v].shape, s.results[0], sizes)
        return compute_s(cluster.device, "float32", op.rule.flops / s.parallel, nbytes)

    return price
