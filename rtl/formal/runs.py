"""Whole runs of a unit: the grid at its pins, and every sample accounted for."""

from __future__ import annotations

from typing import Any

from amaranth import Cat, Mux, Signal

from thermokron.rtl.formal.copies import Broken
from thermokron.rtl.formal.harness import Harness
from thermokron.rtl.formal.proof import Proof
from thermokron.rtl.formal.unit import SIZES, SPEC, UnitUnderProof, know
from thermokron.rtl.sequencer import State

__all__ = ["PROOFS"]


def runs() -> Harness:
    """Whole runs: the grid at the pins, and every sample accounted for."""
    u = UnitUnderProof(SPEC)
    h, dut, registers = u.h, u.h.dut, u.registers
    calm, past = h.calm, h.past
    h.holds("convst_rises_exactly_on_the_grid", ~calm | u.reset | (u.rise == u.on_grid))
    last = past(u.rise & (u.left_now == 0))
    h.holds("cells_are_held_after_the_last_sample", ~(calm & last) | dut.discharge)
    accepted, risen = _samples(u)
    finished = h.named(
        "finished", calm & registers.status_done & past(~registers.status_done & u.busy)
    )
    vectors, samples = past(registers.biases), past(registers.samples)
    h.holds("no_sample_is_lost", ~finished | (accepted == risen))
    told = Mux(vectors == 2, samples << 1, samples)
    h.holds("a_run_takes_the_samples_it_was_told", ~finished | (accepted == told))
    know(u)
    _count(u, accepted, risen)
    h.reached("a_run_of_two_vectors", finished & (vectors == 2) & (samples == 1))
    h.reached("a_fault", past(u.cancel & ~registers.control_abort) & calm)
    return h


def ends() -> Harness:
    """Every run ends: in each of its cycles a number falls that cannot fall for ever.

    It is made of the vectors and the states that are to come, and of what is to be done in this
    state, before which patience runs out where something else has to do it.
    """
    u = UnitUnderProof(SPEC)
    h, registers = u.h, u.registers
    state, vector = h.inside("sequencer.state"), h.inside("sequencer.vector")
    order = (State.RESULTS, State.DRAIN, State.WAIT, State.SAMPLE, State.SETTLE, State.DISCHARGE)
    rank: Any = 7  # of LOAD
    for number, code in enumerate(order, 1):
        rank = Mux(state == code, number, rank)
    stage = ((SPEC.rhs_depth - vector) * 8 + rank)[:6]

    loads = {name: _load(h, f"{name}_loader.loader") for name in ("coupling", "bias")}
    elapsed, waiting = h.inside("converter.elapsed"), h.inside("converter.codes__valid")
    conversion = Mux(h.dut.convst, 18 - elapsed, waiting)
    pipeline = h.inside("moments.pipeline")
    accumulation: Any = 0
    for stage_of_write in reversed(range(len(pipeline))):
        accumulation = Mux(pipeline[stage_of_write], len(pipeline) - stage_of_write, accumulation)
    left, longest = h.inside("moments.left"), u.spec.accumulate_cycles()
    accumulation = Mux(h.inside("moments.active"), left + len(pipeline), accumulation)
    accumulation = Mux(h.inside("moments.load"), longest + len(pipeline) + 1, accumulation)
    work = {
        State.LOAD: loads["coupling"] + loads["bias"],
        State.WAIT: loads["bias"],
        State.DISCHARGE: h.inside("sequencer.wait") + conversion,
        State.SETTLE: h.inside("sampler.left"),
        State.SAMPLE: h.inside("sampler.left"),
        State.DRAIN: conversion * 16 + accumulation,
    }
    here: Any = 0
    for code, value in work.items():
        here = Mux(state == code, value, here)
    at_cells = (state == State.SETTLE) | (state == State.SAMPLE)
    samples = Mux(at_cells, registers.samples - h.inside("sampler.sampled"), 0)
    distance = h.named("distance", Cat(here[:40], samples[:24], stage))
    going_on = h.calm & u.busy & h.past(u.busy)
    closer = distance < h.past(distance)
    h.holds("a_run_comes_closer_to_its_end_or_fails", ~going_on | u.cancel | closer)
    know(u)
    _count(u, *_samples(u))
    return h


def _load(h: Harness, loader: str) -> Any:
    """Of a loader of two cells' codes, what is to be done: words in its stages, and patience."""
    reading, block = h.inside(f"{loader}.reading"), h.inside(f"{loader}.block")
    row, triangle = h.inside(f"{loader}.row"), loader.startswith("coupling")
    words = Mux(row == 0, 3 - block, 1) if triangle else 2 - block
    words = Mux(reading, words, 0) * 3 + h.inside(f"{loader}.read_valid") * 2
    words = words + h.inside(f"{loader}.valid")
    return words * 16 + SPEC.dac_timeout_cycles - h.inside(f"{loader}.waited")


def _samples(u: UnitUnderProof) -> tuple[Any, Any]:
    """How many samples of this run were accumulated, and how many conversions begun."""
    h, m = u.h, u.h.m
    accepted, risen = Signal(24, name="accepted_so_far"), Signal(24, name="begun_so_far")
    m.d.sync += [accepted.eq(accepted + h.inside("accepted")), risen.eq(risen + u.rise)]
    with m.If(h.inside("sequencer.couplings_start")):
        m.d.sync += [accepted.eq(0), risen.eq(0)]
    return accepted, risen


