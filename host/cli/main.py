"""The parser of `thermokron`, and how a command is run and ends."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from types import ModuleType
from typing import TextIO

from thermokron.host.cli import commands
from thermokron.host.cli.terminal import patient_streams
from thermokron.host.train.signals import Ended, ended_by_signals
from thermokron.model import UnitFault

__all__ = ["build_parser", "main"]

DESCRIPTION = """\
Thermodynamic second-order optimisation, from the Verilog of a control plane to a loss curve.

An array of noisy analog cells relaxes to a Gaussian whose covariance is a matrix inverse. A
digital control plane programs it, samples it and adds up moments; the host turns them into
K-FAC updates that train a neural network.
"""

EPILOG = """\
examples:
  thermokron train digits                     train on handwritten digits, on the numeric model
  thermokron train demo                       the same on the Verilog, beside Adam and SGD
  thermokron study quantisation --jobs 2      losses and time by the bits of a unit, from a plan
  thermokron predict bert-base                time and energy of a step, with and without a unit
  thermokron explore digits-mlp --jobs 2      the units worth building: time, energy and area
  thermokron verilog --cells 64 --lanes 8     write the control plane and its register map
  thermokron synth --target ecp5 --cells 8    area, memory and clock on an FPGA
  thermokron cosim --bench array --waves      run the Verilog with the array at its pins
  thermokron calibrate --cells 8              measure what a unit really is, for what corrects by it

Every command explains itself: thermokron COMMAND --help
"""


def _command_modules() -> list[ModuleType]:
    names = sorted(module.name for module in pkgutil.iter_modules(commands.__path__))
    return [importlib.import_module(f"{commands.__name__}.{name}") for name in names]


def build_parser() -> argparse.ArgumentParser:
    """The parser of `thermokron` with every command in it."""
    parser = argparse.ArgumentParser(
        prog="thermokron",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"thermokron {version('thermokron')}"
    )
    parser.add_argument(
        "--traceback", action="store_true", help="on an error, show where in the code it arose"
    )
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for module in _command_modules():
        module.add_parser(subparsers)
        # the module's name is the command's name, so that `ls host/cli/commands` is the list
        subparsers.choices[module.__name__.rpartition(".")[2]].set_defaults(run=module.run)
    return parser


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning in one line, without the line of source that a program would get."""
    print(f"thermokron: warning: {message}", file=file or sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    That is 0 done, 1 if what was to be shown did not hold, 2 refused, 130 interrupted, 129 and 143
    after SIGHUP and SIGTERM. What a user can cause (a wrong value, a faulty unit, a file that
    cannot be written, a package that is not installed) ends in one line on standard error. A
    reader of the output that leaves early (`| head`) changes nothing.
    """
    with patient_streams():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        if args.command is None:
            parser.print_help()
            return 0
        with warnings.catch_warnings(), ended_by_signals():
            warnings.showwarning = _warn
            status: int = args.run(args)
            print(end="", flush=True)  # what standard output does not take is an error, too
    except KeyboardInterrupt:
        _say("\nthermokron: interrupted")
        return 130
    except Ended as end:
        _say(f"\nthermokron: ended by {end}")
        return 128 + end.signal
    except (ValueError, UnitFault, OSError, ModuleNotFoundError) as error:
        if args.traceback:
            raise
        _say(f"thermokron: error: {_told(error)}")
        return 2
    return status


def _say(text: str) -> None:
    with suppress(OSError):  # where that cannot be said, the status says it
        print(text, file=sys.stderr, flush=True)


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
