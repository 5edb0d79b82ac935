"""Bulk data over the streams: what it saves, and what goes wrong on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engines import Unit, running

from thermokron.model import Job, NumericUnit, UnitFault, UnitSpec
from thermokron.sim import SIMULATORS, AccessRefused, FrontEndFlaws
from thermokron.sim.frontend import stream_into

SPEC = UnitSpec(
    cells=5, lanes=1, adc_bits=8, bias_bits=8, coupling_bits=5, dac_lanes=2, stream_bits=32
)
SOLVE = Job(
    couplings=SPEC.coupling_codes(0.8 * np.eye(5) + 0.1),
    biases=np.arange(-30, 30).reshape(12, 5),
    temperature=30,
    settle_cycles=25,
    interval_cycles=20,
    samples=1,
    second_moments=False,
)
MOMENTS = replace(
    SOLVE,
    couplings=SPEC.coupling_codes(0.9 * np.eye(5)),
    biases=SOLVE.biases[:1],
    samples=7,
    second_moments=True,
)


@pytest.fixture(scope="module", params=["compiled", *SIMULATORS])
def unit(request: pytest.FixtureRequest) -> Iterator[Unit]:
    yield from running(SPEC, request.param, seed=4)


def assert_usable(unit: Unit) -> None:
    """Jobs of both kinds still return what the numeric engine does."""
    numeric = NumericUnit(SPEC, seed=4)
    for job in (SOLVE, MOMENTS):
        assert unit.run(job, stream=7) == numeric.run(job, stream=7)


def with_packets(unit: Unit, stream: str, change: Callable[[bytes], bytes], job: Job) -> None:
    """Run a job, whose packets to one stream are other ones on their way."""
    link, honest = unit.link, unit.link.send

    def send(name: str, packet: bytes) -> None:
        honest(name, change(packet) if name == stream else packet)

    link.send = send  # type: ignore[method-assign]
    try:
        unit.run(job)
    finally:
        del link.send  # type: ignore[method-assign]


BEAT = SPEC.stream_bits // 8  # type: ignore[operator]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda packet: packet[:-BEAT], "stream_early"),
        (lambda packet: packet[: 5 * BEAT], "stream_early"),
        (lambda packet: packet[:BEAT], "stream_early"),
        (lambda packet: packet + bytes(BEAT), "stream_late"),
        (lambda packet: 3 * packet, "stream_late"),
    ],
)
def test_biases_that_end_in_the_wrong_place(
    unit: Unit, change: Callable[[bytes], bytes], fault: str
) -> None:
    before = unit.stream
    with pytest.raises(UnitFault, match=fault):
        with_packets(unit, "biases", change, SOLVE)
    assert unit.stream == before
    assert_usable(unit)


@pytest.mark.parametrize("change", [lambda p: p[:-BEAT], lambda p: p + bytes(2 * BEAT)])
def test_couplings_that_end_in_the_wrong_place(
    unit: Unit, change: Callable[[bytes], bytes]
) -> None:
    other = replace(SOLVE, couplings=SPEC.coupling_codes(0.7 * np.eye(5) - 0.1))
    with pytest.raises(UnitFault, match="illegal_bank"):
        with_packets(unit, "couplings", change, other)
    # the same couplings are sent again
    assert unit.run(other, stream=2) == NumericUnit(SPEC, seed=4).run(other, stream=2)
    assert_usable(unit)


@pytest.mark.parametrize("cycles", [0, 7, 40, 160, 500])
def test_an_abort_while_biases_are_on_their_way(unit: Unit, cycles: int) -> None:
    unit.link.misbehave(FrontEndFlaws(stream_stall=0.95, seed=cycles))
    unit._start(SOLVE, 0)
    assert not unit.link.wait_interrupt(cycles)
    unit.abort()
    with pytest.raises(UnitFault, match="aborted"):
        unit._finish(SOLVE)
    unit.link.misbehave(FrontEndFlaws())
    assert_usable(unit)


@pytest.mark.parametrize("job", [SOLVE, MOMENTS], ids=["codes", "words"])
def test_an_abort_while_results_are_on_their_way(unit: Unit, job: Job) -> None:
    unit.link.misbehave(FrontEndFlaws(stream_stall=0.8, seed=1))
    unit._start(job, 0)
    streams = unit._map.registers["streams"]
    while not streams.unpack(unit._read(streams.address))["results_open"]:
        assert not unit.link.wait_interrupt(5)
    unit.abort()
    with pytest.raises(UnitFault, match="aborted"):
        unit._finish(job)
    unit.link.misbehave(FrontEndFlaws())
    assert_usable(unit)


def test_a_start_that_is_refused_leaves_no_packet(unit: Unit) -> None:
    link, honest = unit.link, unit.link.expect

    def expect(job: Job, stream: int) -> None:
        honest(job, stream)
        link.write(unit._map.registers["settle"].address, [0])

    link.expect = expect  # type: ignore[method-assign]
    try:
        with pytest.raises(UnitFault, match="illegal_settle"):
            unit.run(SOLVE)
    finally:
        del link.expect  # type: ignore[method-assign]
    assert_usable(unit)


def test_a_run_that_fails_takes_the_next_couplings_with_it(unit: Unit) -> None:
    unit.link.misbehave(FrontEndFlaws(silent_from=0))
    jobs = [replace(SOLVE, couplings=SPEC.coupling_codes(s * np.eye(5))) for s in (0.5, 0.6)]
    with pytest.raises(UnitFault, match="adc_timeout"):
        list(unit.run_many(jobs))
    unit.link.misbehave(FrontEndFlaws())
    numeric = NumericUnit(SPEC, seed=4)
    for job in reversed(jobs):
        assert unit.run(job, stream=3) == numeric.run(job, stream=3)


def test_what_nobody_takes_is_an_error(unit: Unit) -> None:
    unit.link.send("biases", bytes(BEAT))  # there is no run
    with pytest.raises(AccessRefused, match="stream biases was not taken"):
        unit.link.deliver("biases")
    unit.link.flush()
    assert_usable(unit)


def test_results_that_are_not_asked_for_are_an_error(unit: Unit) -> None:
    link, honest = unit.link, unit.link.take
    link.take = lambda count: honest(count + BEAT)  # type: ignore[method-assign]
    try:
        with pytest.raises(AccessRefused, match=r"brought 96 bytes, with TLAST after \[96\]"):
            unit.run(SOLVE)
    finally:
        del link.take  # type: ignore[method-assign]
    assert_usable(unit)


def test_streams_cost_less_than_windows_and_nothing_ahead(unit: Unit) -> None:
    """In simulated time, which counts what passes the ports, too."""
    jobs = [replace(SOLVE, couplings=SPEC.coupling_codes(s * np.eye(5))) for s in (0.3, 0.4, 0.5)]

    def cycles(run: Callable[[], Any]) -> int:
        before = unit.link.info()["cycles"]
        run()
        return int(unit.link.info()["cycles"] - before)

    at_once = cycles(lambda: [unit.run(job) for job in jobs])
    ahead = cycles(lambda: list(unit.run_many(jobs)))
    unit.streams = False
    windows = cycles(lambda: [unit.run(job) for job in jobs])
    unit.streams = True
    packets = len(jobs) - 1
    assert at_once - ahead >= packets * SPEC.port_cycles(SOLVE)["couplings"]
    bulk = SPEC.coupling_words * SPEC.dac_lanes + 2 * SOLVE.biases.size
    assert windows - at_once > len(jobs) * bulk


@pytest.mark.parametrize(
    ("spec", "stream", "packet", "message"),
    [
        (SPEC, "results", bytes(4), "stream = 'results' is unknown; legal: couplings, biases"),
        (SPEC, "biases", bytes(6), "packet has 6 bytes; legal: whole beats of 4 bytes"),
        (SPEC, "biases", b"", "packet has 0 bytes"),
        (UnitSpec(stream_bits=None), "biases", bytes(4), "stream_bits is None"),
    ],
)
def test_what_cannot_be_sent_is_refused(
    spec: UnitSpec, stream: str, packet: bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        stream_into(spec, stream, packet)
