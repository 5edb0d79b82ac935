"""The benches of the datapath's blocks: which designs they run on, and how to run them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thermokron.model import UnitSpec
from thermokron.sim.runner import BenchResult, run_bench

if TYPE_CHECKING:
    from amaranth.lib.wiring import Component

__all__ = ["BENCHES", "BlockBench", "bundle", "run_block_bench"]

#: Wall time after which a bench has hung; a few seconds are usual.
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class BlockBench:
    """A bench, and the instances that it runs on.

    Attributes
    ----------
    blocks : mapping of str to callable
        By kind, what makes a component from a specification.
    instances : mapping of str to (str, UnitSpec)
        Kind and specification of every instance, by name.
    rounds : mapping of str to int
        How long the random tests are, by simulator.
    only : mapping of str to tuple of str
        By simulator, the instances to run on if not all of them.
    long_tests : tuple of str
        Tests of millions of cycles: for Verilator alone, and not for a waveform.
    """

    module: str
    blocks: Callable[[], Mapping[str, Callable[[UnitSpec], Component]]]
    instances: Mapping[str, tuple[str, UnitSpec]]
    rounds: Mapping[str, int]
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    long_tests: tuple[str, ...] = ()


def _code_blocks() -> Mapping[str, Any]:
    from thermokron.rtl.biases import Biases
    from thermokron.rtl.couplings import Couplings

    return {"Couplings": Couplings, "Biases": Biases}


def _moment_blocks() -> Mapping[str, Any]:
    from thermokron.rtl.moments import MomentAccumulator

    return {"MomentAccumulator": MomentAccumulator}


def _control_blocks() -> Mapping[str, Any]:
    from thermokron.rtl.converter import ConverterPort
    from thermokron.rtl.sampler import Sampler
    from thermokron.rtl.sequencer import Sequencer

    return {"ConverterPort": ConverterPort, "Sampler": Sampler, "Sequencer": Sequencer}


def _unit_blocks() -> Mapping[str, Any]:
    from thermokron.rtl.unit import ThermodynamicUnit

    return {"ThermodynamicUnit": ThermodynamicUnit}


#: The benches by name.
BENCHES: Mapping[str, BlockBench] = {
    "codes": BlockBench(
        "thermokron.sim.benches.bench_codes",
        _code_blocks,
        {
            "c2": (
                "Couplings",
                UnitSpec(cells=2, coupling_bits=3, stream_bits=None, dac_timeout_cycles=7),
            ),
            "c5": (
                "Couplings",
                UnitSpec(cells=5, coupling_bits=8, dac_lanes=2, dac_timeout_cycles=3),
            ),
            "c9": (
                "Couplings",
                UnitSpec(cells=9, coupling_bits=16, dac_lanes=4, dac_timeout_cycles=20),
            ),
            "b2": (
                "Biases",
                UnitSpec(cells=2, bias_bits=4, rhs_depth=1, dac_lanes=4, dac_timeout_cycles=5),
            ),
            "b5": (
                "Biases",
                UnitSpec(
                    cells=5, bias_bits=12, rhs_depth=3, stream_bits=None, dac_timeout_cycles=9
                ),
            ),
            "b9": (
                "Biases",
                UnitSpec(cells=9, bias_bits=16, rhs_depth=4, dac_lanes=2, dac_timeout_cycles=2),
            ),
        },
        rounds={"icarus": 15, "verilator": 30},
    ),
    "sampler": BlockBench(
        "thermokron.sim.benches.bench_sampler",
        _control_blocks,
        {"a": ("Sampler", UnitSpec())},
        rounds={"icarus": 20, "verilator": 80},
    ),
    "converter": BlockBench(
        "thermokron.sim.benches.bench_converter",
        _control_blocks,
        {
            "a": ("ConverterPort", UnitSpec(cells=2, adc_bits=3)),
            "b": ("ConverterPort", UnitSpec(cells=3, adc_cycles=5, adc_timeout_cycles=14)),
            "c": ("ConverterPort", UnitSpec(cells=2, adc_cycles=4, adc_timeout_cycles=4)),
            "d": ("ConverterPort", UnitSpec(cells=5, adc_cycles=9, adc_timeout_cycles=40)),
        },
        rounds={"icarus": 150, "verilator": 300},
    ),
    "sequencer": BlockBench(
        "thermokron.sim.benches.bench_sequencer",
        _control_blocks,
        {
            "a": ("Sequencer", UnitSpec(cells=2, rhs_depth=1, discharge_cycles=1)),
            "b": (
                "Sequencer",
                UnitSpec(cells=60, lanes=2, rhs_depth=3, temperature_bits=6, discharge_cycles=3),
            ),
            "c": (
                "Sequencer",
                UnitSpec(rhs_depth=256, discharge_cycles=12, temperature_bits=16, stream_bits=None),
            ),
            "d": (
                "Sequencer",
                UnitSpec(cells=64, rhs_depth=4, stream_bits=32, adc_cycles=9, second_moments=False),
            ),
        },
        rounds={"icarus": 15, "verilator": 30},
    ),
    "unit": BlockBench(
        "thermokron.sim.benches.bench_unit",
        _unit_blocks,
        {
            "a": (
                "ThermodynamicUnit",
                UnitSpec(
                    cells=4,
                    lanes=2,
                    adc_bits=8,
                    dac_lanes=2,
                    rhs_depth=3,
                    discharge_cycles=2,
                    dac_timeout_cycles=90,
                ),
            ),
            "b": (
                "ThermodynamicUnit",
                UnitSpec(
                    cells=5,
                    lanes=1,
                    adc_cycles=5,
                    dac_lanes=4,
                    adc_timeout_cycles=25,
                    rhs_depth=2,
                    stream_bits=32,
                    dac_timeout_cycles=80,
                ),
            ),
            "c": (
                "ThermodynamicUnit",
                UnitSpec(
                    cells=2,
                    rhs_depth=1,
                    discharge_cycles=1,
                    stream_bits=None,
                    dac_timeout_cycles=100,
                ),
            ),
            # whose codes take longer than the array
            "d": (
                "ThermodynamicUnit",
                UnitSpec(
                    cells=9,
                    lanes=3,
                    rhs_depth=4,
                    discharge_cycles=2,
                    stream_bits=128,
                    coupling_bits=10,
                    bias_bits=8,
                    second_moments=False,
                    dac_timeout_cycles=99,
                ),
            ),
        },
        rounds={"icarus": 3, "verilator": 10},
    ),
    "moments": BlockBench(
        "thermokron.sim.benches.bench_moments",
        _moment_blocks,
        {
            **{
                f"n{n}_l{lanes}": (
                    "MomentAccumulator",
                    UnitSpec(cells=n, lanes=lanes, adc_bits=4 + n, rhs_depth=1 + lanes % 4),
                )
                for n in (2, 3, 4, 5, 6, 8, 12)
                for lanes in range(1, n + 1)
                if n % lanes == 0
            },
            "means": (
                "MomentAccumulator",
                UnitSpec(cells=6, lanes=2, adc_bits=9, rhs_depth=3, second_moments=False),
            ),
            "extreme3": ("MomentAccumulator", UnitSpec(cells=2, adc_bits=3, rhs_depth=1)),
            "extreme16": ("MomentAccumulator", UnitSpec(cells=2, adc_bits=16, rhs_depth=2)),
        },
        rounds={"icarus": 4, "verilator": 30},
        # Icarus compiles all of them in a second, and Verilator is fast enough for 2^20 samples.
        # With fewer than 5 diagonals (8 cells) nobody would see a sum added in every cycle of a
        # sample: until the first is written, all of them read the word as it was.
        only={"verilator": ("extreme3", "extreme16", "n2_l1", "n3_l3", "n8_l2", "n5_l1", "means")},
        long_tests=("extreme_sums",),
    ),
}


@functools.cache
def bundle(name: str, instances: tuple[str, ...]) -> tuple[str, str, tuple[str, ...]]:
    """Verilog with the instances side by side, its top module, and its inputs."""
    from amaranth import Module
    from amaranth.lib import wiring
    from amaranth.lib.wiring import Out, connect, flipped

    from thermokron.rtl.rtlil import ports
    from thermokron.rtl.verilog import generate_verilog

    bench = BENCHES[name]
    makers = bench.blocks()
    blocks = {i: makers[bench.instances[i][0]](bench.instances[i][1]) for i in instances}

    class Bundle(wiring.Component):
        """Blocks that share clock and reset, and nothing else."""

        def __init__(self) -> None:
            super().__init__({name: Out(block.signature) for name, block in blocks.items()})

        def elaborate(self, platform: object) -> Any:
            m = Module()
            for name, block in blocks.items():
                m.submodules[name] = block
                connect(m, flipped(getattr(self, name)), block)
            return m

    top = f"{name}_bench"
    bundle = Bundle()
    inputs = tuple(port.name for port in ports(bundle) if port.direction == "input")
    return generate_verilog(bundle, name=top), top, inputs


def run_block_bench(
    name: str,
    simulator: str,
    *,
    instances: tuple[str, ...] | None = None,
    verilog: str | None = None,
    seed: int = 1,
    tests: str | None = None,
    waves: str | None = None,
    folder: Path | None = None,
    timeout_s: float = TIMEOUT_S,
    first_failure: bool = False,
) -> BenchResult:
    """Run one of `BENCHES` on a simulator; arguments and errors as for `run_bench`.

    On the instances for that simulator, or those that are named; on their Verilog, or on another
    with the same ports, such as a mutant's.
    """
    if name not in BENCHES:
        raise ValueError(f"bench = {name!r} is unknown; legal: {', '.join(BENCHES)}")
    bench = BENCHES[name]
    chosen = instances or bench.only.get(simulator, tuple(bench.instances))
    generated, top, inputs = bundle(name, chosen)
    if tests is None and bench.long_tests and (waves or simulator != "verilator"):
        tests = rf"^(?!.*\b({'|'.join(bench.long_tests)})\b)"
    kinds_and_specs = {i: bench.instances[i] for i in chosen}
    return run_bench(
        bench.module,
        generated if verilog is None else verilog,
        top,
        simulator,
        parameters={
            "instances": {
                i: {"kind": kind, "spec": spec.to_json()}
                for i, (kind, spec) in kinds_and_specs.items()
            },
            "inputs": inputs,
            "seed": seed,
            "rounds": bench.rounds[simulator],
        },
        tests=tests,
        waves=waves,
        folder=folder,
        internals=False,
        timeout_s=timeout_s,
        first_failure=first_failure,
    )
