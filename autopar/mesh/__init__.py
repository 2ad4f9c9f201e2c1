"""Where it runs: devices, the hierarchy of links between them, and logical meshes over them. No jax."""

from autopar.mesh.cluster import Cluster
from autopar.mesh.device import Device
from autopar.mesh.links import AxisLinks, Crossing, Level
from autopar.mesh.logical import LogicalMesh
from autopar.mesh.placement import link_between, place
from autopar.mesh.presets import PRESETS, Preset
from autopar.mesh.submesh import Submesh

__all__ = [
    "PRESETS",
    "AxisLinks",
    "Cluster",
    "Crossing",
    "Device",
    "Level",
    "LogicalMesh",
    "Preset",
    "Submesh",
    "link_between",
    "place",
]
