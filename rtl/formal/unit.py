"""What is proved of a whole unit: its pins, from any program that software may write.

The register file stands for itself elsewhere; here anything may come from it that its own proofs
allow: any program, frozen while a run is on, pulses of control one at a time, and windows written
while they are not locked.
"""

from __future__ import annotations

from typing import Any

from amaranth import Cat, Module, Mux, ResetSignal, Signal, Value

import thermokron.rtl.unit
from thermokron.model import UnitSpec
from thermokron.model.spec import MAX_SAMPLES
from thermokron.rtl.formal.harness import Harness
from thermokron.rtl.registers import RegisterFile
from thermokron.rtl.regmap import register_map
from thermokron.rtl.sequencer import State

__all__ = ["SIZES", "SPEC", "UnitUnderProof", "know"]

SIZES = "a unit of 2 cells, 3-bit ADC, 1 lane, 2 vectors"

SPEC = UnitSpec(
    cells=2,
    lanes=1,
    adc_bits=3,
    coupling_bits=3,
    bias_bits=4,
    rhs_depth=2,
    discharge_cycles=1,
    adc_timeout_cycles=8,
    dac_timeout_cycles=3,
    stream_bits=None,
)


class _Anything(RegisterFile):
    """A register file of which nothing is known but its ports."""

    def elaborate(self, platform: object) -> Module:
        return Module()


class UnitUnderProof:
    """A unit behind such a register file, and what its pins have done."""

    def __init__(self, spec: UnitSpec) -> None:
        made = []

        def anything(spec: UnitSpec) -> RegisterFile:
            made.append(_Anything(spec))
            return made[-1]

        unit = thermokron.rtl.unit.ThermodynamicUnit
        names = unit.elaborate.__globals__  # a broken copy has its own
        original, names["RegisterFile"] = names["RegisterFile"], anything
        try:
            self.h = h = Harness(unit(spec))
        finally:
            names["RegisterFile"] = original
        self.spec, self.registers = spec, made[0]
        registers: Any = self.registers
        dut, m = h.dut, h.m
        self.busy = registers.status_busy
        everything = register_map(spec)
        program = []
        for name, field in everything.fields.items():
            if field.access in ("config", "pulse"):
                h.release(name, getattr(registers, name))
            if field.access == "config":
                program.append(Value.cast(getattr(registers, name)))
        start, abort, clear = (
            getattr(registers, f"control_{p}") for p in ("start", "abort", "clear")
        )
        frozen = Cat(*program)
        settled = start | h.past(self.busy | start)
        h.assume(~(h.calm & settled) | (frozen == h.past(frozen)))
        h.assume(h.calm | ~start)
        h.assume((start + abort + clear <= 1) & ~(self.busy & (start | clear)))
        for name in everything.windows:
            port = getattr(registers, name)
            for member in ("address", "write", "write_data", "read"):
                h.release(f"{name}_{member}", getattr(port, member))
            locked = h.calm & h.past(port.locked)
            h.assume(~(port.write & (locked | port.read)) & ~(port.read & self.busy))

        self.reset = h.named("reset", ResetSignal())  # which discharge and convst obey at once
        self.cancel = h.inside("sequencer.cancel")
        self.rise = h.named("rise", dut.convst & ~h.past(dut.convst) & h.calm)
        self.fall = h.named("fall", ~dut.discharge & h.past(dut.discharge) & h.calm)
        # where on the grid the vector is: cycles since its discharge fell, the next one due
        self.elapsed, self.due = Signal(48), Signal(48)
        self.left = Signal(range(MAX_SAMPLES + 1))  # samples of this vector that are to come
        elapsed = Mux(self.fall, 0, self.elapsed + 1)[:48]
        due = Mux(self.fall, registers.settle, self.due)
        left = Mux(self.fall, registers.samples, self.left)
        self.on_grid = h.named("on_grid", (left != 0) & (elapsed == due) & ~h.past(self.cancel))
        self.due_next = h.named("due_next", Mux(self.on_grid, due + registers.interval, due)[:48])
        self.elapsed_now = h.named("elapsed_now", elapsed[:48])
        self.left_now = h.named("left_now", left - self.on_grid)
        m.d.sync += [self.elapsed.eq(elapsed), self.due.eq(due), self.left.eq(left)]
        with m.If(self.on_grid):
            m.d.sync += [self.due.eq(due + registers.interval), self.left.eq(left - 1)]
        with m.If(self.cancel):
            m.d.sync += self.left.eq(0)


def know(u: UnitUnderProof) -> None:
    """What induction needs to know: which blocks may be at work in which state of a run."""
    h, dut = u.h, u.h.dut
    state = h.inside("sequencer.state")

    def within(*states: State) -> Any:
        return Cat(state == s for s in states).any()

    vector = h.inside("sequencer.vector")
    last = vector == u.registers.biases - 1
    biases_busy, running = h.inside("bias_loader.busy"), h.inside("sampler.running")
    at_array = within(State.DISCHARGE, State.SETTLE, State.SAMPLE)
    at_cells = within(State.SETTLE, State.SAMPLE)
    waiting = h.inside("converter.codes__valid")
    for name, condition in {
        "busy_is_not_idle": u.busy == (state != State.IDLE),
        "program_of_a_run_is_legal": ~u.busy | ~h.inside("sequencer.refused"),
        "vector_exists": ~u.busy | (vector < u.registers.biases),
        "last_vector_at_the_dacs_is_known": ~u.busy | (h.inside("sequencer.last_loaded") == last),
        "whether_the_next_one_is_the_last_is_known": ~(at_array | within(State.WAIT))
        | dut.bias_load
        | (h.inside("sequencer.next_is_last") == (vector + 1 == u.registers.biases - 1)),
        "last_vector_is_known": ~at_cells | (h.inside("sequencer.last") == last),
        "runs_end_after_the_last_vector": ~within(State.DRAIN, State.RESULTS) | last,
        "no_vector_is_awaited_after_the_last": ~within(State.WAIT) | ~last,
        "couplings_are_loaded_in_load": ~h.inside("coupling_loader.busy") | within(State.LOAD),
        "biases_are_loaded_ahead": ~biases_busy
        | (at_array & ~last)
        | within(State.LOAD, State.WAIT),
        "sampler_runs_at_the_cells": ~running | at_cells,
        "settling_ends_with_a_trigger": ~within(State.SETTLE) | running,
        "conversions_begin_at_the_cells": ~(dut.convst | waiting)
        | ~within(State.IDLE, State.LOAD, State.SETTLE),
        "cells_are_free_at_the_cells": u.reset | (dut.discharge == ~at_cells),
        "load_pulse_begins_a_discharge": ~dut.bias_load | within(State.DISCHARGE),
    }.items():
        h.invariant(name, condition)
