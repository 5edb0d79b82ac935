"""Sequencer: load, discharge, settle, sample, next bias vector, done."""

from __future__ import annotations

from enum import IntEnum

from amaranth import Cat, Module, Mux, Signal, Value
from amaranth.hdl import ValueLike
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from thermokron.model import PHASES, UnitSpec
from thermokron.model.spec import MAX_INTERVAL_CYCLES, MAX_SAMPLES
from thermokron.rtl.layout import span
from thermokron.rtl.regmap import FaultReason, Phase

__all__ = ["Sequencer"]


class State(IntEnum):
    """Where the run is, one bit each; BIAS counts as load."""

    IDLE = 0
    LOAD = 1
    BIAS = 2
    DISCHARGE = 3
    SETTLE = 4
    SAMPLE = 5


class Sequencer(wiring.Component):
    """Runs a program, or refuses it; counts the cycles of every phase; reports faults.

    Members
    -------
    start, abort, clear : In(1)
        Pulses of the CONTROL register. START is seen only while not `busy`.
    biases, temperature, settle, interval, samples, second_moments : In
        The program, as wide as its registers; locked by the register file while `busy`.
    refused : Out(1)
        A START now would be refused, for the program is illegal.
    busy, done, fault, reason, phase, vector : Out
        Status. `done` and `fault` hold until an accepted START, or CLEAR.
    cycles_load, cycles_discharge, cycles_settle, cycles_sample : Out(64)
        Clock cycles spent in each phase of this run, or of the last one.
    temperature_code : Out
        To the noise source; changes only with START.
    discharge : Out(1)
        Hold every cell at zero. In the domain `pins`, whose reset needs no clock.
    first : Out(1)
        The next sample to be accumulated is its vector's first.
    couplings_start, biases_start, sampler_start, cancel : Out(1)
        Pulses to the blocks.
    next_vector : Out
        The bias vector to load with `biases_start`.
    couplings_busy, biases_busy, sampler_busy : In(1)
        A block is not finished; the sampler's stands for the converter port and the
        accumulator too.
    bad_code, adc_timeout, adc_stuck : In(1)
        Faults of the blocks.
    trigger, accepted : In(1)
        A sample is taken with this cycle; the accumulator takes one over.
    """

    def __init__(self, spec: UnitSpec) -> None:
        self._spec = spec
        pulses_in = ("start", "abort", "clear", "trigger", "accepted")
        faults_in = ("bad_code", "adc_timeout", "adc_stuck")
        busy_in = ("couplings_busy", "biases_busy", "sampler_busy")
        registers = ("biases", "temperature", "settle", "interval", "samples")
        bits_out = ("refused", "busy", "done", "fault", "first", "cancel")
        pulses_out = ("couplings_start", "biases_start", "sampler_start")
        super().__init__(
            {
                **{name: In(1) for name in (*pulses_in, *faults_in, *busy_in)},
                **{name: In(32) for name in registers},
                "second_moments": In(1),
                "discharge": Out(1, init=1),
                **{name: Out(1) for name in (*bits_out, *pulses_out)},
                "reason": Out(4),
                "phase": Out(3),
                "vector": Out(span(spec.rhs_depth)),
                "next_vector": Out(span(spec.rhs_depth)),
                "temperature_code": Out(spec.temperature_bits),
                **{f"cycles_{phase}": Out(64) for phase in PHASES},
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec = self._spec

        def outside(value: Value, low: ValueLike, high: int) -> Value:
            return (value < low) | (value > high)

        # ---- is the program legal? the first rule that is broken is the reason -------------
        refusal = Signal(4)
        shortest = Mux(
            self.second_moments, spec.shortest_interval(True), spec.shortest_interval(False)
        )
        rules = [
            (FaultReason.illegal_biases, outside(self.biases, 1, spec.rhs_depth)),
            (FaultReason.illegal_temperature, self.temperature > spec.temperature_max),
            (FaultReason.illegal_settle, ~self.settle.any()),
            (FaultReason.illegal_interval, outside(self.interval, shortest, MAX_INTERVAL_CYCLES)),
            (FaultReason.illegal_samples, outside(self.samples, 1, MAX_SAMPLES)),
            (FaultReason.illegal_mode, self.second_moments & (self.biases != 1)),
        ]
        for reason, broken in reversed(rules):
            with m.If(broken):
                m.d.comb += refusal.eq(reason)
        m.d.comb += self.refused.eq(refusal != FaultReason.none)

        # ---- the run ----------------------------------------------------------------------
        state = Signal(len(State), init=1 << State.IDLE)
        wait = Signal(span(spec.discharge_cycles))
        failed = Signal()
        m.d.comb += self.busy.eq(~state[State.IDLE])
        with m.If(self.clear & ~self.busy):
            m.d.sync += [self.done.eq(0), self.fault.eq(0), self.reason.eq(FaultReason.none)]
        m.d.comb += self.next_vector.eq(Mux(state[State.SAMPLE], self.vector + 1, 0))
        with m.If(self.accepted):
            m.d.sync += self.first.eq(0)

        with m.If(state[State.IDLE]):
            m.d.comb += self.phase.eq(Phase.idle)
            with m.If(self.start):
                m.d.sync += [
                    # after a refusal the last run's results are still there
                    self.done.eq(self.done & self.refused),
                    self.fault.eq(self.refused),
                    self.reason.eq(refusal),
                ]
            with m.If(self.start & ~self.refused):
                m.d.comb += self.couplings_start.eq(1)
                m.d.sync += [
                    state.eq(1 << State.LOAD),
                    self.temperature_code.eq(self.temperature),
                    self.vector.eq(0),
                    *(getattr(self, f"cycles_{phase}").eq(0) for phase in PHASES),
                ]
        with m.If(state[State.LOAD]):
            m.d.comb += self.phase.eq(Phase.load)
            with m.If(~self.couplings_busy):
                m.d.comb += self.biases_start.eq(1)
                m.d.sync += state.eq(1 << State.BIAS)
        with m.If(state[State.BIAS]):
            m.d.comb += self.phase.eq(Phase.load)
            m.d.sync += wait.eq(spec.discharge_cycles - 1)
            with m.If(~self.biases_busy):
                m.d.sync += state.eq(1 << State.DISCHARGE)
        with m.If(state[State.DISCHARGE]):
            m.d.comb += self.phase.eq(Phase.discharge)
            m.d.sync += [wait.eq(wait - 1), self.first.eq(1)]
            with m.If(~wait.any()):
                m.d.comb += self.sampler_start.eq(1)
                m.d.sync += state.eq(1 << State.SETTLE)
                m.d.pins += self.discharge.eq(0)
        with m.If(state[State.SETTLE]):
            m.d.comb += self.phase.eq(Phase.settle)
            with m.If(self.trigger):
                m.d.sync += state.eq(1 << State.SAMPLE)
        with m.If(state[State.SAMPLE]):
            m.d.comb += self.phase.eq(Phase.sample)
            with m.If(~self.sampler_busy):
                m.d.pins += self.discharge.eq(1)
                with m.If(self.vector == self.biases - 1):
                    m.d.sync += [state.eq(1 << State.IDLE), self.done.eq(1)]
                with m.Else():
                    m.d.comb += self.biases_start.eq(1)
                    m.d.sync += [state.eq(1 << State.BIAS), self.vector.eq(self.next_vector)]

        for phase in PHASES:
            counter = getattr(self, f"cycles_{phase}")
            with m.If(self.phase == Phase[phase]):
                m.d.sync += counter.eq(counter + 1)

        # a fault outranks whatever its cycle would have done; the cells are held again
        faults = [
            (FaultReason.aborted, self.abort),
            (FaultReason.illegal_code, self.bad_code),
            (FaultReason.adc_timeout, self.adc_timeout),
            (FaultReason.adc_stuck, self.adc_stuck),
        ]
        m.d.comb += failed.eq(self.busy & Cat(signal for _, signal in faults).any())
        m.d.comb += self.cancel.eq(failed)
        with m.If(failed):
            m.d.sync += [
                state.eq(1 << State.IDLE),
                self.done.eq(0),
                self.fault.eq(1),
            ]
            m.d.pins += self.discharge.eq(1)
            for reason, signal in reversed(faults):
                with m.If(signal):
                    m.d.sync += self.reason.eq(reason)
        return m
