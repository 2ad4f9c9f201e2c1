"""Memory has its price where most is held of the forward pass."""

import pytest

from autopar.models import get
from autopar.planner.atoms import is_late
from autopar.planner.one_mesh import prepare
from autopar.planner.options import Options
from autopar.planner.seek import turn as turn_of
from autopar.trace import trace


@pytest.mark.parametrize("model", ["gpt", "glam"])  # of both, some of the backward pass is made before the forward pass
def test_what_the_backward_pass_reads_is_alive_at_the_turn(model):
    recipe = get(model)
    prepared = prepare(trace(recipe.step, recipe.abstract(), donate_argnums=0).step, Options())
    atoms, turn = prepared.atoms, turn_of(prepared.atoms, prepared.lives)
    values = atoms.step.graph.values
    read = {v for a in atoms.atoms if a.kind == "op" and is_late(a) for v in a.operands}
    kept = {
        life: values[life.value].nbytes
        for life in prepared.lives
        if life.value in read and atoms.atoms[atoms.producer[life.value][0]].kind == "op"
        and not is_late(atoms.atoms[atoms.producer[life.value][0]])
    }  # fmt: skip
    alive = sum(n for life, n in kept.items() if life.start <= turn <= life.end)
    assert alive > 0.8 * sum(kept.values())
