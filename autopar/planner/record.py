"""From choices to a plan: the layouts, the conversions, and what they cost.

This is the way back from the program's variables, and the only place where a plan is priced: searched,
restricted and hand-made choices go through here alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from autopar.cost import collective_s
from autopar.errors import InternalError
from autopar.ir import product_flops
from autopar.mesh import Cluster, Device, LogicalMesh
from autopar.plan import Argument, Certificate, CollectiveRecord, MeshAxis, PlanFacts
from autopar.planner.atoms import Atom, Atoms, is_late
from autopar.planner.conversion import Arc, Conversions, moved_bytes
from autopar.planner.memory import Profile, argument_kinds, profile
from autopar.planner.weigh import Weigher, halo_exchanges
from autopar.sharding.layout import LOCAL, Collective, Layout, text


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the step where a plan communicates.

    Attributes:
      kind: XLA's name of the collective.
      axis: name of the mesh axis that it runs over.
      bytes: bytes on one device of the larger of operand and result, of one execution.
      phase: ``forward``, ``backward`` or ``update``.
      where: scope and user line of the op that needs it.
      cause: what changes, as in :class:`autopar.plan.CollectiveRecord`.
      op: id of the op that needs it first, -1 if it is no op.
      form: of a conversion, the value, the layout that it makes, and whether for late readers alone; None of a halo.
      times: executions per step.
      seconds: of all of them together.
    """

    kind: str
    axis: str
    bytes: int
    phase: str
    where: str
    cause: str
    op: int
    form: tuple[int, Layout, bool] | None
    times: float
    seconds: float


def collective_records(sites: Iterable[Site]) -> tuple[CollectiveRecord, ...]:
    """What is communicated, equal collectives counted together, those that take longest first."""
    groups: dict[tuple[str, str, int, str, str, str], list[Site]] = {}
    for site in sites:
        groups.setdefault((site.kind, site.axis, site.bytes, site.phase, site.where, site.cause), []).append(site)
    found = [
        CollectiveRecord(
            kind, (axis,), nbytes, round(sum(s.times for s in those)), len(those), sum(s.seconds for s in those),
            phase, where, cause,
        )
        for (kind, axis, nbytes, phase, where, cause), those in groups.items()
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda c: -c.seconds))


@dataclass(frozen=True)
class Priced:
    """A full set of choices and its price.

    Attributes:
      choices: atom index -> option.
      made: value id -> layout as made.
      moves: (value id, for late readers only) -> conversions in order.
      compute_s, communication_s: seconds per step (halo exchanges count as communication).
      collectives: what is communicated.
      memory: the profile of one device.
      phase_s: seconds per step by phase of the work.
      sites: where each collective stands.
      rent_s: what the memory that is held is worth, if memory has a price.
    """

    choices: tuple[int, ...]
    made: Mapping[int, Layout]
    moves: Mapping[tuple[int, bool], tuple[Arc, ...]]
    compute_s: float
    communication_s: float
    collectives: tuple[CollectiveRecord, ...]
    memory: Profile
    phase_s: Mapping[str, float]
    sites: tuple[Site, ...]
    rent_s: float = 0.0

    @property
    def step_s(self) -> float:
        """Predicted seconds per step."""
        return self.compute_s + self.communication_s

    @property
    def cost_s(self) -> float:
        """What is minimised."""
        return self.step_s + self.rent_s


