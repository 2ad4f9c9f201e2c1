"""Memory limits of the program: rows over what is live at a point, and what they say of a solution.

A row counts, at one position of the step: every value held there, in the layout it is made in; every converted
copy that readers on both sides of the position share; and every copy that is held between the passes. It
counts a copy for as long as any reader of its group is to come, which errs on the safe side.
"""

from __future__ import annotations

from collections.abc import Mapping

import pulp

from autopar.planner.atoms import Atom, is_late
from autopar.planner.formulate import Bundle, Formulation
from autopar.planner.memory import Lifetime, local_bytes

Span = tuple[int, int]


class Budget:
    """The memory rows added to one formulation so far, and what memory costs.

    Attributes:
      rents: what each variable costs beside its time, seconds.
      limits: position -> bytes.
    """

    def __init__(self, formulation: Formulation, lives: tuple[Lifetime, ...]) -> None:
        self._formulation = formulation
        self._lives = lives
        self._spans: dict[tuple[int, bool | None], list[Span]] = {}
        self._terms: dict[int, dict[pulp.LpVariable, float]] = {}
        self.rents: dict[pulp.LpVariable, float] = {}
        self.limits: dict[int, float] = {}

    @property
    def counts(self) -> bool:
        """Whether memory is limited or has a price."""
        return bool(self.limits or self.rents)

    def rent(self, position: int, price: float) -> None:
        """Let each byte that is held at a position cost ``price`` seconds."""
        self.rents = {v: price * n for v, n in self.terms(position).items()}

    def rent_s(self, values: Mapping[str, float]) -> float:
        """What a solution pays for memory, options rounded."""
        rounded = self._rounded(values) if self.rents else {}
        return sum(n * rounded[v.name] for v, n in self.rents.items())

    def limit(self, position: int, nbytes: float) -> None:
        """Add the row for a position, or a tighter one."""
        problem = self._formulation.problem
        self.limits[position] = nbytes
        scale = max(nbytes, 1.0)
        scaled = pulp.LpAffineExpression({v: n / scale for v, n in self.terms(position).items()})
        name = f"memory_{position}_{problem.numConstraints()}"
        problem.addConstraint(pulp.LpConstraint(scaled, pulp.LpConstraintLE, name, nbytes / scale))

    def terms(self, position: int) -> dict[pulp.LpVariable, float]:
        """Bytes at a position as a linear form."""
        found = self._terms.get(position)
        if found is None:
            found = self._terms[position] = {}
            self._made(position, found)
            self._copied(position, found)
        return found

    def _made(self, position: int, terms: dict[pulp.LpVariable, float]) -> None:
        f = self._formulation
        atoms = f.atoms
        values = atoms.step.graph.values
        for life in self._lives:
            if not life.start <= position <= life.end:
                continue
            maker, slot = atoms.producer[life.value]
            root, table = f.nodes.follow[f.classes.of[maker]]
            choices = atoms.choices(atoms.atoms[maker])
            for k, own in enumerate(table):
                variable = f.choice[root][k]
                size = local_bytes(values[life.value], choices[own].results[slot], atoms.mesh)
                terms[variable] = terms.get(variable, 0.0) + size

    def _copied(self, position: int, terms: dict[pulp.LpVariable, float]) -> None:
        mesh = self._formulation.atoms.mesh
        for payment in self._formulation.payments:
            times = self._covering(payment.bundle, payment.late, position)
            for (src, move), variable in payment.moves.items() if times else ():
                size = times * local_bytes(payment.bundle.value, move.apply(src), mesh)
                terms[variable] = terms.get(variable, 0.0) + size
        for hold in self._formulation.holds:
            between = self._covering(hold.bundle, None, position)
            direct = self._covering(hold.bundle, False, position) + self._covering(hold.bundle, True, position)
            if between > direct:
                size = (between - direct) * local_bytes(hold.bundle.value, hold.layout, mesh)
                terms[hold.variable] = terms.get(hold.variable, 0.0) + size

    def _covering(self, bundle: Bundle, late: bool | None, position: int) -> int:
        """How many values of a bundle have readers of a group on both sides of a position (or at it)."""
        key = (bundle.members[0], late)
        if key not in self._spans:
            self._spans[key] = [s for v in bundle.members for s in self._span(v, late)]
        return sum(start <= position <= end for start, end in self._spans[key])

    def _span(self, v: int, late: bool | None) -> list[Span]:
        atoms = self._formulation.atoms
        readers = [atoms.atoms[r] for r, _ in atoms.readers[v]]
        spans = [self._held_for(v, a) for a in readers if late is None or is_late(a) == late]
        return [(min(start for start, _ in spans), max(end for _, end in spans))] if spans else []

    def _held_for(self, v: int, reader: Atom) -> Span:
        """From where to where a reader needs a value: a loop until it ends, new state at the end of the step."""
        atoms = self._formulation.atoms
        end = reader.index
        if reader.kind == "input":
            end = len(atoms.atoms)
            return end, end
        if reader.kind == "port" and reader.op is not None and v in reader.op.operands:
            begins = not set(reader.results).isdisjoint(reader.op.results)  # what goes round lies in its place
            end = reader.index if begins else atoms.ends[reader.op.id]
        return reader.index, end

    def smallest(self, position: int) -> list[tuple[int, float]]:
        """Values held at a position and the bytes each takes at the least, largest first."""
        atoms = self._formulation.atoms
        found = []
        for life in self._lives:
            if life.start <= position <= life.end:
                maker, slot = atoms.producer[life.value]
                value = atoms.step.graph.values[life.value]
                layouts = {c.results[slot] for c in atoms.choices(atoms.atoms[maker])}
                found.append((life.value, float(min(local_bytes(value, x, atoms.mesh) for x in layouts))))
        return sorted(found, key=lambda item: -item[1])

    def held(self, values: Mapping[str, float]) -> frozenset[int]:
        """Values of which converted copies are held between the passes.

        A bundle of many layers may hold a fraction: then that fraction of its layers does.
        """
        shares: dict[tuple[int, ...], float] = {}
        for hold in self._formulation.holds:
            share = values[hold.variable.name]
            if share > 1e-6:
                members = hold.bundle.members
                shares[members] = min(share, shares.get(members, 1.0))
        return frozenset(v for members, x in shares.items() for v in members[: int(x * len(members) + 1e-6)])

    def fits(self, values: Mapping[str, float]) -> bool:
        """Whether a solution, options rounded, keeps every limit."""
        rounded = self._rounded(values)
        return all(
            sum(n * rounded[v.name] for v, n in self.terms(position).items()) <= limit * (1 + 1e-6)
            for position, limit in self.limits.items()
        )

    def _rounded(self, values: Mapping[str, float]) -> dict[str, float]:
        rounded = dict(values)
        for variables in self._formulation.choice.values():
            best = max(variables, key=lambda v: values[v.name])
            rounded.update({v.name: float(v is best) for v in variables})
        return rounded
