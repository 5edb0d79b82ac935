"""`thermokron train`: train on bundled data, and the demo."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thermokron.host.calibration import Calibration
from thermokron.host.cli import train_help as text
from thermokron.host.cli.physics_file import physics_from
from thermokron.host.cli.spec_options import add_spec_options, spec_from_args
from thermokron.host.cli.train_options import (
    add_timeout,
    add_train_options,
    check_effect,
    given_options,
)
from thermokron.host.engines import ENGINES
from thermokron.host.train.defaults import OWN, SUITS, help_table
from thermokron.model import ArrayPhysics
from thermokron.model.files import FolderInUse, check_writable, claimed

if TYPE_CHECKING:
    from thermokron.host.train import TrainConfig
    from thermokron.host.train.identity import RunFile

__all__ = ["add_parser", "run"]

FUNCTION = "MODULE:FUNCTION"

#: What is trained on, as plots say it, by network.
DATA = {
    "mlp": "handwritten digits",
    "cnn": "handwritten digits",
    "vit": "handwritten digits",
    "graph": "boiling points of molecules",
}


class _Kinds(dict[str, argparse.ArgumentParser]):
    """Parsers by name; whatever has a colon is a function of the user's."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and ":" in name)

    def __missing__(self, name: str) -> argparse.ArgumentParser:
        if ":" in name:
            return self[FUNCTION]
        raise KeyError(name)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare `train` with everything there is to train."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = subparsers.add_parser(
        "train",
        help="train a network, with K-FAC on a unit",
        description="Train a network, with K-FAC's linear systems solved by a thermodynamic unit.",
        epilog=f"{help_table([*SUITS, OWN])}\n{text.EPILOG}",
        formatter_class=raw,
    )
    kinds = parser.add_subparsers(dest="kind", metavar="WHAT", required=True)

    def add(
        kind: str, short: str, description: str, epilog: str, networks: Sequence[str]
    ) -> argparse.ArgumentParser:
        if networks:
            epilog = f"{help_table(networks)}\n{epilog}"
        return kinds.add_parser(
            kind, help=short, description=description, epilog=epilog, formatter_class=raw
        )

    digits = add(
        "digits",
        "handwritten digits, your choice of network",
        text.DIGITS,
        text.DIGITS_EPILOG,
        ("mlp", "cnn", "vit"),
    )
    digits.add_argument(
        "--network", choices=("mlp", "cnn", "vit"), default="mlp", help="which one [mlp]"
    )
    add_train_options(
        digits,
        hidden="widths of layers [mlp: 32], channels [cnn: 8 16], or see train vit",
    )
    add_spec_options(digits)

    vit = add(
        "vit",
        "handwritten digits, a vision transformer",
        text.VIT,
        text.VIT_EPILOG,
        ("vit",),
    )
    vit.set_defaults(network="vit")
    add_train_options(vit, hidden="width of each block's feed-forward layer [64 64]")
    add_spec_options(vit)

    graph = add(
        "graph",
        "boiling points of molecules, a graph network",
        text.GRAPH,
        text.GRAPH_EPILOG,
        ("graph",),
    )
    graph.set_defaults(network="graph")
    add_train_options(graph, hidden="numbers per atom after each step of message passing [32 32]")
    add_spec_options(graph)

    function = add(FUNCTION, "a task of your own", text.MODULE, text.MODULE_EPILOG, (OWN,))
    add_train_options(function, hidden=None)
    add_spec_options(function)

    demo = add("demo", "the comparison that `make demo` shows", text.DEMO, text.DEMO_EPILOG, ())
    demo.add_argument(
        "--engine",
        choices=("compiled", "cosim", "numeric"),
        default="compiled",
        help="of the unit [compiled]",
    )
    demo.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("runs/demo"),
        metavar="DIR",
        help="where results go [%(default)s]",
    )
    add_timeout(demo)
    kinds.choices = kinds._name_parser_map = _Kinds(kinds.choices)


def run(args: argparse.Namespace) -> int:
    """Train as asked; 0, or 1 if the demo did not show what it claims to show."""
    from thermokron.host.train import check_packages

    check_packages()
    return _demo(args) if args.kind == "demo" else _train(args)


# ---- one run -------------------------------------------------------------------------------


