"""`thermokron cosim`: the benches of the generated Verilog, by hand."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thermokron.host.cli.spec_options import add_spec_options, spec_from_args
from thermokron.host.engines import CosimUnit
from thermokron.model import Job, NumericUnit, UnitSpec
from thermokron.model.checks import check_real
from thermokron.model.files import claimed

__all__ = ["add_parser", "run"]

DESCRIPTION = """\
Run the generated Verilog in a simulator, under cocotb: a bench for every block of the control
plane, one for the whole unit, and `array`, which runs jobs on a unit with the analog array at
its pins and compares every integer with the numeric engine.
"""

EPILOG = """\
examples:
  thermokron cosim --list                      what there is
  thermokron cosim                             all of it, in Verilator
  thermokron cosim --sim icarus --bench sampler --bench moments
  thermokron cosim --bench array --waves       the voltages of the cells beside the pins; open
                                               with: gtkwave build/cosim/array-verilator/unit.gtkw
  thermokron cosim --bench array --cells 9 --lanes 3 --adc-bits 10 --waves fst --sim icarus

The options about the unit are for the benches `array` and `registers`; the others choose their
own units. The first run of a bench compiles its design, later ones take it from the cache
(~/.cache/thermokron, or $THERMOKRON_CACHE).
"""

#: The benches that take the unit from the command line.
OF_UNIT = {
    "array": "jobs on the unit, with the analog array at its pins, against the numeric engine",
    "registers": "the register file: AXI traffic against a model of the register map",
}
ARRAY_SAMPLES = 60


@dataclass
class Outcome:
    """How a bench ended: what it did, and where things are."""

    summary: str
    files: tuple[Path, ...]


#: What a bench is about, and what runs it with its files in a folder.
Bench = tuple[str, Callable[[Path], Outcome]]


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "cosim",
        help="run the benches of the Verilog in a simulator",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sim",
        "--simulator",
        dest="sim",
        choices=("icarus", "verilator"),
        default="verilator",
        help="the simulator [verilator]",
    )
    parser.add_argument(
        "--bench",
        action="append",
        metavar="NAME",
        help="a bench to run, may be given several times [all]",
    )
    parser.add_argument("--list", action="store_true", help="list the benches and stop")
    parser.add_argument(
        "--waves",
        nargs="?",
        const="vcd",
        choices=("vcd", "fst"),
        help="write a waveform of each bench [vcd]; fst is smaller",
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of all that is random [1]"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("build/cosim"),
        metavar="FOLDER",
        help="where logs and waveforms go [build/cosim]",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help="seconds after which a bench is stopped [300], and those without a sign of life after "
        "which the simulator of `array` is [30]; more for slow machines",
    )
    add_spec_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the benches, and say how they ended and where their logs and waveforms are."""
    from rich.console import Console

    from thermokron.sim.runner import BenchFailure
    from thermokron.sim.simulators import BuildFailure, require

    benches = _benches(args)
    if args.list:
        width = max(map(len, benches))
        for name, (about, _) in benches.items():
            print(f"  {name:{width}}  {about}")
        return 0
    chosen = args.bench or list(benches)
    if unknown := [name for name in chosen if name not in benches]:
        raise ValueError(f"bench = {unknown[0]!r} is unknown; legal: {', '.join(benches)}")
    require(args.sim)
    console = Console(stderr=True)
    failed = []
    for i, name in enumerate(chosen, 1):
        folder = args.output / f"{name}-{args.sim}"
        begin = time.perf_counter()
        try:
            with console.status(f"{name} on {args.sim} ({i} of {len(chosen)})"):
                outcome = benches[name][1](folder)
        except (BenchFailure, BuildFailure) as error:
            failed.append(name)
            print(f"{name}: FAILED\n{error}")
            continue
        print(f"{name}: {outcome.summary}, {time.perf_counter() - begin:.1f} s")
        for path in outcome.files:
            print(f"  {_shown(path)}")
    if failed:
        print(f"{len(failed)} of {len(chosen)} benches failed: {', '.join(failed)}")
        return 1
    print(f"{len(chosen)} of {len(chosen)} benches passed on {args.sim}")
    return 0


