"""One command-line option per field of `UnitSpec`, for every command that makes a unit."""

from __future__ import annotations

import argparse
from dataclasses import fields

from thermokron.model import UnitSpec

__all__ = ["SPEC_OPTIONS", "add_spec_options", "spec_from_args"]


#: Fields of `UnitSpec`, each of which is an option.
SPEC_OPTIONS = tuple(f.name for f in fields(UnitSpec))
#: What those that follow from others are, if not given.
FOLLOWS = {
    "lanes": "as many as cells",
    "adc_timeout_cycles": "twice adc_cycles, and 255 at least",
}


def add_spec_options(parser: argparse.ArgumentParser) -> None:
    """Add an option per field of `UnitSpec`, in a group of their own.

    An option that is not given leaves no attribute, so that a command can tell.
    """
    group = parser.add_argument_group("the unit", "what UnitSpec says about it; defaults in []")
    for field in fields(UnitSpec):
        low, high = field.metadata["range"]
        shown = FOLLOWS[field.name] if field.default is None else f"{field.default:g}"
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            type=type(low),
            default=argparse.SUPPRESS,
            metavar="N" if isinstance(low, int) else "X",
            help=f"{field.metadata['doc']}; {low:g} to {high:g} [{shown}]",
        )


def spec_from_args(args: argparse.Namespace) -> UnitSpec:
    """The specification that the options ask for; `ValueError` if there is no such unit."""
    given = vars(args)
    return UnitSpec(**{name: given[name] for name in SPEC_OPTIONS if name in given})