def _train(args: argparse.Namespace) -> int:
    from rich.console import Console

    from thermokron.host.train import Progress, TrainConfig, train, write_result
    from thermokron.host.train.checkpoints import check_checkpoint
    from thermokron.host.train.display import network_name, progress_bars, results_table
    from thermokron.host.train.identity import identity
    from thermokron.host.train.plots import plot_losses
    from thermokron.host.train.results import StepLog

    if ":" in args.kind:
        args.network = args.kind
    settings = given_options(args, {field.name for field in fields(TrainConfig)})
    if settings.get("optimizer", "kfac") != "kfac":
        settings.setdefault("engine", None)
    config = TrainConfig(**settings)
    on_unit = config.engine in ENGINES
    check_effect(
        vars(args),
        label=config.label,
        optimizer=config.optimizer,
        engine=config.engine,
        fisher=config.fisher,
        method=config.method_used,
    )
    spec = spec_from_args(args) if on_unit else None
    physics = physics_from(getattr(args, "physics", None)) if on_unit else None
    given = getattr(args, "calibration", None) if on_unit else None
    calibration = None if given is None else Calibration.load(given)
    console = Console()
    # who resumes wants to be able to resume again
    checkpoint = args.checkpoint or args.resume
    with ExitStack() as stack:
        owner = _claimed(stack, args.output, config, identity(config, spec, physics, calibration))
        folder = owner.path.parent
        result_file, plot_file = folder / "result.json", folder / "loss.png"
        log = StepLog(folder / "metrics.jsonl", owner, outdated=[result_file, plot_file])
        for file in (result_file, plot_file, log.path, owner.path):
            check_writable(file)
        if args.resume is not None:
            check_checkpoint(args.resume, owner.known)
            log.check_resumable()
        replacing = args.resume is None and result_file.exists()
        listen = stack.enter_context(progress_bars(console))

        def follow(now: Progress) -> None:
            listen(config.label, now.step, now.steps, f"loss {now.loss:.4f}")
            log.write(now.metrics)

        listen(config.label, 0, 1, "starting")
        try:
            result = train(
                config,
                spec=spec,
                physics=physics,
                calibration=calibration,
                simulator=getattr(args, "simulator", "verilator"),
                timeout_s=getattr(args, "timeout", None),
                progress=follow,
                checkpoint=checkpoint,
                resume=args.resume,
            )
        except FloatingPointError as error:
            raise ValueError(str(error)) from error
        log.begin(None)  # where nothing was left to be done
        about = DATA.get(config.network, config.network)
        in_nats = " in nats" if result.loss == "CrossEntropyLoss" else ""
        # first what was found, and only then what there is to be said about it
        files = [
            write_result(result_file, [result], spec=spec, physics=physics),
            plot_losses(
                [result],
                plot_file,
                title=f"Training loss on {about}",
                subtitle=f"{network_name(result)}, learning rate {result.lr:g}, seed {result.seed}",
                quantity="training loss" + in_nats,
            ),
            *([log.path] if log.path.exists() else []),
            *([checkpoint] if checkpoint else []),
        ]
    console.print(results_table([[result]]))
    if log.missing:
        console.print(
            f"{log.path} lacks {log.missing} steps of before it was resumed; if the run began in "
            "another folder, they are there",
            soft_wrap=True,
        )
    written = "wrote " + ", ".join(str(path) for path in files)
    console.print(written + (", in place of an older run's" if replacing else ""), soft_wrap=True)
    return 0


def _claimed(
    stack: ExitStack, output: Path | None, config: TrainConfig, known: dict[str, Any]
) -> RunFile:
    """The folder for results, which is this run's until the stack is closed.

    If nobody has said where, runs to compare do not replace each other: a folder in which another
    is at work, or has left its results, is passed over for one with a number.
    """
    from thermokron.host.train.identity import RunFile

    if output is not None:
        stack.enter_context(claimed(output))
        return RunFile(output, known)
    parts = (config.network.replace(":", "."), config.optimizer, config.engine)
    name = "-".join(part for part in parts if part)
    for number in itertools.count(1):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        owner = RunFile(folder, known)
        with suppress(FolderInUse, ValueError), ExitStack() as attempt:
            attempt.enter_context(claimed(folder))
            owner.check()
            if not owner.path.exists() and any(folder.iterdir()):
                continue  # somebody's, who did not say whose
            stack.enter_context(attempt.pop_all())
            return owner
    raise AssertionError("there is a number for each")


# ---- the demo ------------------------------------------------------------------------------


def _demo(args: argparse.Namespace) -> int:
    from rich.console import Console

    from thermokron.host.train.demo import DemoPlan, run_demo
    from thermokron.host.train.display import network_name, progress_bars, results_table
    from thermokron.host.train.identity import RunFile
    from thermokron.host.train.plots import plot_losses
    from thermokron.host.train.results import RunResult, write_result

    plan = DemoPlan(unit_engine=args.engine, timeout_s=getattr(args, "timeout", None))
    spec = plan.spec
    console = Console()
    unit = (
        f"{spec.cells} cells, {spec.coupling_bits}-bit couplings, {spec.adc_bits}-bit ADC, "
        f"{spec.clock_hz / 1e6:g} MHz, tau {spec.tau_s * 1e9:g} ns"
    )
    console.print(f"Training on handwritten digits; the unit: {unit}", soft_wrap=True)
    owner = RunFile(args.output, plan.identity)
    with claimed(args.output):
        owner.check()
        for name in ("result.json", "loss.png", "run.json"):
            check_writable(args.output / name)  # now, rather than lose minutes of training
        with progress_bars(console) as listen:
            outcome = run_demo(plan, listen)
            owner.write()
            sample = outcome.runs[0]
            single = sample.samples == 1
            readings = "one reading a column" if single else f"{sample.samples:,} samples"
            files = [
                write_result(
                    args.output / "result.json",
                    outcome.runs,
                    spec=spec,
                    physics=ArrayPhysics.ideal(),
                    tuning=outcome.tuning,
                    claims=[vars(claim) for claim in outcome.claims],
                    wall_seconds=outcome.wall_seconds,
                ),
                plot_losses(
                    outcome.runs,
                    args.output / "loss.png",
                    title="A network trained by sampling a noisy array",
                    subtitle=f"{network_name(sample)} on handwritten digits, medians of "
                    f"{len(plan.seeds)} seeds\n{sample.label}: solved by {spec.cells} cells, "
                    f"{spec.coupling_bits}-bit couplings, {spec.adc_bits}-bit ADC, {readings}",
                ),
            ]
    kinds: dict[str, list[RunResult]] = {}
    for result in outcome.runs:
        kinds.setdefault(result.label, []).append(result)
    console.print(results_table(list(kinds.values())))
    for claim in outcome.claims:
        mark = "[green]yes[/]" if claim.holds else "[red]NO [/]"
        console.print(f"{mark}  {claim.text}", soft_wrap=True)
    console.print(
        f"trained in {outcome.wall_seconds:.0f} s; wrote " + " and ".join(map(str, files)),
        soft_wrap=True,
    )
    return 0 if all(claim.holds for claim in outcome.claims) else 1
