"""`thermokron train`: train on bundled data, and the demo."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from thermokron.host.spec_options import add_spec_options, spec_from_args
from thermokron.host.train_options import add_train_options, check_effect, given_options
from thermokron.model import ArrayPhysics

__all__ = ["add_parser", "run"]

EPILOG = """\
examples:
  thermokron train digits                     an MLP on the numeric engine, in seconds
  thermokron train digits --network cnn       a convolutional network
  thermokron train vit                        a small vision transformer
  thermokron train graph                      boiling points of molecules
  thermokron train package.module:function    a network, data and loss of your own
  thermokron train demo                       the comparison of `make demo`

Each has its own help: thermokron train digits --help
"""

ENGINES = """\
K-FAC inverts its Kronecker factors: on a thermodynamic unit, in numbers (--engine numeric) or in
the Verilog that runs in a simulator (--engine cosim); exactly on the host (--engine exact); or by
their diagonals alone (--engine diagonal), as a control. Results are result.json, loss.png, and
metrics.jsonl with one line of numbers per step.
"""

DIGITS = (
    """\
Train a network on scikit-learn's handwritten digits (8 x 8 pixels, 1,437 for training): a tanh
MLP, a CNN of two convolutions, or a vision transformer.

"""
    + ENGINES
)

DIGITS_EPILOG = """\
examples:
  thermokron train digits                     K-FAC on the numeric engine
  thermokron train digits --engine cosim      the same integers, from the generated Verilog
  thermokron train digits --optimizer adam --lr 0.05
  thermokron train digits --network cnn --hidden 16 32 --schedule cosine --fisher mc
  thermokron train digits --hidden 64 32 --inverse-interval 5 --damping-mode exact --engine exact
  thermokron train digits --coupling-bits 4 --samples 200 -o runs/coarse
                                              a cheaper unit, to see what it costs
  thermokron train digits --cells 32 --lanes 8 --hidden 64 32 --seed 3
  thermokron train digits --checkpoint run.pt
  thermokron train digits --checkpoint run.pt --resume run.pt
                                              to go on after an interruption
  thermokron train digits --physics flaws.json
                                              a flawed array: {"coupling_mismatch": 0.01, ...},
                                              every field of ArrayPhysics, null for ideal
"""

VIT = (
    """\
Train a small vision transformer on scikit-learn's handwritten digits: sixteen patches of 2 x 2
pixels as tokens of width 32, four heads.

"""
    + ENGINES
)

VIT_EPILOG = """\
examples:
  thermokron train vit --engine exact
  thermokron train vit --optimizer adam
  thermokron train vit --hidden 64 64 64      three blocks
  thermokron train vit --epochs 2 --inverse-interval 5
                                              on the numeric engine
"""

GRAPH = (
    """\
Train a graph network on the boiling points of 496 small organic molecules (400 for training), from
their atoms and bonds. The loss is the mean squared error relative to the variance of the data, so
that predicting their mean has loss 1.

"""
    + ENGINES
)

GRAPH_EPILOG = """\
examples:
  thermokron train graph                      K-FAC on the numeric engine
  thermokron train graph --engine exact --fisher mc
  thermokron train graph --optimizer adam --lr 0.01
  thermokron train graph --hidden 64 64 64    three steps of message passing, 64 numbers per atom
"""

MODULE = (
    """\
Train what a function of yours returns. It is called with the seed, and returns a
thermokron.host.train.Task: model, training data, loss, and, if you like, test data.

    # mytask.py
    import torch
    from thermokron.host.train import Task

    def task(seed):
        inputs, targets = torch.randn(500, 8), torch.randn(500, 1)
        return Task(
            model=torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(),
                                      torch.nn.Linear(16, 1)),
            train=torch.utils.data.TensorDataset(inputs, targets),
            loss=torch.nn.MSELoss(),
        )

"""
    + ENGINES
)

MODULE_EPILOG = """\
examples:
  thermokron train mytask:task                from mytask.py in this folder
  thermokron train package.module:function --optimizer adam --lr 0.001
  thermokron train mytask:task --fisher ggn --engine exact --epochs 20 --batch-size 50
"""

DEMO = """\
K-FAC whose inverses all come from a co-simulated unit, renewed at every step, beside K-FAC with
exact inverses, Adam and SGD at learning rates tuned on other seeds, and a control that replaces
every inverse by the inverse of the diagonal. Writes result.json and loss.png.
"""

DEMO_EPILOG = """\
examples:
  thermokron train demo                       a few minutes; results in runs/demo
  thermokron train demo --engine numeric      the same losses without a simulator
  thermokron train demo -o runs/talk
