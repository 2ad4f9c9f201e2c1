"""Measure the devices at hand: what work and collectives take, as a profile that the cost model reads."""

from autopar.calibrate.hardware import device_name
from autopar.calibrate.run import calibrate

__all__ = ["calibrate", "device_name"]
