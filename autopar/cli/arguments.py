"""What is typed on the command line, as values; what does not make sense is an error that says what would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from autopar.errors import OptionError
from autopar.mesh import Cluster
from autopar.models import Recipe, get
from autopar.models.data.choose import Data, data_for
from autopar.units import parse_bytes


def parse_mesh(text: str | None) -> tuple[int, ...] | None:
    """``2x4`` as axis sizes.

    >>> parse_mesh("2x4"), parse_mesh(None)
    ((2, 4), None)
    """
    if text is None:
        return None
    sizes = text.lower().split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise OptionError(
            f"--mesh {text!r} is not a mesh shape; write axis sizes joined by x, such as 8, 2x4 or 2x2x2."
        )
    return tuple(map(int, sizes))


def parse_microbatches(text: str) -> int | str:
    """``4`` as a number, ``auto`` as it is.

    >>> parse_microbatches("4"), parse_microbatches("auto")
    (4, 'auto')
    """
    return int(text) if text.lstrip("-").isdecimal() else text


def parse_memory(text: str | None) -> int | None:
    """``8GiB`` as bytes."""
    if text is None:
        return None
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise OptionError(f"--memory: {error}.") from None


def find_cluster(text: str, profile: Path | None) -> Cluster:
    """A cluster by name, calibrated if there is a profile of it.

    Raises:
      ClusterError: it is not known, or the profile is of another device.
    """
    found = Cluster.parse(text)
    return found if profile is None else found.with_profile(profile)


def find_model(name: str, preset: str | None, sizes: Sequence[str], **more: Any) -> Recipe:
    """A recipe of the zoo, with sizes changed as ``layers=4``, or as keywords.

    Raises:
      OptionError: there is no such model, preset or size, or the sizes do not go together.
    """
    try:
        return get(name, preset=preset or "toy", **(sizes_from(sizes) | more))
    except ValueError as error:
        raise OptionError(f"{error}") from None


def sizes_from(typed: Sequence[str]) -> dict[str, Any]:
    """``["layers=4", "tied=false"]`` as values.

    >>> sizes_from(["layers=4", "tied=false", "dtype=float32"])
    {'layers': 4, 'tied': False, 'dtype': 'float32'}

    Raises:
      OptionError: one has no ``=``.
    """
    return dict(map(_size, typed))


def find_data(recipe: Recipe, path: Path | None) -> Data:
    """What to train a recipe on: a file, or what ships.

    Raises:
      OptionError: the file is damaged or does not fit the model.
    """
    try:
        return data_for(recipe, path)
    except ValueError as error:
        raise OptionError(f"{error}.") from None


def check_folder(option: str, path: Path) -> None:
    """Refuse a file to write whose folder is not there, before the work begins.

    Raises:
      OptionError: there is no such folder.
    """
    if not path.absolute().parent.is_dir():
        raise OptionError(f"{option} {path}: there is no folder {path.absolute().parent}; make it first.")


_WORDS = {"true": True, "True": True, "false": False, "False": False}


def _size(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not value:
        raise OptionError(f"--set {text!r} is not a size; write NAME=VALUE, such as --set layers=4.")
    if value in _WORDS:
        return key, _WORDS[value]
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    return key, value


def provide_devices(cluster: Cluster) -> None:
    """Give this process the virtual devices of a ``cpu`` cluster, which jax can do only before it is first used.

    Where jax has started already nothing changes; too few devices are found out when the step is compiled.
    """
    if any(island.device.name != "cpu" for island in cluster.islands):
        return
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", cluster.devices)
    except RuntimeError:
        return
