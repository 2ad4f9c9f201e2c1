"""Transfers between stages cost what a permute over the same link costs."""

import pytest

from autopar.cost import collective_s, transfer_s
from autopar.mesh import Cluster, link_between
from autopar.sharding.layout import Collective


@pytest.mark.parametrize(("target", "axis"), [(range(4, 8), (2, 4)), (range(8, 12), (2, 8))])
@pytest.mark.parametrize("nbytes", [0, 1e6])
def test_a_transfer_is_a_permute(target, axis, nbytes):
    cluster = Cluster.parse("h100:2x8")
    link = link_between(cluster, range(4), target)
    mesh = (cluster if axis == (2, 8) else Cluster.parse("h100:8")).mesh(axis)
    assert transfer_s(link, nbytes) == pytest.approx(collective_s(Collective.PERMUTE, mesh.axes[0], nbytes))


def test_what_stays_is_free():
    assert transfer_s(None, 1e9) == 0.0
