"""What is computed from scalars alone is made where it is read."""

import jax
import jax.numpy as jnp

from autopar.mesh import Cluster
from autopar.planner.atoms import build_atoms
from autopar.planner.conversion import Conversions
from autopar.planner.fills import settle_fills
from autopar.sharding.layout import LOCAL
from autopar.trace import trace

CLUSTER = Cluster.uniform(4, 1e9, 1e9, 1e-6, 1e8)


def communicated(atoms, choices, conversions):
    """Primitives whose results some reader gets by a collective."""
    found = set()
    for atom in atoms.atoms:
        for slot, v in enumerate(atom.operands):
            maker, k = atoms.producer[v]
            made = atoms.choices(atoms.atoms[maker])[choices[maker]].results[k]
            wanted = atoms.choices(atom)[choices[atom.index]].operands[slot]
            if wanted != made:
                _, arcs = conversions.tree(atoms.step.graph.values[v], made, (wanted,))
                if any(move.kind not in LOCAL for _, move in arcs):
                    found.add(atoms.atoms[maker].name)
    return found


def test_fills_are_settled():
    def fun(x):
        zeros = jnp.full((8, 8), x.sum())
        return (jnp.square(zeros) * x).sum(axis=0), zeros @ x, jnp.arange(8.0) + x[0]

    step = trace(fun, (jax.ShapeDtypeStruct((8, 8), "float32"),), {}).step
    atoms = build_atoms(step).on((4,))
    conversions = Conversions(CLUSTER.mesh((4,)), CLUSTER.device)
    fills = {"broadcast_in_dim", "square", "iota"}
    found = set()
    for n in range(max(len(atoms.choices(a)) for a in atoms.atoms)):  # every fill made in another way each time
        choices = [min(n, len(atoms.choices(a)) - 1) if a.name in fills else 0 for a in atoms.atoms]
        found |= communicated(atoms, choices, conversions) & fills
        settled = settle_fills(atoms, choices, conversions)
        assert not communicated(atoms, settled, conversions) & fills
        assert all(a.name in fills or settled[a.index] == choices[a.index] for a in atoms.atoms)
    assert found  # there was something to settle
