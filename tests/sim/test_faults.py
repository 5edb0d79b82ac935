"""Faults on purpose: each is a named error within five seconds, and the unit works afterwards."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from engines import Unit, running

from thermokron.host import CosimUnit, open_unit
from thermokron.model import PHASES, Job, NumericUnit, Readout, UnitFault, UnitSpec
from thermokron.rtl import register_map
from thermokron.sim import FrontEndFlaws, SimulationError, SimulatorDied, missing
from thermokron.sim.protocol import Channel

#: As tests/sim/test_streams.py has it, so that the two share what is built.
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
MOMENTS = replace(SOLVE, biases=SOLVE.biases[:1], samples=7, second_moments=True)
WITHIN_S = 5.0
PHASE = register_map(SPEC).registers["status"]


@pytest.fixture(scope="module", params=["compiled", "verilator"])
def unit(request: pytest.FixtureRequest) -> Iterator[Unit]:
    yield from running(SPEC, request.param, seed=4)


def good(job: Job) -> Readout:
    return NumericUnit(SPEC, seed=4).run(job, stream=7)


def same_integers(found: Readout, expected: Readout) -> bool:
    """Whatever the cycles: converters that are late make a run longer."""
    same = [
        np.array_equal(found.sums, expected.sums),
        np.array_equal(found.clipped, expected.clipped),
        found.products is None or np.array_equal(found.products, expected.products),
    ]
    return all(same)


def assert_usable(unit: Unit) -> None:
    """Jobs of both kinds still return what the numeric engine does, cycles too."""
    unit.link.misbehave(FrontEndFlaws())
    for job in (SOLVE, MOMENTS):
        assert unit.run(job, stream=7) == good(job)


@contextlib.contextmanager
def named(fault: str, kind: type[Exception] = UnitFault) -> Iterator[None]:
    """What is done here ends with an error of that text within the time."""
    begin = time.monotonic()
    with pytest.raises(kind, match=fault):
        yield
    assert time.monotonic() - begin < WITHIN_S


# ---- converters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("job", [SOLVE, MOMENTS], ids=["solve", "moments"])
@pytest.mark.parametrize(
    ("flaws", "fault"),
    [
        (FrontEndFlaws(silent_from=0), "adc_timeout"),
        (FrontEndFlaws(early_cycles=3), "adc_stuck"),
        (FrontEndFlaws(early_cycles=19), "adc_stuck"),
        (FrontEndFlaws(latency_cycles=100_000, seed=5), "adc_timeout"),
        (FrontEndFlaws(glitch=1.0), "adc_stuck"),
        (FrontEndFlaws(stall=1.0), "dac_timeout"),
    ],
    ids=lambda value: "" if isinstance(value, FrontEndFlaws) else value,
)
def test_converters_that_fail(unit: Unit, flaws: FrontEndFlaws, fault: str, job: Job) -> None:
    unit.link.misbehave(flaws)
    before = unit.stream
    with named(fault):
        unit.run(job)
    assert unit.stream == before
    assert_usable(unit)


def test_an_adc_that_never_lets_go(unit: Unit) -> None:
    """At the next sample of a vector, and at the next vector's."""
    for job in (SOLVE, MOMENTS):
        unit.link.misbehave(FrontEndFlaws(stuck_from=0))
        with named("adc_stuck"):
            unit.run(job)
        assert_usable(unit)


@pytest.mark.parametrize(
    "flaws",
    [
        FrontEndFlaws(early_cycles=1),
        FrontEndFlaws(latency_cycles=9, seed=2),
        FrontEndFlaws(stall=0.7, seed=2),
    ],
    ids=["early", "late", "stall"],
)
def test_what_is_within_bounds_changes_no_integer(unit: Unit, flaws: FrontEndFlaws) -> None:
    """DRDY that is a cycle early is not seen before CONVST, by two flip-flops; and data count at
    the earliest when a conversion can be over."""
    for job in (SOLVE, MOMENTS):
        unit.link.misbehave(flaws)
        assert same_integers(unit.run(job, stream=7), good(job))
    assert_usable(unit)


