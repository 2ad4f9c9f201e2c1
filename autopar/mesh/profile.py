"""Profiles: what ``autopar calibrate`` measured on devices, in a JSON file, and the cluster that runs like that."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autopar.errors import ClusterError
from autopar.mesh.device import Device
from autopar.mesh.links import Level
from autopar.mesh.measured import CollectiveLine, Rates, rates_from_dict, rates_to_dict

VERSION = 1


@dataclass(frozen=True)
class Measured:
    """What was measured with so many devices at work.

    Attributes:
      rates: of each device.
      overhead_s: to start one kernel.
      lines: collectives among them, by kind and number of devices, all groups at the same time; and transfers.
    """

    rates: Rates
    overhead_s: float
    lines: tuple[CollectiveLine, ...]


@dataclass(frozen=True)
class Profile:
    """The measurements of one kind of device.

    Attributes:
      device: its name as of :data:`autopar.mesh.PRESETS`, or its own where there is no preset.
      measured: the fewest devices at work first.
      about: hardware, versions and date, as text by name.
      raw: every point that was measured, for who wants to look; not used.
    """

    device: str
    measured: tuple[Measured, ...]
    about: Mapping[str, str]
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def source(self) -> str:
        """Where and when, in one line."""
        return "calibrated: " + ", ".join(f"{name} {text}" for name, text in self.about.items())

    def for_devices(self, devices: int) -> Measured:
        """What was measured with so many devices at work, or the next larger number.

        Raises:
          ClusterError: only fewer were measured.
        """
        for found in self.measured:
            if found.rates.devices >= devices:
                return found
        most = self.measured[-1].rates.devices
        raise ClusterError(
            f"the profile of {self.device} was measured with up to {most} devices at work, and the cluster has "
            f"{devices} on one host. Calibrate there: autopar calibrate"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile as JSON; :func:`load_profile` reads it back."""
        data = {
            "version": VERSION,
            "device": self.device,
            "about": dict(self.about),
            "measured": [
                {
                    "rates": rates_to_dict(found.rates),
                    "overhead_s": found.overhead_s,
                    "lines": [line._asdict() for line in found.lines],
                }
                for found in self.measured
            ],
            "raw": dict(self.raw),
        }
        Path(path).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def load_profile(path: str | os.PathLike[str]) -> Profile:
    """Read a profile.

    Raises:
      ClusterError: the file cannot be read, is of another version, or is malformed.
    """
    file = os.fspath(path)
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ClusterError(f"{file} cannot be read as a profile: {error}. Write one with: autopar calibrate") from error
    version = data.get("version") if isinstance(data, Mapping) else None
    if version != VERSION:
        raise ClusterError(f"{file} is a profile of version {version!r}; this autopar reads version {VERSION}")
    try:
        measured = sorted((_measured(each) for each in data["measured"]), key=lambda found: found.rates.devices)
        about = {str(name): str(text) for name, text in data["about"].items()}
        found = Profile(str(data["device"]), tuple(measured), about, data.get("raw", {}))
    except (KeyError, TypeError, AttributeError, ValueError, ClusterError) as error:
        raise ClusterError(f"{file} is a malformed profile: {error!r}. Write it anew: autopar calibrate") from error
    if not measured:
        raise ClusterError(f"{file} is a profile without measurements. Write it anew: autopar calibrate")
    return found


def _measured(data: Mapping[str, Any]) -> Measured:
    lines = tuple(CollectiveLine(**line) for line in data["lines"])
    for line in lines:
        if not (0 <= line.latency_s < math.inf and 0 <= line.s_per_byte < math.inf):
            raise ValueError(f"{line} has a negative time")
    overhead_s = float(data["overhead_s"])
    return Measured(rates_from_dict(data["rates"]), overhead_s, lines)


def profiled(
    name: str, device: Device, levels: tuple[Level, ...], profile: Profile
) -> tuple[Device, tuple[Level, ...]]:
    """A device and its links as they were measured. See :meth:`Cluster.with_profile`.

    Args:
      name: of the cluster, for errors.
      device, levels: of it.
      profile: what was measured.

    Raises:
      ClusterError: the profile is of another device, or of fewer devices than one host has.
    """
    if profile.device != device.name:
        raise ClusterError(
            f"the profile is of {profile.device} ({profile.source}), and cluster {name!r} is of {device.name}: what "
            f"one device takes says nothing of another. Calibrate on {device.name}, or name a cluster of "
            f"{profile.device}"
        )
    found = profile.for_devices(levels[0].size)
    device = dataclasses.replace(device, rates=found.rates, overhead_s=found.overhead_s, source=profile.source)
    return device, (dataclasses.replace(levels[0], measured=found.lines), *levels[1:])
