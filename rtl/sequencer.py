"""Sequencer: load, discharge, settle, sample, next bias vector, results, done."""

from __future__ import annotations

from enum import IntEnum

from amaranth import Cat, Module, Mux, Signal, Value
from amaranth.hdl import ValueLike
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from thermokron.model import PHASES, UnitSpec
from thermokron.model.spec import MAX_INTERVAL_CYCLES, MAX_SAMPLES
from thermokron.model.timing import discharge_floor, longest_discharge, sample_spacing
from thermokron.rtl.layout import span
from thermokron.rtl.regmap import FaultReason, Phase

__all__ = ["Sequencer"]

#: Faults of the blocks, those that outrank others first, and the reasons that they become.
FAULTS = {
    "bad_code": "illegal_code",
    "adc_timeout": "adc_timeout",
    "adc_stuck": "adc_stuck",
    "dac_timeout": "dac_timeout",
    "stream_early": "stream_early",
    "stream_late": "stream_late",
}


class State(IntEnum):
    """Where the run is, in three bits, of which every code is a state.

    WAIT, for codes at the bias DACs, counts as load; DRAIN, for the last sample, as sample.
    """

    IDLE = 0
    LOAD = 1
    WAIT = 2
    DISCHARGE = 3
    SETTLE = 4
    SAMPLE = 5
    DRAIN = 6
    RESULTS = 7