@pytest.mark.parametrize("glitch", [0.002, 0.02, 0.3])
def test_glitches_are_a_named_fault_or_nothing(unit: Unit, glitch: float) -> None:
    """Of some runs this, of some that."""
    seen = set()
    for seed in range(12):
        for job in (SOLVE, MOMENTS):
            unit.link.misbehave(FrontEndFlaws(glitch=glitch, seed=seed))
            begin = time.monotonic()
            try:
                assert same_integers(unit.run(job, stream=7), good(job))
                seen.add("")
            except UnitFault as fault:
                seen.add(str(fault).partition(":")[0])
            assert time.monotonic() - begin < WITHIN_S
    assert seen <= {"", "adc_stuck", "adc_timeout"}
    assert seen - {""} or glitch < 0.01
    assert "" in seen or glitch > 0.1
    assert_usable(unit)


# ---- reset, and abort, at any time -------------------------------------------------------------


def reach(unit: Unit, job: Job, cycles: int) -> str:
    """Let a run be on for so many clock cycles; where it is then."""
    unit._start(job, 0)
    done = cycles > 0 and unit.link.wait_interrupt(cycles)
    phase = PHASE.unpack(unit._read(PHASE.address))["phase"]
    return "idle" if done else ("idle", *PHASES)[phase]


def moments_of(job: Job) -> range:
    """Clock cycles from START, some in every phase of a run."""
    return range(0, sum(SPEC.phase_cycles(job).values()), 7)


@pytest.mark.parametrize("job", [SOLVE, MOMENTS], ids=["solve", "moments"])
def test_a_reset_in_every_phase(unit: Unit, job: Job) -> None:
    seen = set()
    for cycles in moments_of(job):
        seen.add(reach(unit, job, cycles))
        unit.link.reset()
        with named("the unit was not done after"):
            unit._finish(job)  # of the run that is gone
        assert unit.run(job, stream=7) == good(job)
    # a solve's results are as good as gone when its last conversion is over
    assert seen >= {*PHASES} - ({"results"} if job is SOLVE else set())
    assert_usable(unit)


@pytest.mark.parametrize("job", [SOLVE, MOMENTS], ids=["solve", "moments"])
def test_an_abort_in_every_phase(unit: Unit, job: Job) -> None:
    seen = set()
    for cycles in moments_of(job):
        seen.add(where := reach(unit, job, cycles))
        if where == "idle":
            unit._finish(job)
            continue
        begin = time.monotonic()
        unit.abort()
        ended = ""
        try:
            unit._finish(job)
        except UnitFault as fault:
            ended = str(fault)
        # the accesses take cycles, in which a run may be over
        assert ended.startswith("aborted") if ended else where in ("sample", "results")
        assert time.monotonic() - begin < WITHIN_S
        assert unit.run(job, stream=7) == good(job)
    assert seen >= {*PHASES} - ({"results"} if job is SOLVE else set())


@pytest.mark.parametrize("cycles", [0, 3, 30])
def test_an_abort_while_the_next_couplings_are_on_their_way(unit: Unit, cycles: int) -> None:
    """Their packet goes on; it is not relied on."""
    other = replace(SOLVE, couplings=SPEC.coupling_codes(0.6 * np.eye(5) - 0.1 * (cycles > 3)))
    unit.link.misbehave(FrontEndFlaws(stream_stall=0.9, seed=cycles))
    unit._start(SOLVE, 0)
    unit._load_couplings(other, ahead=True)
    assert not unit.link.wait_interrupt(cycles + 1)
    unit.abort()
    with named("aborted"):
        unit._finish(SOLVE)
    unit.link.misbehave(FrontEndFlaws())
    assert unit.run(other, stream=7) == good(other)
    assert_usable(unit)


