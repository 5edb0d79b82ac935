"""One command-line option per field of `UnitSpec`, for every command that makes a unit."""

from __future__ import annotations

import argparse
from dataclasses import fields
from functools import partial
from typing import Any

from thermokron.model import UnitSpec

__all__ = ["SPEC_OPTIONS", "add_spec_options", "spec_from_args"]


#: What fields are that were not given, where that depends on others.
DERIVED = {"lanes": "as many as cells", "adc_timeout_cycles": "twice adc_cycles, and 255 at least"}
#: Fields of `UnitSpec`, each of which is an option.
SPEC_OPTIONS = tuple(f.name for f in fields(UnitSpec))


def add_spec_options(parser: argparse.ArgumentParser) -> None:
    """Add an option per field of `UnitSpec`, in a group of their own.

    An option that is not given leaves no attribute, so that a command can tell.
    """
    group = parser.add_argument_group("the unit", "what UnitSpec says about it; defaults in []")
    for field in fields(UnitSpec):
        option, doc = "--" + field.name.replace("_", "-"), field.metadata["doc"]
        choices = field.metadata.get("choices")
        if choices == (True, False):
            group.add_argument(
                option,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=f"{doc} [{'yes' if field.default else 'no'}]",
            )
            continue
        if choices is not None:
            legal = {str(choice).lower(): choice for choice in choices}
            group.add_argument(
                option,
                type=partial(_choice, field.name, legal),
                default=argparse.SUPPRESS,
                metavar="N",
                help=f"{doc}; {', '.join(legal)} [{str(field.default).lower()}]",
            )
            continue
        low, high = field.metadata["range"]
        shown = DERIVED[field.name] if field.default is None else f"{field.default:g}"
        group.add_argument(
            option,
            type=type(low),
            default=argparse.SUPPRESS,
            metavar="N" if isinstance(low, int) else "X",
            help=f"{doc}; {low:g} to {high:g} [{shown}]",
        )


def _choice(name: str, legal: dict[str, Any], text: str) -> Any:
    if text.lower() not in legal:
        raise argparse.ArgumentTypeError(
            f"{name} = {text!r} is not legal; legal: {', '.join(legal)}"
        )
    return legal[text.lower()]


def spec_from_args(args: argparse.Namespace) -> UnitSpec:
    """The specification that the options ask for; `ValueError` if there is no such unit."""
    given = vars(args)
    return UnitSpec(**{name: given[name] for name in SPEC_OPTIONS if name in given})
