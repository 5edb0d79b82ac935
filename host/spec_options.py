"""One command-line option per field of `UnitSpec`, for every command that makes a unit."""

from __future__ import annotations

import argparse
from dataclasses import fields

from thermokron.model import UnitSpec

__all__ = ["add_spec_options", "spec_from_args"]


def add_spec_options(parser: argparse.ArgumentParser, **defaults: int | float) -> None:
    """Add an option per field of `UnitSpec`, in a group of their own.

    Parameters
    ----------
    parser : ArgumentParser
        Where to add them.
    **defaults
        Defaults of this command, by field, where they differ from those of `UnitSpec`.

    Raises
    ------
    ValueError
        If a default is not the name of a field.
    """
    group = parser.add_argument_group("the unit", "what UnitSpec says about it; defaults in []")
    known = {f.name: f for f in fields(UnitSpec)}
    if unknown := sorted(set(defaults) - set(known)):
        raise ValueError(f"{unknown} are not fields of UnitSpec; legal: {list(known)}")
    for name, field in known.items():
        low, high = field.metadata["range"]
        default = defaults.get(name, field.default)
        shown = "as many as cells" if default is None else f"{default:g}"
        group.add_argument(
            "--" + name.replace("_", "-"),
            type=type(low),
            default=default,
            metavar="N" if isinstance(low, int) else "X",
            help=f"{field.metadata['doc']}; {low:g} to {high:g} [{shown}]",
        )


def spec_from_args(args: argparse.Namespace) -> UnitSpec:
    """The specification that the options ask for; `ValueError` if there is no such unit."""
    return UnitSpec(**{f.name: getattr(args, f.name) for f in fields(UnitSpec)})
