"""The options of `thermokron train`: one per choice of a training run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from thermokron.host.engines import ENGINES
from thermokron.host.train.options import KFAC_ONLY, UNIT_ONLY

__all__ = ["add_cluster", "add_timeout", "add_train_options", "check_effect", "given_options"]


def add_timeout(parser: Any) -> None:
    """Add `--timeout`, in seconds; not given, it leaves no attribute."""
    parser.add_argument(
        "--timeout",
        type=float,
        default=argparse.SUPPRESS,
        metavar="S",
        help="seconds without a sign of life after which a simulator is given up, beside what its "
        "clock cycles may take; more for slow machines [30]",
    )


def add_cluster(parser: Any) -> None:
    """Add `--cluster`, the address of a Dask scheduler; not given, it is None."""
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="run on the workers of the Dask scheduler there, of one thread each [here]",
    )


def number_or_none(text: str) -> float | None:
    """A number, or None for "none", as argparse reads it."""
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor none") from None


def settle(text: str) -> float | str:
    """A number, or a time such as "5tau", as argparse reads it; what is legal is checked later."""
    try:
        return float(text)
    except ValueError:
        return text


def add_train_options(parser: argparse.ArgumentParser, *, hidden: str | None) -> None:
    """Add every option of a run but those of the unit's specification.

    Parameters
    ----------
    parser : ArgumentParser
        Where to add them.
    hidden : str or None
        What `--hidden` means for the network; None where it has no such option.
    """
    group = parser.add_argument_group("training", "defaults in []; [*] in the table below")
    _choice(group, "optimizer", ("kfac", "adam", "sgd"), "what trains [kfac]")
    _choice(
        group,
        "engine",
        (*ENGINES, "exact", "diagonal"),
        "what inverts K-FAC's factors [numeric]",
    )
    group.add_argument(
        "--simulator",
        choices=("verilator", "icarus"),
        default=argparse.SUPPRESS,
        help="what runs the Verilog, for --engine cosim [verilator]",
    )
    add_timeout(group)
    _number(group, "epochs", int, "passes over the examples [*]")
    _number(group, "batch_size", int, "examples per step [*]")
    _number(group, "lr", float, "learning rate [*, and the optimizer]")
    _choice(
        group,
        "schedule",
        ("constant", "cosine", "linear", "step"),
        "of the learning rate: down to 0 along a cosine or a line, or to a tenth after half of "
        "the steps and to a hundredth after three quarters [constant]",
    )
    _number(group, "warmup", int, "steps over which the learning rate rises first [0]")
    _number(group, "momentum", float, "of SGD, and of K-FAC, which uses it [0.9]")
    _number(group, "weight_decay", float, "of the optimizer; decoupled with Adam [0]")
    if hidden is not None:
        group.add_argument(
            "--hidden", type=int, nargs="+", default=argparse.SUPPRESS, metavar="N", help=hidden
        )
    _number(group, "seed", int, "of data, weights, order and noise [0]")
    group.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="where results go [runs/NETWORK-OPTIMIZER-ENGINE, numbered if others are there]",
    )
    for flag, text in (
        ("--checkpoint", "save the run there after every epoch [the file of --resume, if given]"),
        ("--resume", "go on from such a file, and save there; the other options as before"),
    ):
        group.add_argument(flag, type=Path, metavar="FILE", help=text)
    _add_kfac_options(parser)


def _add_kfac_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("K-FAC", "as of thermokron.host.kfac.KFAC")
    _number(group, "damping", float, "Tikhonov damping [*]")
    group.add_argument(
        "--adapt-damping",
        action="store_true",
        default=argparse.SUPPRESS,
        help="adapt it from there, as Levenberg and Marquardt do",
    )
    _choice(
        group,
        "damping_mode",
        ("factored", "exact"),
        "of both factors, or their product, which needs --engine exact [factored]",
    )
    _choice(
        group,
        "fisher",
        ("empirical", "mc", "ggn"),
        "gradients at the labels, at sampled labels, or the loss's own curvature [*]",
    )
    _number(group, "mc_samples", int, "labels per loss term, for --fisher mc [1]")
    _choice(group, "sharing", ("expand", "reduce"), "positions that share a weight [expand]")
    _choice(
        group,
        "method",
        ("inverse", "solve"),
        "invert the factors, or solve for the update [solve on a unit, else inverse]",
    )
    _number(group, "decay", float, "of the factors' moving average [0.95]")
    _number(group, "factor_interval", int, "steps between updates of factors [1]")
    _number(group, "inverse_interval", int, "steps between inversions [1]")
    _number(
        group,
        "refresh_threshold",
        number_or_none,
        "invert earlier where a factor has moved by this part of its norm, or none [none]",
    )
    _number(
        group,
        "kl_clip",
        number_or_none,
        "bound on the step's KL divergence, or none [0.01]",
    )
    _number(
        group,
        "norm_constraint",
        number_or_none,
        "bound on the step's length, or none [none]",
    )
    _number(group, "samples", int, "per run of the unit [1 of a solution, 1000 of an inverse]")
    _number(
        group,
        "settle",
        settle,
        "part of a factor's slowest mode left undone before solutions are read, or a time such as "
        "5tau [0.1]",
    )
    _choice(
        group,
        "guard",
        ("lanczos", "norm", "cholesky", "clipping", "none"),
        "what keeps rounding from leaving a factor indefinite [lanczos]",
    )
    group.add_argument(
        "--no-equilibrate",
        dest="equilibrate",
        action="store_false",
        default=argparse.SUPPRESS,
        help="divide factors by their largest entry, rather than scale them to unit diagonal, "
        "before they are rounded; the unit must hold the largest factor: --cells 65 for the MLP",
    )
    group.add_argument(
        "--physics",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="fields of ArrayPhysics as JSON; those left out are ideal [ideal]",
    )
    group.add_argument(
        "--calibration",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="what `thermokron calibrate -o FILE` has found of the same unit [none]",
    )


def given_options(args: argparse.Namespace, names: set[str]) -> dict[str, Any]:
    """Options that were given on the command line, of those named; `hidden` as a tuple."""
    given = {name: value for name, value in vars(args).items() if name in names}
    if "hidden" in given:
        given["hidden"] = tuple(given["hidden"])
    return given


def check_effect(
    given: Mapping[str, Any],
    *,
    label: str,
    optimizer: str,
    engine: str | None,
    fisher: str,
    method: str,
) -> None:
    """`ValueError` if an option was given that has no effect on such a run."""
    kfac, unit = optimizer == "kfac", engine in ENGINES
    for names, there, reason in (
        (KFAC_ONLY, kfac, "uses no K-FAC"),
        (UNIT_ONLY, unit, "uses no unit"),
        (("momentum",), optimizer != "adam", "has its own two averages"),
        (("simulator", "timeout"), engine == "cosim", "runs no Verilog; --engine cosim does"),
        (("settle",), method == "solve", "reads no solutions; --method solve does"),
        (("mc_samples",), fisher == "mc", "samples no labels; --fisher mc does"),
    ):
        for name in names:
            if name in given and not there:
                raise ValueError(f"{name} = {given[name]} has no effect: {label} {reason}")


def _choice(group: argparse._ArgumentGroup, name: str, choices: tuple[str, ...], text: str) -> None:
    flag = "--" + name.replace("_", "-")
    group.add_argument(flag, choices=choices, default=argparse.SUPPRESS, help=text)


def _number(
    group: argparse._ArgumentGroup, name: str, kind: Callable[[str], Any], text: str
) -> None:
    flag, metavar = "--" + name.replace("_", "-"), "N" if kind is int else "X"
    group.add_argument(flag, type=kind, default=argparse.SUPPRESS, metavar=metavar, help=text)