def _shown(path: Path) -> Path:
    """A path as the user would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _benches(args: argparse.Namespace) -> dict[str, Bench]:
    """The benches by name."""
    from thermokron.sim.benches.catalogue import BENCHES, TIMEOUT_S, run_block_bench
    from thermokron.sim.runner import BenchResult, run_bench

    timeout_s = TIMEOUT_S if args.timeout is None else args.timeout
    check_real("timeout", timeout_s, 1.0, 1e6)

    def outcome(result: BenchResult) -> Outcome:
        paths = tuple(path for path in (result.log, result.waveform) if path is not None)
        return Outcome(f"{len(result.tests)} tests passed", paths)

    def array(folder: Path) -> Outcome:
        return _run_array(
            spec_from_args(args), args.sim, args.seed, folder, args.waves, args.timeout
        )

    def registers(folder: Path) -> Outcome:
        from thermokron.rtl import generate_verilog
        from thermokron.rtl.registers import RegisterFile

        spec = spec_from_args(args)
        result = run_bench(
            "thermokron.sim.benches.bench_registers",
            generate_verilog(RegisterFile(spec)),
            "register_file",
            args.sim,
            parameters={"spec": spec.to_json(), "seed": args.seed, "operations": 600},
            waves=args.waves,
            folder=folder,
            timeout_s=timeout_s,
        )
        return outcome(result)

    def block(name: str) -> Callable[[Path], Outcome]:
        return lambda folder: outcome(
            run_block_bench(
                name, args.sim, seed=args.seed, waves=args.waves, folder=folder, timeout_s=timeout_s
            )
        )

    benches: dict[str, Bench] = {
        "array": (OF_UNIT["array"], array),
        "registers": (OF_UNIT["registers"], registers),
    }
    for name in BENCHES:
        what = "the whole unit" if name == "unit" else f"the block `{name}`"
        benches[name] = (f"{what}: random traffic against a golden model", block(name))
    return benches


def _run_array(
    spec: UnitSpec,
    simulator: str,
    seed: int,
    folder: Path,
    waves: str | None,
    timeout_s: float | None,
) -> Outcome:
    """Jobs of both modes on the unit; every integer must be the numeric engine's."""
    from thermokron.sim.runner import BenchFailure

    waveform = folder / f"unit.{waves}" if waves else None
    numeric = NumericUnit(spec, seed=seed)
    count = 0
    with (
        claimed(folder) if waves else nullcontext(),
        CosimUnit(
            spec, seed=seed, simulator=simulator, waves=waveform, timeout_s=timeout_s
        ) as unit,
    ):
        for job in _jobs(spec, seed):
            found, expected = unit.run(job), numeric.run(job)
            if found != expected:
                mode = "second moments" if job.second_moments else f"{len(job.biases)} vectors"
                raise BenchFailure(f"job {count} ({mode}): got {found}, expected {expected}")
            count += 1
        cycles = unit.info()["cycles"]
        link = unit.link
    paths = (link.log, link.waveform, link.save_file) if waveform else ()
    summary = f"{count} jobs give the numeric engine's integers, {cycles} clock cycles"
    return Outcome(summary, tuple(path for path in paths if path is not None))


def _jobs(spec: UnitSpec, seed: int) -> Iterator[Job]:
    rng = np.random.default_rng(seed)
    for second_moments in (True, False):
        factors = rng.standard_normal((spec.cells, 2 * spec.cells))
        matrix = factors @ factors.T / (2 * spec.cells)
        scale = 1.01 * np.sqrt(np.diag(matrix))  # within the DAC's range after rounding
        vectors = 1 if second_moments else min(3, spec.rhs_depth)
        yield Job(
            couplings=spec.coupling_codes(matrix / scale[:, None] / scale),
            biases=spec.bias_codes(rng.uniform(-0.2, 0.2, (vectors, spec.cells))),
            temperature=spec.temperature_max // 4,
            settle_cycles=50,
            interval_cycles=spec.shortest_interval(second_moments) + 2,
            samples=ARRAY_SAMPLES,
            second_moments=second_moments,
        )
