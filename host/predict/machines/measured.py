"""The computer here, as it was measured: a file in the user's cache."""

from __future__ import annotations

import errno
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from thermokron.host.predict.machines.machine import Curve, Machine
from thermokron.host.predict.quantity import Quantity
from thermokron.model.files import write_whole
from thermokron.sim.cache import cache_dir

__all__ = ["cpu_name", "load", "path", "save"]

#: Of what the file holds; others are not read.
FORMAT = 1


def path() -> Path:
    """Where it is."""
    return cache_dir() / "machine.json"


def save(machine: Machine, about: dict[str, Any], to: Path | None = None) -> Path:
    """Write a machine, and return where.

    Parameters
    ----------
    machine : Machine
        As measured.
    about : dict
        "cpu", and what else is to be remembered: versions, threads, date.
    to : Path, optional
        Where, `path()` if not given.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    content = {"format": FORMAT, "about": about, "machine": asdict(machine)}
    return write_whole(path() if to is None else to, json.dumps(content, indent=1) + "\n")


def load(source: Path | None = None) -> Machine:
    """The machine that was saved.

    Raises
    ------
    FileNotFoundError
        If none was.
    ValueError
        If the file is none of these, or another computer's.
    """
    source = path() if source is None else source
    try:
        text = source.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(
            errno.ENOENT,
            "this computer was not measured yet: `thermokron predict --measure` takes a minute",
            str(source),
        ) from None
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}; legal: {FORMAT}")
        machine = _machine(content["machine"])
        known = content["about"]["cpu"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{source} is no measured machine ({type(error).__name__}: {error}): measure again"
        ) from None
    if known != cpu_name():
        raise ValueError(f"{source} is of {known!r}, and this is {cpu_name()!r}: measure again")
    return machine


def _machine(content: dict[str, Any]) -> Machine:
    read: dict[str, Any] = {}
    for each in fields(Machine):
        value = content[each.name]
        if isinstance(value, dict) and "rates" in value:
            value = Curve(tuple(value["sizes"]), tuple(value["rates"]), value["source"])
        elif isinstance(value, dict) and "nominal" in value:
            value = Quantity(**value)
        read[each.name] = value
    return Machine(**read)


def cpu_name() -> str:
    """What the processor calls itself."""
    import platform

    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