"""

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
        help="train a network, with K-FAC's inverses from a unit",
        description="Train a network, with K-FAC's inverses from a thermodynamic unit.",
        epilog=EPILOG,
        formatter_class=raw,
    )
    kinds = parser.add_subparsers(dest="kind", metavar="WHAT", required=True)

    def add(kind: str, text: str, description: str, epilog: str) -> argparse.ArgumentParser:
        return kinds.add_parser(
            kind, help=text, description=description, epilog=epilog, formatter_class=raw
        )

    digits = add("digits", "handwritten digits, your choice of network", DIGITS, DIGITS_EPILOG)
    digits.add_argument(
        "--network", choices=("mlp", "cnn", "vit"), default="mlp", help="which one [mlp]"
    )
    add_train_options(
        digits,
        output="runs/digits",
        hidden="widths of layers [mlp: 32], channels [cnn: 8 16], or see train vit",
    )
    add_spec_options(digits)

    vit = add("vit", "handwritten digits, a vision transformer", VIT, VIT_EPILOG)
    vit.set_defaults(network="vit")
    add_train_options(
        vit, output="runs/vit", hidden="width of each block's feed-forward layer [64 64]"
    )
    add_spec_options(vit)

    graph = add("graph", "boiling points of molecules, a graph network", GRAPH, GRAPH_EPILOG)
    graph.set_defaults(network="graph")
    add_train_options(
        graph,
        output="runs/graph",
        hidden="numbers per atom after each step of message passing [32 32]",
    )
    add_spec_options(graph)

    function = add(FUNCTION, "a task of your own", MODULE, MODULE_EPILOG)
    add_train_options(function, output="", hidden=None)
    add_spec_options(function)

    demo = add("demo", "the comparison that `make demo` shows", DEMO, DEMO_EPILOG)
    demo.add_argument(
        "--engine", choices=("cosim", "numeric"), default="cosim", help="of the unit [cosim]"
    )
    demo.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("runs/demo"),
        metavar="DIR",
        help="where results go [%(default)s]",
    )
    kinds.choices = kinds._name_parser_map = _Kinds(kinds.choices)


def run(args: argparse.Namespace) -> int:
    """Train as asked; 0, or 1 if the demo did not show what it claims to show."""
    return _demo(args) if args.kind == "demo" else _train(args)


# ---- one run -------------------------------------------------------------------------------


def _train(args: argparse.Namespace) -> int:
    from rich.console import Console

    from thermokron.host.train import Progress, TrainConfig, train, write_result
    from thermokron.host.train.display import network_name, progress_bars, results_table
    from thermokron.host.train.plots import plot_losses
    from thermokron.host.train.results import StepLog

    if ":" in args.kind:
        args.network = args.kind
        args.output = args.output or Path("runs") / args.kind.rpartition(":")[2]
    settings = given_options(args, {field.name for field in fields(TrainConfig)})
    if settings.get("optimizer", "kfac") != "kfac":
        settings.setdefault("engine", None)
    config = TrainConfig(**settings)
    on_unit = config.engine in ("numeric", "cosim")
    check_effect(vars(args), label=config.label, kfac=config.optimizer == "kfac", unit=on_unit)
    spec = spec_from_args(args) if on_unit else None
    physics = _physics(args) if on_unit else None
    console = Console()
    log = StepLog(args.output / "metrics.jsonl")
    with progress_bars(console) as listen:

        def follow(now: Progress) -> None:
            listen(config.label, now.step, now.steps, f"loss {now.loss:.4f}")
            log.write(now.metrics)

        listen(config.label, 0, 1, "starting")
        try:
            result = train(
                config,
                spec=spec,
                physics=physics,
                simulator=args.simulator,
                progress=follow,
                checkpoint=args.checkpoint,
                resume=args.resume,
            )
        except FloatingPointError as error:
            raise ValueError(str(error)) from error
    console.print(results_table([[result]]))
    about = DATA.get(config.network, config.network)
    files = [
        write_result(args.output / "result.json", [result], spec=spec, physics=physics),
        plot_losses(
            [result],
            args.output / "loss.png",
            title=f"Training loss on {about}",
            subtitle=f"{network_name(result)}, learning rate {result.lr:g}, seed {result.seed}",
            quantity="training loss" + (" in nats" if result.loss == "CrossEntropyLoss" else ""),
        ),
        *([log.path] if log.path.exists() else []),
        *([args.checkpoint] if args.checkpoint else []),
    ]
    console.print("wrote " + ", ".join(str(path) for path in files), soft_wrap=True)
    return 0


def _physics(args: argparse.Namespace) -> ArrayPhysics:
    if not hasattr(args, "physics"):
        return ArrayPhysics.ideal()
    try:
        return ArrayPhysics.from_json(args.physics.read_text())
    except (TypeError, ValueError) as error:
        raise ValueError(f"{args.physics}: {error}") from error


# ---- the demo ------------------------------------------------------------------------------


def _demo(args: argparse.Namespace) -> int:
    from rich.console import Console

    from thermokron.host.train.demo import DemoPlan, run_demo
    from thermokron.host.train.display import network_name, progress_bars, results_table
    from thermokron.host.train.plots import plot_losses
    from thermokron.host.train.results import RunResult, write_result

    args.output.mkdir(parents=True, exist_ok=True)  # now, rather than lose minutes of training
    plan = DemoPlan(unit_engine=args.engine)
    spec = plan.spec
    console = Console()
    unit = (
        f"{spec.cells} cells, {spec.coupling_bits}-bit couplings, {spec.adc_bits}-bit ADC, "
        f"{spec.clock_hz / 1e6:g} MHz, tau {spec.tau_s * 1e9:g} ns"
    )
    console.print(f"Training on handwritten digits; the unit: {unit}", soft_wrap=True)
    with progress_bars(console) as listen:
        outcome = run_demo(plan, listen)
    kinds: dict[str, list[RunResult]] = {}
    for result in outcome.runs:
        kinds.setdefault(result.label, []).append(result)
    console.print(results_table(list(kinds.values())))
    for claim in outcome.claims:
        mark = "[green]yes[/]" if claim.holds else "[red]NO [/]"
        console.print(f"{mark}  {claim.text}", soft_wrap=True)
    sample = outcome.runs[0]
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
            f"{len(plan.seeds)} seeds\n"
            f"{sample.label}: inverses from {spec.cells} cells, {spec.coupling_bits}-bit "
            f"couplings, {spec.adc_bits}-bit ADC, {sample.samples:,} samples",
        ),
    ]
    console.print(
        f"trained in {outcome.wall_seconds:.0f} s; wrote " + " and ".join(map(str, files)),
        soft_wrap=True,
    )
    return 0 if all(claim.holds for claim in outcome.claims) else 1