def _count(u: UnitUnderProof, accepted: Any, risen: Any) -> None:
    """What induction needs to know of the samples of a run: how far each block is with them."""
    h, dut, spec = u.h, u.h.dut, u.spec
    state = h.inside("sequencer.state")
    at_cells = (state == State.SETTLE) | (state == State.SAMPLE)
    running, sampled = h.inside("sampler.running"), h.inside("sampler.sampled")
    left = u.left_now[: len(sampled)]
    way = (u.due_next - u.elapsed_now - 1)[:48]
    waiting, elapsed = h.inside("converter.codes__valid"), h.inside("converter.elapsed")
    active, recent = h.inside("moments.active"), h.inside("moments.recent")
    load, to_do = h.inside("moments.load"), h.inside("moments.left")
    ready = h.inside("moments.samples__ready")
    # samples that have been taken: those of whole vectors, and what is done of this one
    vector, samples = h.inside("sequencer.vector"), u.registers.samples
    vectors = vector + Cat(state == s for s in (State.WAIT, State.DRAIN, State.RESULTS)).any()
    whole = Mux(vectors == 2, samples << 1, Mux(vectors == 1, samples, 0))
    whole = Mux(state == State.LOAD, 0, whole)
    taken = whole + Mux(at_cells, samples - left, 0)
    for name, condition in {
        "left_is_what_is_to_be_sampled": u.reset
        | ~at_cells
        | (left == (u.registers.samples - sampled)[: len(left)]),
        "sampler_stops_after_the_last": u.reset | (running == (left != 0)),
        "left_is_the_way_to_go": u.reset | ~running | (h.inside("sampler.left") == way),
        "what_was_begun_is_under_way": u.reset
        | ~u.busy
        | ((risen + u.rise - accepted - dut.convst - waiting)[:24] == 0),
        "first_vector_is_loaded_first": (state != State.LOAD) | (vector == 0),
        "as_many_were_begun_as_were_due": u.reset | ~u.busy | ((risen + u.rise - taken)[:24] == 0),
        "a_conversion_is_in_time": u.reset | ~dut.convst | (elapsed < SPEC.adc_timeout_cycles),
        "enough_is_known": u.reset
        | (h.inside("converter.enough") == (elapsed >= SPEC.adc_cycles - 1)),
        "expired_is_known": u.reset
        | (h.inside("converter.expired") == (elapsed == SPEC.adc_timeout_cycles - 1)),
        "accumulator_keeps_up": ~(dut.convst & active) | (to_do + elapsed <= 5),
        "accumulator_was_not_just_given_one": ~dut.convst
        | ~Cat(given & (elapsed > age) for age, given in enumerate(recent, 1)).any(),
        "code_waits_only_at_the_beginning": ~(dut.convst & waiting) | (elapsed == 0),
        "code_is_taken_at_once": ~(u.busy & waiting) | ready,
        "what_is_loaded_was_just_given": ~load | recent[0],
        "a_sample_takes_what_it_takes": ~active | (to_do <= spec.accumulate_cycles()),
        "end_is_known": ~active | (h.inside("moments.sample_end") == (to_do == 1)),
        "end_is_foreseen": ~active | (h.inside("moments.ending") == (to_do <= 2)),
    }.items():
        h.invariant(name, condition)


_RUNS = (
    Broken(
        "the first sample is taken a cycle late",
        "sampler",
        "left.eq(self.settle - 1)",
        "left.eq(self.settle)",
        ("convst_rises_exactly_on_the_grid",),
    ),
    Broken(
        "cells are held only when the last conversion is over",
        "sequencer",
        "with m.If(~self.sampler_busy):",
        "with m.If(~self.sampler_busy & ~self.converter_busy):",
        ("cells_are_held_after_the_last_sample",),
    ),
    Broken(
        "a sample of zeros is dropped",
        "converter",
        "self.codes.valid.eq(1),",
        "self.codes.valid.eq(self.adc_data.any()),",
        ("no_sample_is_lost",),
    ),
    Broken(
        "every vector has a sample more",
        "sampler",
        "sampled_next == self.samples",
        "self.sampled == self.samples",
        ("a_run_takes_the_samples_it_was_told",),
    ),
)

_ENDS = (
    Broken(
        "a DAC that stalls is waited for, for ever",
        "codes",
        "self.timeout.eq(stalled & (waited == self._patience - 1))",
        "self.timeout.eq(0)",
        ("a_run_comes_closer_to_its_end_or_fails",),
    ),
    Broken(
        "the sampler's counter stands still",
        "sampler",
        "left.eq(left - 1)",
        "left.eq(left)",
        ("a_run_comes_closer_to_its_end_or_fails",),
    ),
    Broken(
        "a converter that never answers is waited for, for ever",
        "converter",
        "(self.trigger | expired)",
        "self.trigger",
        ("a_run_comes_closer_to_its_end_or_fails",),
    ),
)

PROOFS = (
    Proof("runs", SIZES, runs, "induction", 5, 20, _RUNS, cycles=40),
    Proof("ends", SIZES, ends, "induction", 5, 35, _ENDS, long=True, cycles=40),
)