def price(
    atoms: Atoms,
    choices: Sequence[int],
    weigher: Weigher,
    conversions: Conversions,
    mesh: LogicalMesh,
    *,
    held: frozenset[int] | None = None,
) -> Priced:
    """Price a choice for every atom.

    Converted copies serve readers after the forward pass too if their value is in ``held`` (None: all are);
    other values are converted anew (see planner.formulate).

    Raises:
      InternalError: a reader wants a layout that its operand cannot be converted to.
    """
    values = atoms.step.graph.values
    made: dict[int, Layout] = {}
    wanted: dict[tuple[int, bool], dict[Layout, None]] = {}
    operands: list[tuple[Layout, ...]] = []
    needs: dict[tuple[int, bool, Layout], int] = {}
    work_s = 0.0
    phase_s = dict.fromkeys(("forward", "backward", "update"), 0.0)
    ledger = _Ledger(atoms, mesh)
    for atom in atoms.atoms:
        choice = atoms.choices(atom)[choices[atom.index]]
        atom_s = atom.frequency * weigher.seconds(atom)[choices[atom.index]]
        work_s += atom_s
        phase_s[_phase(atom)] += atom_s
        made.update(zip(atom.results, choice.results, strict=True))
        operands.append(choice.operands)
        for v, layout in zip(atom.operands, choice.operands, strict=True):
            late = held is not None and v not in held and is_late(atom)
            wanted.setdefault((v, late), {})[layout] = None
            needs.setdefault((v, late, layout), atom.index)
        if choice.names:
            ledger.halo(atom.index, choice.names)
    moves: dict[tuple[int, bool], tuple[Arc, ...]] = {}
    for (v, late), layouts in wanted.items():
        seconds, arcs = conversions.tree(values[v], made[v], layouts)
        if not math.isfinite(seconds):
            raise InternalError(f"value {v} cannot go from {text(made[v])} to {[text(x) for x in layouts]}")
        if arcs:
            moves[v, late] = arcs
            ledger.conversion(v, late, arcs, conversions, needs)
    collectives = collective_records(ledger.sites)
    communication_s = sum(c.seconds for c in collectives)
    halo_s = sum(c.seconds for c in collectives if c.cause == "halo")
    for c in collectives:
        phase_s[c.phase] += c.seconds if c.cause != "halo" else 0.0
    memory = profile(atoms, operands, made, moves, reordered=conversions.device.reordered)
    return Priced(
        tuple(choices), made, moves, work_s - halo_s, communication_s, collectives, memory, phase_s, tuple(ledger.sites)
    )


def work_seconds(atoms: Atoms, priced: Priced, weigher: Weigher) -> dict[int, float]:
    """Seconds per step of each op, by its id, without what it communicates."""
    found = {
        atom.op.id: atom.frequency * weigher.seconds(atom)[priced.choices[atom.index]]
        for atom in atoms.atoms
        if atom.op is not None
    }
    for site in priced.sites:
        if site.form is None:
            found[site.op] -= site.seconds
    return found


def _phase(atom: Atom) -> str:
    return atom.op.where.phase if atom.op is not None else "update"


class _Ledger:
    """Collects the places where a plan communicates."""

    def __init__(self, atoms: Atoms, mesh: LogicalMesh) -> None:
        self._atoms = atoms
        self._mesh = mesh
        self.sites: list[Site] = []

    def _add(
        self, kind: Collective, axis: int, nbytes: int, times: float, seconds: float, atom: int, cause: str,
        form: tuple[int, Layout, bool] | None = None,
    ) -> None:  # fmt: skip
        op = self._atoms.atoms[atom].op
        where = op.where if op else None
        place = (where.scope or where.line) if where else self._atoms.atoms[atom].name
        phase = where.phase if where else "update"
        name = self._mesh.names[axis]
        seconds *= times
        reader = op.id if op else -1
        self.sites.append(Site(kind.value, name, nbytes, phase, place, cause, reader, form, times, seconds))

    def halo(self, atom_index: int, names: Sequence[str]) -> None:
        atom = self._atoms.atoms[atom_index]
        if atom.op is None:
            return
        for e in halo_exchanges(atom.op, names, self._atoms.mesh, self._atoms.step.graph.values):
            seconds = collective_s(Collective.PERMUTE, self._mesh.axes[e.axis], e.nbytes)
            self._add(Collective.PERMUTE, e.axis, e.nbytes, atom.frequency, seconds, atom_index, "halo")

    def conversion(
        self,
        v: int,
        late: bool,
        arcs: Sequence[Arc],
        conversions: Conversions,
        needs: Mapping[tuple[int, bool, Layout], int],
    ) -> None:
        value = self._atoms.step.graph.values[v]
        times = self._atoms.frequency[v]
        for src, move in arcs:
            if move.kind in LOCAL:
                continue
            reader = needs.get((v, late, move.apply(src)), self._atoms.producer[v][0])
            nbytes = moved_bytes(value.shape, value.dtype, src, move, self._atoms.mesh)
            cause = f"{text((move.src,))}->{text((move.dst,))}"
            seconds, form = conversions.seconds(value, src, move), (v, move.apply(src), late)
            self._add(move.kind, move.axis, nbytes, times, seconds, reader, cause, form)


