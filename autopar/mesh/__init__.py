"""Where it runs: devices, the hierarchy of links between them, and logical meshes over them. No jax."""

from autopar.mesh.cluster import Cluster
from autopar.mesh.device import Device
from autopar.mesh.links import AxisLinks, Crossing, Joint, Level, children_crossed
from autopar.mesh.logical import LogicalMesh
from autopar.mesh.measured import TRANSFER, CollectiveLine, Rates, line_for, seconds_at
from autopar.mesh.placement import link_between, place
from autopar.mesh.presets import PRESETS, Preset
from autopar.mesh.profile import Measured, Profile, load_profile
from autopar.mesh.submesh import Submesh
from autopar.mesh.wide_area import LINKS, WideAreaLink

__all__ = [
    "LINKS",
    "PRESETS",
    "TRANSFER",
    "AxisLinks",
    "Cluster",
    "CollectiveLine",
    "Crossing",
    "Device",
    "Joint",
    "Level",
    "LogicalMesh",
    "Measured",
    "Preset",
    "Profile",
    "Rates",
    "Submesh",
    "WideAreaLink",
    "children_crossed",
    "line_for",
    "link_between",
    "load_profile",
    "place",
    "seconds_at",
]
