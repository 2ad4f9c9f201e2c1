"""Links between sites: what joins clusters in other buildings and other regions.

Light takes 4.9 us for a kilometre of fibre (index of refraction 1.468), which bounds every latency from below. The
bandwidth is that of one fibre pair at the named standard, shared by all devices of a site; who leases more says so in
a TOML file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autopar.mesh.links import Level
from autopar.units import MICRO, gbit_per_s


@dataclass(frozen=True, slots=True)
class WideAreaLink:
    """A link between sites.

    Attributes:
      latency_s: from one site to another.
      bytes_per_s: of a whole site, per direction.
      source: where the numbers come from.
    """

    latency_s: float
    bytes_per_s: float
    source: str

    def level(self, name: str, sites: int, devices: int) -> Level:
        """The level that joins so many sites of so many devices, which share the link of their site."""
        return Level(name, sites, self.latency_s, self.bytes_per_s / devices)


LINKS: Mapping[str, WideAreaLink] = {
    "campus": WideAreaLink(
        50 * MICRO, gbit_per_s(400), "10 km of fibre, the reach of 400GBASE-LR4-10 (IEEE 802.3cu): 49 us"
    ),
    "metro": WideAreaLink(
        1000 * MICRO,
        gbit_per_s(400),
        "two zones of a region: up to 100 km apart, single-digit milliseconds (AWS Fault Isolation Boundaries, "
        "Availability Zones), half of a round trip of 2 ms; one wavelength of 400ZR (OIF-400ZR-01.0, up to 120 km)",
    ),
    "region": WideAreaLink(
        10_000 * MICRO,
        gbit_per_s(100),
        "two regions: round trips of 20 ms and more (NVIDIA, training across long-haul data center networks with NeMo, "
        "2025), 1,000 km of fibre being 4.9 ms one way; a leased wavelength of 100 Gbit/s assumed",
    ),
}
