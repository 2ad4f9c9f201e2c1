"""What the devices are: the name that a profile is looked up by, and what else a reader wants to know."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import jax

_PRESETS = {
    "h200": "h200", "h100": "h100", "a100": "a100-80gb", "v100": "v100-16gb",
    "v5p": "tpu-v5p", "v5 lite": "tpu-v5e", "v5e": "tpu-v5e", "v4": "tpu-v4", "v3": "tpu-v3",
}  # fmt: skip


def device_name(device: jax.Device) -> str | None:
    """The preset of a device; None if there is none."""
    if device.platform == "cpu":
        return "cpu"
    kind = device.device_kind.lower()
    return next((preset for word, preset in _PRESETS.items() if word in kind), None)


def profile_name(device: jax.Device) -> str:
    """The name of a device in a profile: its preset, or its kind in one word, to be the name of a device in a file."""
    return device_name(device) or re.sub(r"[^a-z0-9]+", "-", device.device_kind.lower()).strip("-")


def about(devices: Sequence[jax.Device]) -> Mapping[str, str]:
    """Hardware, versions and date."""
    found = {
        "device": devices[0].device_kind,
        "devices": str(len(devices)),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "jax": version("jax"),
        "jaxlib": version("jaxlib"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    return {name: text for name, text in found.items() if text}


def _processor() -> str:
    """The model of the processor, as far as the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
            return next(names, "") or platform.machine()
    except OSError:
        return platform.processor() or platform.machine()
