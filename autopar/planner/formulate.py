"""The integer program.

Sets. A *node* n chooses one of its options i (a strategy of an op, a layout of an argument; followers and
tied repeats ride along). A *bundle* b is a class of values with one maker and the same readers; it occurs
``times(b)`` times per step. Its layouts L and moves A (single-axis collectives and slices) form the
conversion graph. A *reader* r of b wants some layout of it.

Variables::

    s[n,i] in {0,1}       node n takes option i                                (choose)
    f[b,r,a] >= 0         reader r's copy of b passes over move a              (flow)
    g[b,a] >= 0           move a of b is performed, for whichever reader       (flow)

Minimise::

    sum_n,i  seconds(n,i) s[n,i]  +  sum_b,a  times(b) seconds(a) g[b,a]       (choose, flow)

subject to::

    sum_i s[n,i] = 1                                        for each node       (choose)
    made(b,l) + sum_{a into l} f = wanted(b,r,l) + sum_{a out of l} f
                                                for each bundle, reader, l      (flow)
    f[b,r,a] <= g[b,a]                          where b has several readers     (flow)
    sum_{live at p} bytes <= budget             for each point p that binds     (budget.Budget)

``made(b,l)`` is the sum of the maker's variables whose options make b in layout l; ``wanted`` likewise.
Readers of the forward pass (early) and later ones (late) pay their own moves e and l (each a g of its own), and
may share a move by holding its result in memory from the forward to the backward pass::

    k[b,a] >= 0           move a of b is made once and held     objective - times(b) seconds(a) k[b,a]
    k[b,a] <= e[b,a],  k[b,a] <= l[b,a]                         (hold)

and the memory limit at a point between the passes counts the bytes of what is held.

So a conversion is a path, shared pieces of paths are paid once, and with one reader (f = g) the flow is a
shortest-path problem whose relaxation is integral.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pulp

from autopar.ir import Value
from autopar.planner.atoms import Atom, Atoms, is_late
from autopar.planner.classes import Classes
from autopar.planner.conversion import Arc, Conversions
from autopar.planner.fold import Nodes
from autopar.planner.weigh import Weigher
from autopar.sharding.layout import REPLICATED, Layout, Move

Terms = dict[pulp.LpVariable, float]
Paid = dict[Arc, pulp.LpVariable]
Marginal = dict[Layout, list[int]]  # layout -> options of a node


@dataclass(frozen=True, slots=True)
class Bundle:
    """Values with one maker and the same readers.

    Attributes:
      value: a representative.
      maker: (class, result slot).
      readers: (class, operand slot) pairs, distinct.
      times: executions per step, summed over the values.
      members: the value ids.
    """

    value: Value
    maker: tuple[int, int]
    readers: tuple[tuple[int, int], ...]
    times: float
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Hold:
    """A copy that may be held between the passes: its variable, and its size."""

    variable: pulp.LpVariable
    bundle: Bundle
    layout: Layout


@dataclass(frozen=True, slots=True)
class Payment:
    """The variables that pay for the moves of a bundle for its early or late readers (None: all)."""

    bundle: Bundle
    late: bool | None
    moves: Paid


@dataclass
class Formulation:
    """The program and the meaning of its variables."""

    problem: pulp.LpProblem
    choice: dict[int, list[pulp.LpVariable]]  # root -> variables, one per option
    bundles: list[Bundle]
    atoms: Atoms
    classes: Classes
    nodes: Nodes
    holds: list[Hold] = field(default_factory=list)
    payments: list[Payment] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """(variables, constraints)."""
        return self.problem.numVariables(), self.problem.numConstraints()

    def lift(self, option: Mapping[int, int]) -> tuple[int, ...]:
        """From an option per root back to a choice per atom."""
        chosen = []
        for c in self.classes.of:
            root, table = self.nodes.follow[c]
            chosen.append(table[option[root]])
        return tuple(chosen)


def bundle_values(atoms: Atoms, classes: Classes) -> list[Bundle]:
    """Group values by maker and readers."""
    groups: dict[object, list[int]] = {}
    for v, (maker, slot) in atoms.producer.items():
        readers = tuple(sorted({(classes.of[r], k) for r, k in atoms.readers.get(v, ())}))
        if readers:
            groups.setdefault((classes.of[maker], slot, readers), []).append(v)
    values = atoms.step.graph.values
    return [
        Bundle(values[ids[0]], key[:2], key[2], sum(atoms.frequency[v] for v in ids), tuple(ids))  # type: ignore[index]
        for key, ids in groups.items()
    ]


def formulate(
    atoms: Atoms,
    classes: Classes,
    nodes: Nodes,
    bundles: list[Bundle],
    weigher: Weigher,
    conversions: Conversions,
) -> Formulation:
    """Build the program. ``bundles`` are those of :func:`bundle_values`, the same on every mesh."""
    problem = pulp.LpProblem("layouts", pulp.LpMinimize)
    builder = _Builder(problem, atoms, classes, nodes, weigher, conversions)
    builder.choose()
    for index, bundle in enumerate(bundles):
        builder.hold(index, bundle)
    problem.setObjective(pulp.LpAffineExpression(builder.objective))
    for terms, sense, right, name in builder.rows:
        problem.addConstraint(pulp.LpConstraint(pulp.LpAffineExpression(terms), sense, name, right))
    return Formulation(problem, builder.choice, bundles, atoms, classes, nodes, builder.holds, builder.payments)


class _Builder:
    def __init__(
        self,
        problem: pulp.LpProblem,
        atoms: Atoms,
        classes: Classes,
        nodes: Nodes,
        weigher: Weigher,
        conversions: Conversions,
    ) -> None:
        self.problem = problem
        self.atoms = atoms
        self.classes = classes
        self.nodes = nodes
        self.weigher = weigher
        self.conversions = conversions
        self.choice: dict[int, list[pulp.LpVariable]] = {}
        self.objective: Terms = {}
        self.holds: list[Hold] = []
        self.payments: list[Payment] = []
        self.rows: list[tuple[Terms, int, float, str]] = []

    def choose(self) -> None:
        """One option per node, at its seconds."""
        for root, group in self.nodes.groups.items():
            options = len(self.nodes.follow[root][1])
            cost = [0.0] * options
            for c in group:
                table = self.nodes.follow[c][1]
                for seconds, runs in self._prices(c):
                    for k, own in enumerate(table):
                        cost[k] += runs * seconds[own]
            variables = [self.problem.add_variable(f"s_{root}_{k}", 0, 1, pulp.LpInteger) for k in range(options)]
            self.choice[root] = variables
            for variable, seconds_k in zip(variables, cost, strict=True):
                if seconds_k:
                    self.objective[variable] = seconds_k
            self.rows.append((dict.fromkeys(variables, 1.0), pulp.LpConstraintEQ, 1.0, f"one_{root}"))

    def _prices(self, c: int) -> Iterable[tuple[tuple[float, ...], float]]:
        """Seconds of each choice, and runs per step, of the members of a class; equal prices together."""
        runs: dict[int, tuple[Atom, float]] = {}
        for m in self.classes.members[c]:
            atom = self.atoms.atoms[m]
            key = self.weigher.key(atom)
            first, before = runs.get(key, (atom, 0.0))
            runs[key] = (first, before + atom.frequency)
        return [(self.weigher.seconds(atom), n) for atom, n in runs.values()]

    def marginal(self, c: int, slot: int, *, made: bool) -> tuple[int, Marginal]:
        """Root of a class, and for each layout of a slot the root options that give it."""
        root, table = self.nodes.follow[c]
        choices = self.atoms.choices(self.atoms.atoms[self.classes.members[c][0]])
        found: Marginal = {}
        for k, own in enumerate(table):
            layout = choices[own].results[slot] if made else choices[own].operands[slot]
            found.setdefault(layout, []).append(k)
        return root, found

    def hold(self, index: int, bundle: Bundle) -> None:
        """Early and late readers pay apart, or once for what is held between the passes."""
        late = [r for r in bundle.readers if is_late(self.atoms.atoms[self.classes.members[r[0]][0]])]
        early = [r for r in bundle.readers if r not in late]
        paid = [self.flow(f"{index}{when}", bundle, readers) for when, readers in (("e", early), ("l", late))]
        self.payments += [
            Payment(bundle, when, moves) for when, moves in zip((False, True), paid, strict=True) if moves
        ]
        for n, (arc, variable) in enumerate(paid[0].items()):
            seconds = self.conversions.seconds(bundle.value, *arc) * bundle.times
            if arc not in paid[1] or not seconds:
                continue
            k = self.problem.add_variable(f"k_{index}_{n}", 0, 1)
            self.objective[k] = -seconds
            for other, side in ((variable, "e"), (paid[1][arc], "l")):
                self.rows.append(({k: 1.0, other: -1.0}, pulp.LpConstraintLE, 0.0, f"hold_{index}_{n}{side}"))
            self.holds.append(Hold(k, bundle, arc[1].apply(arc[0])))

    def flow(self, name: str, bundle: Bundle, readers: Iterable[tuple[int, int]]) -> Paid:
        """Conversions of one bundle to what readers want; returns the variable that pays for each move."""
        maker, made = self.marginal(*bundle.maker, made=True)
        wants: dict[object, tuple[int, Marginal]] = {}
        for c, slot in readers:
            reader, wanted = self.marginal(c, slot, made=False)
            if reader == maker and wanted == made:
                continue
            wants[(reader, tuple((x, tuple(k)) for x, k in wanted.items()))] = (reader, wanted)
        paid: Paid = {}
        for r, (reader, wanted) in enumerate(wants.values()):
            self._reader(f"{name}_{r}", bundle, (maker, made), (reader, wanted), paid, alone=len(wants) == 1)
        return paid

    def _reader(
        self,
        name: str,
        bundle: Bundle,
        maker: tuple[int, Marginal],
        reader: tuple[int, Marginal],
        paid: Paid,
        *,
        alone: bool,
    ) -> None:
        useful = self._useful(bundle.value, maker[1], reader[1])
        balance: dict[Layout, Terms] = {}
        for layout, options in maker[1].items():
            row = balance.setdefault(layout, {})
            for k in options:
                row[self.choice[maker[0]][k]] = 1.0
        for layout, options in reader[1].items():
            row = balance.setdefault(layout, {})
            for k in options:
                variable = self.choice[reader[0]][k]
                row[variable] = row.get(variable, 0.0) - 1.0
        for n, (src, move, dst, seconds) in enumerate(useful):
            f = self.problem.add_variable(f"f_{name}_{n}", 0, 1)
            cost = seconds * bundle.times
            if alone:
                self.objective[f] = cost
                paid[src, move] = f
            else:
                g = paid.get((src, move))
                if g is None:
                    g = paid[src, move] = self.problem.add_variable(f"g_{name}_{len(paid)}", 0, 1)
                    self.objective[g] = cost
                self.rows.append(({f: 1.0, g: -1.0}, pulp.LpConstraintLE, 0.0, f"pay_{name}_{n}"))
            balance.setdefault(src, {})[f] = -1.0
            balance.setdefault(dst, {})[f] = 1.0
        for n, row in enumerate(balance.values()):
            terms = {variable: a for variable, a in row.items() if a}
            if terms:
                self.rows.append((terms, pulp.LpConstraintEQ, 0.0, f"bal_{name}_{n}"))

    def _useful(
        self, value: Value, made: Iterable[Layout], wanted: Iterable[Layout]
    ) -> list[tuple[Layout, Move, Layout, float]]:
        """Arcs on some path from a made layout to a wanted one.

        On each axis a path stays with placements that some end has there, or none: passing through a split or a
        partial sum that neither end knows only costs.
        """
        made, wanted = set(made), set(wanted)
        ends = made | wanted
        per_axis = [{x[axis] for x in ends} | {REPLICATED} for axis in range(len(self.conversions.mesh.shape))]
        forward: dict[Layout, list[tuple[Layout, Move, Layout, float]]] = {}
        todo, seen = list(made), set(made)
        backward: dict[Layout, list[Layout]] = {}
        while todo:
            src = todo.pop()
            out = []
            for move, dst, seconds in self.conversions.outgoing(value, src):
                if move.dst not in per_axis[move.axis]:
                    continue
                out.append((src, move, dst, seconds))
                backward.setdefault(dst, []).append(src)
                if dst not in seen:
                    seen.add(dst)
                    todo.append(dst)
            forward[src] = out
        reach, todo = set(wanted & seen), list(wanted & seen)
        while todo:
            for src in backward.get(todo.pop(), ()):
                if src not in reach:
                    reach.add(src)
                    todo.append(src)
        return [arc for src, arcs in forward.items() if src in reach for arc in arcs if arc[2] in reach]