def write_plan(
    atoms: Atoms,
    priced: Priced,
    cluster: Cluster,
    mesh: LogicalMesh,
    strategy: str,
    certificate: Certificate,
    warnings: Sequence[str] = (),
) -> PlanFacts:
    """Write down priced choices as a plan."""
    step = atoms.step
    graph = step.graph
    kinds = argument_kinds(atoms)
    ops: dict[int, tuple[str, ...]] = {}
    layouts: dict[int, Layout] = {}
    for atom in atoms.atoms:
        choice = atoms.choices(atom)[priced.choices[atom.index]]
        if atom.kind == "op":
            assert atom.op is not None
            ops[atom.op.id] = choice.names
        else:
            layouts.update(zip(atom.results, choice.results, strict=True))
    arguments = tuple(
        Argument(graph.values[v].name, graph.values[v].shape, graph.values[v].dtype, layouts[v], kinds[v])
        for v in (*graph.inputs, *graph.constants)
    )
    return PlanFacts(
        name=step.name,
        strategy=strategy,
        fingerprint=graph.fingerprint,
        cluster=cluster.to_dict(),
        mesh=tuple(MeshAxis(n, s) for n, s in zip(mesh.names, mesh.shape, strict=True)),
        arguments=arguments,
        results=_results(atoms, priced, layouts),
        ops=ops,
        layouts=layouts,
        moves={v: arcs for (v, late), arcs in priced.moves.items() if not late},
        remade={v: arcs for (v, late), arcs in priced.moves.items() if late},
        step_s=priced.step_s,
        compute_s=priced.compute_s,
        communication_s=priced.communication_s,
        peak_bytes=priced.memory.peak_bytes,
        memory=dict(priced.memory.by_kind),
        collectives=priced.collectives,
        certificate=certificate,
        warnings=tuple(warnings),
        phase_s=dict(priced.phase_s),
        flops=product_flops(graph),
        again_flops=sum(product_flops(graph, again=True).values()),
    )


def with_call(plan: PlanFacts, call_s: float) -> PlanFacts:
    """The plan, its program being called once per step: the same for every choice, so no choice depends on it."""
    if not call_s:
        return plan
    proof = plan.certificate
    proof = replace(
        proof,
        objective_s=proof.objective_s + call_s,
        bound_s=proof.bound_s + call_s,
        gap=(proof.objective_s - proof.bound_s) / (proof.objective_s + call_s),
    )
    return replace(
        plan,
        step_s=plan.step_s + call_s,
        compute_s=plan.compute_s + call_s,
        phase_s=dict(plan.phase_s) | {"update": plan.phase_s["update"] + call_s},
        certificate=proof,
        runners_up=tuple(replace(r, step_s=r.step_s + call_s) for r in plan.runners_up),
    )


def call_s(plan: PlanFacts, device: Device) -> float:
    """Seconds to call the plan's program, as far as that was measured: it grows with arguments and results."""
    return device.rates.call_s(len(plan.arguments) + len(plan.results)) if device.rates is not None else 0.0


def _results(atoms: Atoms, priced: Priced, layouts: Mapping[int, Layout]) -> tuple[Argument, ...]:
    graph = atoms.step.graph
    state = {o: graph.inputs[i] for i, o in atoms.step.state}
    sinks = {a.name: a for a in atoms.atoms if a.kind == "output"}
    found = []
    for index, v in enumerate(graph.outputs):
        value = graph.values[v]
        name = f"output {index}"
        if index in state:
            name, layout = graph.values[state[index]].name, layouts[state[index]]
        elif name in sinks:
            layout = atoms.choices(sinks[name])[priced.choices[sinks[name].index]].operands[0]
        else:
            layout = (-1,) * len(atoms.mesh)
        found.append(Argument(name, value.shape, value.dtype, layout, "output"))
    return tuple(found)