class Sequencer(wiring.Component):
    """Runs a program, or refuses it; counts the cycles of every phase; reports faults.

    While the array is discharged, settles and is sampled, the codes of the next bias vector go to
    the input registers of their DACs, from which `bias_load` takes them at the beginning of its
    discharge. The cells are discharged as soon as a vector's last sample has been taken, and its
    conversion goes on meanwhile; discharge ends when that is over, at the earliest.

    Members
    -------
    start, abort, clear : In(1)
        Pulses of the CONTROL register. START is seen only while not `busy`.
    biases, temperature, settle, interval, samples, second_moments : In
        The program, as wide as its registers; locked by the register file while `busy`.
    stream_biases, stream_results, spoiled : In(1)
        The rest of it: the bits of MODE; the bank that MODE names is of no use.
    refused : Out(1)
        A START now would be refused, for the program is illegal; a cycle after the program.
    busy, done, fault, reason, phase, vector : Out
        Status. `done` and `fault` hold until an accepted START, or CLEAR.
    cycles_load, …, cycles_results : Out(64)
        Clock cycles spent in each phase of this run, or of the last one.
    temperature_code : Out
        To the noise source; changes only with START.
    discharge : Out(1)
        Hold every cell at zero. In the domain `pins`, whose reset needs no clock.
    bias_load : Out(1)
        The bias DACs are to take over what is in their input registers; the first cycle of a
        discharge.
    first : Out(1)
        The next sample to be accumulated is its vector's first.
    sampled_vector, last : Out
        The vector whose samples are under way; whether it is the run's last.
    narrow : Out(1)
        Results leave as codes.
    couplings_start, biases_start, sampler_start, results_start, cancel : Out(1)
        Pulses to the blocks.
    next_vector : Out
        The bias vector to load with `biases_start`.
    couplings_busy, biases_busy, sampler_busy, converter_busy, moments_busy, results_busy : In(1)
        A block is not finished.
    bad_code, adc_timeout, adc_stuck, dac_timeout, stream_early, stream_late : In(1)
        Faults of the blocks.
    trigger, accepted : In(1)
        A sample is taken with this cycle; the accumulator takes one over.
    """

    def __init__(self, spec: UnitSpec) -> None:
        self._spec = spec
        pulses_in = ("start", "abort", "clear", "trigger", "accepted")
        blocks = ("couplings", "biases", "sampler", "converter", "moments", "results")
        registers = ("biases", "temperature", "settle", "interval", "samples")
        modes = ("second_moments", "stream_biases", "stream_results", "spoiled")
        bits_out = ("refused", "busy", "done", "fault", "first", "last", "narrow", "cancel")
        pulses_out = ("couplings_start", "biases_start", "sampler_start", "results_start")
        vectors = span(spec.rhs_depth)
        super().__init__(
            {
                **{name: In(1) for name in (*pulses_in, *FAULTS, *modes)},
                **{f"{block}_busy": In(1) for block in blocks},
                **{name: In(32) for name in registers},
                "discharge": Out(1, init=1),
                "bias_load": Out(1),
                **{name: Out(1) for name in (*bits_out, *pulses_out)},
                "reason": Out(4),
                "phase": Out(3),
                **{name: Out(vectors) for name in ("vector", "sampled_vector", "next_vector")},
                "temperature_code": Out(spec.temperature_bits),
                **{f"cycles_{phase}": Out(64) for phase in PHASES},
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._judge(m)
        cycles = self._discharge_cycles(m)

        # ---- the run ----------------------------------------------------------------------
        state = Signal(State)
        here = {s: Signal(name=f"in_{s.name.lower()}") for s in State}
        m.d.comb += [signal.eq(state == s) for s, signal in here.items()]
        wait = Signal(range(longest_discharge(self._spec)))
        failed = Signal()
        bias_ready = Signal()
        # a cycle ahead, for what follows from it reaches far
        only_one = Signal()
        next_is_last = Signal()
        last_loaded = Signal()
        m.d.sync += [
            only_one.eq(self.biases == 1),
            next_is_last.eq(self.next_vector == self.biases - 1),
        ]
        m.d.comb += [
            self.busy.eq(~here[State.IDLE]),
            bias_ready.eq(~self.biases_busy),
            self.next_vector.eq(Mux(here[State.IDLE], 0, self.vector + 1)),
            # what is next goes to the input registers as soon as these are free
            self.biases_start.eq(self.bias_load & ~last_loaded | self.couplings_start),
        ]
        with m.If(self.clear & ~self.busy):
            m.d.sync += [self.done.eq(0), self.fault.eq(0), self.reason.eq(FaultReason.none)]
        with m.If(self.accepted):
            m.d.sync += self.first.eq(0)
        m.d.sync += self.bias_load.eq(0)

        def discharge() -> None:
            m.d.pins += self.discharge.eq(1)
            m.d.sync += [
                state.eq(State.DISCHARGE),
                self.bias_load.eq(1),
                wait.eq(cycles - 1),
            ]

        def next_vector() -> None:
            discharge()
            m.d.sync += [self.vector.eq(self.next_vector), last_loaded.eq(next_is_last)]

        def end() -> None:
            m.d.sync += [state.eq(State.IDLE), self.done.eq(1)]

        with m.Switch(state):
            with m.Case(State.IDLE):
                m.d.comb += self.phase.eq(Phase.idle)
                with m.If(self.start):
                    m.d.sync += [
                        # after a refusal the last run's results are still there
                        self.done.eq(self.done & self.refused),
                        self.fault.eq(self.refused),
                        self.reason.eq(self._refusal),
                    ]
                with m.If(self.start & ~self.refused):
                    m.d.comb += self.couplings_start.eq(1)
                    m.d.sync += [
                        state.eq(State.LOAD),
                        self.temperature_code.eq(self.temperature),
                        self.vector.eq(0),
                        last_loaded.eq(only_one),
                        *(getattr(self, f"cycles_{phase}").eq(0) for phase in PHASES),
                    ]
            with m.Case(State.LOAD):
                m.d.comb += self.phase.eq(Phase.load)
                with m.If(~self.couplings_busy & bias_ready):
                    discharge()
            with m.Case(State.WAIT):
                m.d.comb += self.phase.eq(Phase.load)
                with m.If(bias_ready):
                    next_vector()
            with m.Case(State.DISCHARGE):
                m.d.comb += self.phase.eq(Phase.discharge)
                with m.If(wait.any()):
                    m.d.sync += wait.eq(wait - 1)
                with m.Elif(~self.converter_busy):
                    m.d.comb += self.sampler_start.eq(1)
                    m.d.pins += self.discharge.eq(0)
                    m.d.sync += [
                        state.eq(State.SETTLE),
                        self.sampled_vector.eq(self.vector),
                        self.last.eq(last_loaded),
                        self.first.eq(1),
                    ]
            with m.Case(State.SETTLE):
                m.d.comb += self.phase.eq(Phase.settle)
                with m.If(self.trigger):
                    m.d.sync += state.eq(State.SAMPLE)
            with m.Case(State.SAMPLE):
                m.d.comb += self.phase.eq(Phase.sample)
                with m.If(~self.sampler_busy):
                    m.d.pins += self.discharge.eq(1)
                    with m.If(self.last):
                        m.d.sync += state.eq(State.DRAIN)
                    with m.Elif(bias_ready):
                        next_vector()
                    with m.Else():
                        m.d.sync += state.eq(State.WAIT)
            with m.Case(State.DRAIN):
                m.d.comb += self.phase.eq(Phase.sample)
                with m.If(~self.converter_busy & ~self.moments_busy):
                    m.d.comb += self.results_start.eq(self.stream_results & ~self.narrow)
                    with m.If(self.results_start | self.results_busy):
                        m.d.sync += state.eq(State.RESULTS)
                    with m.Else():
                        end()
            with m.Case(State.RESULTS):
                m.d.comb += self.phase.eq(Phase.results)
                with m.If(~self.results_busy):
                    end()

        for phase in PHASES:
            counter = getattr(self, f"cycles_{phase}")
            with m.If(self.phase == Phase[phase]):
                m.d.sync += counter.eq(counter + 1)

        # a fault outranks whatever its cycle would have done; the cells are held again
        faults = {
            "abort": FaultReason.aborted,
            **{name: FaultReason[r] for name, r in FAULTS.items()},
        }
        m.d.comb += failed.eq(self.busy & Cat(getattr(self, name) for name in faults).any())
        m.d.comb += self.cancel.eq(failed)
        with m.If(failed):
            m.d.pins += self.discharge.eq(1)
            m.d.sync += [
                state.eq(State.IDLE),
                self.bias_load.eq(0),
                self.done.eq(0),
                self.fault.eq(1),
            ]
            for name, reason in reversed(faults.items()):
                with m.If(getattr(self, name)):
                    m.d.sync += self.reason.eq(reason)
        return m

    def _judge(self, m: Module) -> None:
        """Is the program legal? The first rule that is broken is the reason."""
        spec = self._spec

        def outside(value: Value, low: ValueLike, high: int) -> Value:
            return (value < low) | (value > high)

        self._refusal = refusal = Signal(4)
        shortest: ValueLike = spec.shortest_interval(False)
        mode = self.second_moments & (self.biases != 1)
        if spec.second_moments:
            shortest = Mux(self.second_moments, spec.shortest_interval(True), shortest)
        else:
            mode = self.second_moments
        if spec.stream_bits is None:
            mode = mode | self.stream_biases | self.stream_results
        rules = [
            (FaultReason.illegal_biases, outside(self.biases, 1, spec.rhs_depth)),
            (FaultReason.illegal_temperature, self.temperature > spec.temperature_max),
            (FaultReason.illegal_settle, ~self.settle.any()),
            (FaultReason.illegal_interval, outside(self.interval, shortest, MAX_INTERVAL_CYCLES)),
            (FaultReason.illegal_samples, outside(self.samples, 1, MAX_SAMPLES)),
            (FaultReason.illegal_mode, mode),
        ]
        illegal = Signal()
        broken_rule = Signal(4)
        # registers, for a START reaches far; the program rests for a cycle at least before it
        m.d.sync += illegal.eq(0)
        for reason, broken in reversed(rules):
            with m.If(broken):
                m.d.sync += [illegal.eq(1), broken_rule.eq(reason)]
        m.d.comb += [
            self.refused.eq(illegal | self.spoiled),
            refusal.eq(
                Mux(
                    illegal,
                    broken_rule,
                    Mux(self.spoiled, FaultReason.illegal_bank, FaultReason.none),
                )
            ),
        ]
        # a register, for many wait for it; it follows the program before anything of a run needs it
        m.d.sync += self.narrow.eq(self.stream_results & ~self.second_moments & (self.samples == 1))

    def _discharge_cycles(self, m: Module) -> Signal:
        """For how long the cells are discharged.

        So long that a conversion ends within it; and that with `settle` the accumulator, and the
        stream of codes, have done with a vector's last sample when the next one's first comes.
        """
        spec = self._spec
        floor = discharge_floor(spec)
        spacing = [sample_spacing(spec, narrow=False)] * 2
        if spec.stream_bits is not None:
            spacing[1] = sample_spacing(spec, narrow=True)
        longest = range(longest_discharge(spec) + 1)
        cycles = Signal(longest, init=floor)
        if max(spacing) - 2 <= floor:  # however short the array settles
            return cycles
        apart = Signal(longest)
        lacks = Signal(longest)
        m.d.comb += apart.eq(Mux(self.narrow, spacing[1] - 1, spacing[0] - 1))
        m.d.sync += [
            lacks.eq(Mux(self.settle < apart, apart - self.settle, 0)),
            cycles.eq(Mux(lacks > floor, lacks, floor)),
        ]
        return cycles