# ---- the link to a simulator -------------------------------------------------------------------


class Between:
    """Passes on what host and simulator say to each other, and changes it on the way."""

    def __init__(self, unit: CosimUnit, change: Callable[[bytes, bool], bytes | None]) -> None:
        self._far = unit.link._channel._socket
        self._near, ours = socket.socketpair()
        unit.link._channel = Channel(ours)
        self._change = change
        self.threads = [
            threading.Thread(target=self._pass, args=ends, daemon=True)
            for ends in ((self._near, self._far, True), (self._far, self._near, False))
        ]
        for thread in self.threads:
            thread.start()

    def _pass(self, source: socket.socket, target: socket.socket, to_unit: bool) -> None:
        with contextlib.suppress(OSError):
            while some := source.recv(1 << 16):
                changed = self._change(some, to_unit)
                if changed is None:  # cut in the midst of it
                    target.sendall(some[: len(some) // 2])
                    break
                target.sendall(changed)
            for end in (source, target):
                end.shutdown(socket.SHUT_RDWR)


def flipped(some: bytes) -> bytes:
    """A bit of the last byte is another one."""
    return some[:-1] + bytes([some[-1] ^ 4])


@pytest.mark.parametrize("to_unit", [True, False], ids=["to the unit", "from the unit"])
@pytest.mark.parametrize("how", ["garbled", "cut"])
def test_a_link_that_is_damaged(how: str, to_unit: bool) -> None:
    """In the midst of a frame. There is no telling what the unit has understood: another works."""
    if reason := missing("verilator"):
        pytest.skip(reason)

    def change(some: bytes, is_to_unit: bool) -> bytes | None:
        if is_to_unit is not to_unit:
            return some
        return None if how == "cut" else flipped(some)

    unit = open_unit("cosim", SPEC, seed=4)
    assert isinstance(unit, CosimUnit)
    with unit:
        assert_usable(unit)
        Between(unit, change)
        expected = {
            ("garbled", False): "damaged answer to .* CRC",
            # or the simulator has noticed, and ended, by then
            ("cut", False): "damaged answer to .* ended within|is gone at",
        }
        with named(expected.get((how, to_unit), "is gone at"), SimulationError):
            unit.run(SOLVE)
        process = unit.link.process
    assert process.poll() is not None
    with open_unit("cosim", SPEC, seed=4) as another:
        assert isinstance(another, CosimUnit)
        assert_usable(another)


# ---- a disk that is full -----------------------------------------------------------------------

#: As tests/sim/test_simulation.py and test_compiled.py have it.
SMALL = UnitSpec(cells=3, lanes=1, adc_timeout_cycles=30)


@pytest.mark.parametrize(
    ("engine", "kind", "message"),
    [
        ("compiled", OSError, r"the waveform .*full\.vcd could not be written"),
        ("cosim", SimulatorDied, "the waveform could not be written: No space left on device"),
    ],
)
def test_a_disk_that_is_full_at_a_waveform(
    engine: Literal["compiled", "cosim"], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    """The unit is lost with it; another works."""
    if engine == "cosim" and (reason := missing("verilator")):
        pytest.skip(reason)
    full = tmp_path / "full.vcd"
    full.symlink_to("/dev/full")
    job = Job(
        couplings=SMALL.coupling_codes(0.9 * np.eye(3)),
        biases=np.array([[40, 0, -500]]),
        temperature=200,
        settle_cycles=20,
        interval_cycles=17,
        samples=40,
    )
    open_unit(engine, SMALL, waves=tmp_path / "good.vcd").close()  # built before time is taken
    with named(message, kind), open_unit(engine, SMALL, seed=4, waves=full) as unit:
        for _ in range(200):  # as many as fill every buffer
            unit.run(job)
    with open_unit(engine, SMALL, seed=4) as another:
        assert another.run(job) == NumericUnit(SMALL, seed=4).run(job)
