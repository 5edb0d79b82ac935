"""The driver against a unit made of Python: registers in a dictionary, the numeric engine behind.

What the gateware does with the same accesses is for `tests/sim` to show.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from thermokron.host import RegisterUnit
from thermokron.model import PHASES, Job, NumericUnit, Readout, UnitFault, UnitSpec
from thermokron.rtl import register_map
from thermokron.rtl.layout import bias_stride, coupling_cells, product_index, sum_index
from thermokron.rtl.regmap import FaultReason

SPEC = UnitSpec(cells=5, lanes=1, rhs_depth=3, dac_lanes=2)


class PythonUnit:
    """A unit as a link shows it, without time: a run is over when it has been started."""

    def __init__(self, spec: UnitSpec, seed: int = 0) -> None:
        self.spec, self.map = spec, register_map(spec)
        self.numeric = NumericUnit(spec, seed=seed)
        self.words: dict[int, int] = {}
        for field in self.map.fields.values():
            if field.access == "constant":
                register = self.map.registers[field.register]
                for word in range(register.words):
                    bits = field.insert(field.reset) >> (32 * word) & 0xFFFFFFFF
                    address = register.address + 4 * word
                    self.words[address] = self.words.get(address, 0) | bits
        self.traffic: list[tuple[str, int, int]] = []  # what, address, count
        self.fault = FaultReason.none
        self.hangs = False
        self.closed = False

    def address(self, name: str) -> int:
        known = self.map.registers if name in self.map.registers else self.map.windows
        return known[name].address

    def write(self, address: int, words: ArrayLike) -> None:
        values = np.asarray(words).astype(np.int64)
        self.traffic.append(("write", address, len(values)))
        for i, word in enumerate(values.tolist()):
            self.words[address + 4 * i] = word & 0xFFFFFFFF
        if address == self.address("control") and values[0] == 1:
            if self.fault == FaultReason.illegal_settle:
                raise UnitFault("refused")
            self._run()

    def read(self, ranges: Sequence[tuple[int, int]]) -> NDArray[np.uint32]:
        self.traffic += [("read", a, n) for a, n in ranges]
        words = [self.words[a + 4 * i] for a, n in ranges for i in range(n)]
        return np.array(words, np.uint32)

    def wait_interrupt(self, cycles: int) -> bool:
        enabled = self.words[self.address("irq_enable")]
        return not self.hangs and enabled == 3

    def close(self) -> None:
        self.closed = True

    def _signed(self, address: int) -> int:
        word = self.words[address]
        return word - (word >> 31 << 32)

    def _run(self) -> None:
        n, word = self.spec.cells, self.words
        mode = self.map.registers["mode"].unpack(word[self.address("mode")])
        bank = self.address(f"couplings{mode['bank']}")
        couplings = np.zeros((n, n), np.int64)
        for i, (row, col, used) in enumerate(zip(*coupling_cells(self.spec), strict=True)):
            if used:
                couplings[row, col] = couplings[col, row] = self._signed(bank + 4 * i)
        vectors, stride = word[self.address("biases")], bias_stride(self.spec)
        base = self.address("biases_mem")
        job = Job(
            couplings=couplings,
            biases=np.array(
                [[self._signed(base + 4 * (k * stride + i)) for i in range(n)]
                 for k in range(vectors)]
            ),
            temperature=word[self.address("temperature")],
            settle_cycles=word[self.address("settle")],
            interval_cycles=word[self.address("interval")],
            samples=word[self.address("samples")],
            second_moments=bool(mode["second_moments"]),
        )  # fmt: skip
        word[self.address("status")] = 4 if self.fault else 2
        word[self.address("fault")] = int(self.fault)
        self._answer(job)

    def _answer(self, job: Job) -> Readout:
        vectors, readout = len(job.biases), self.numeric.run(job)
        for phase in PHASES:
            self._put(self.address(f"cycles_{phase}"), readout.cycles[phase], 2)
        results = [("clipped", readout.clipped, sum_index(self.spec, vectors))]
        results += [("sums", readout.sums, sum_index(self.spec, vectors))]
        if readout.products is not None:
            results += [("products", readout.products, product_index(self.spec))]
        for name, values, index in results:
            width = self.map.windows[name].entry_words
            for entry, value in zip(index.ravel(), values.ravel(), strict=True):
                self._put(self.address(name) + 4 * width * int(entry), int(value), width)
        return readout

    def _put(self, address: int, value: int, width: int) -> None:
        for i in range(width):
            self.words[address + 4 * i] = value >> (32 * i) & 0xFFFFFFFF


class StreamedUnit(PythonUnit):
    """The same, behind a link that reaches its streams."""

    def __init__(self, spec: UnitSpec, seed: int = 0) -> None:
        super().__init__(spec, seed)
        self.packets: dict[str, list[bytes]] = {"couplings": [], "biases": []}
        self.results = b""
        self.stuck = False

    def mode(self, field: str) -> int:
        word = self.words.get(self.address("mode"), 0)
        return self.map.registers["mode"].unpack(word)[field]

    def send(self, stream: str, packet: bytes) -> None:
        self.traffic.append(("send", stream, len(packet)))  # type: ignore[arg-type]
        self.packets[stream].append(packet)

    def deliver(self, stream: str) -> None:
        self.traffic.append(("deliver", stream, 0))  # type: ignore[arg-type]
        if self.stuck:
            raise UnitFault("not taken")
        for packet in self.packets[stream]:
            bank = self.address(f"couplings{1 - self.mode('bank')}")
            self._fill(bank, np.frombuffer(packet, "<i1"))
        self.packets[stream].clear()

    def take(self, count: int) -> bytes:
        self.traffic.append(("take", "results", count))  # type: ignore[arg-type]
        if len(self.results) != count:
            raise UnitFault("another packet")
        return self.results

    def flush(self) -> None:
        self.traffic.append(("flush", "", 0))  # type: ignore[arg-type]
        for packets in self.packets.values():
            packets.clear()
        self.results = b""

    def _fill(self, address: int, codes: NDArray[np.integer]) -> None:
        for i, code in enumerate(codes.tolist()):
            self.words[address + 4 * i] = code & 0xFFFFFFFF

    def _run(self) -> None:
        if self.mode("stream_biases"):
            (packet,) = self.packets["biases"]
            self.packets["biases"].clear()
            rows = np.frombuffer(packet, "<i2").reshape(self.words[self.address("biases")], -1)
            for k, row in enumerate(rows[:, : self.spec.cells]):
                self._fill(self.address("biases_mem") + 4 * k * bias_stride(self.spec), row)
        super()._run()

    def _answer(self, job: Job) -> Readout:
        readout = super()._answer(job)
        if job.samples == 1 and not job.second_moments:
            rows = np.zeros((len(job.biases), 8), "<i2")  # whole beats of 64 bits
            rows[:, : self.spec.cells] = readout.sums
            self.results = rows.tobytes() * self.mode("stream_results")
            return readout
        words = [*(readout.sums * 2**21 + readout.clipped).ravel().tolist()]
        if readout.products is not None:
            n = self.spec.cells
            words += [readout.products[i, (i + d) % n] for i in range(n) for d in range(n // 2 + 1)]
        self.results = np.array(words, "<i8").tobytes() * self.mode("stream_results")
        return readout


def jobs(count: int = 4) -> list[Job]:
    rng = np.random.default_rng(2)
    made = []
    for i in range(count):
        matrix = np.eye(5) + 0.1 * (lambda a: a + a.T)(rng.uniform(-1, 1, (5, 5)))
        second_moments = i % 2 == 0
        vectors = 1 if second_moments else 3
        made.append(
            Job(
                couplings=SPEC.coupling_codes(matrix / np.abs(matrix).max()),
                biases=rng.integers(-SPEC.bias_max, SPEC.bias_max + 1, (vectors, 5)),
                temperature=SPEC.temperature_max,
                settle_cycles=100,
                interval_cycles=SPEC.shortest_interval(),
                samples=1 if i % 4 == 3 else 300,
                second_moments=second_moments,
            )
        )
    return made


def opened(seed: int = 6) -> tuple[RegisterUnit, PythonUnit]:
    link = PythonUnit(SPEC, seed)
    return RegisterUnit(link, SPEC, seed), link


def opened_with_streams(seed: int = 6) -> tuple[RegisterUnit, StreamedUnit]:
    link = StreamedUnit(SPEC, seed)
    return RegisterUnit(link, SPEC, seed), link


def test_jobs_go_in_and_readouts_come_out() -> None:
    unit, _ = opened()
    numeric = NumericUnit(SPEC, seed=6)
    expected = [numeric.run(job) for job in jobs()]
    assert any((r.sums < 0).any() for r in expected)  # the sign survives its 64 bits
    assert [unit.run(job) for job in jobs()] == expected
    assert unit.stream == numeric.stream


def run_ahead(unit: RegisterUnit, link: PythonUnit) -> list[tuple[str, int, int]]:
    """What passes the link while jobs run one after the other, and when each is asked for."""

    def observed() -> Iterator[Job]:
        for i, job in enumerate(jobs()):
            link.traffic.append(("job", i, 0))
            yield job

    numeric = NumericUnit(SPEC, seed=6)
    assert list(unit.run_many(observed())) == [numeric.run(job) for job in jobs()]
    return list(link.traffic)


def test_run_many_loads_the_next_couplings_before_it_waits() -> None:
    unit, link = opened()
    sent = run_ahead(unit, link)
    control, banks = link.address("control"), {link.address(f"couplings{b}"): b for b in (0, 1)}
    story = [
        "start" if address == control else f"bank {banks[address]}" if address in banks else "job"
        for what, address, _ in sent
        if what == "job" or (what == "write" and (address == control or address in banks))
    ]
    assert story == ["job", "bank 1", "start", "job", "bank 0", "start", "job", "bank 1",
                     "start", "job", "bank 0", "start"]  # fmt: skip


def test_couplings_that_a_bank_holds_are_not_sent_again() -> None:
    unit, link = opened()
    first, second, *_ = jobs()
    for job in (first, second, first, second, second):
        unit.run(job)
    banks = [link.address("couplings0"), link.address("couplings1")]
    assert sum(address in banks for what, address, _ in link.traffic if what == "write") == 2


def test_couplings_that_were_lost_on_the_way_are_sent_again(monkeypatch) -> None:
    unit, link = opened()
    first, second, third, _ = jobs()
    numeric = NumericUnit(SPEC, seed=6)
    for job in (first, second):
        assert unit.run(job) == numeric.run(job)
    bank, write = link.address("couplings1"), link.write  # that of the first

    def half(address: int, words: ArrayLike) -> None:
        if address == bank:
            write(address, np.asarray(words)[:3])
            raise ConnectionError("lost")
        write(address, words)

    monkeypatch.setattr(link, "write", half)
    with pytest.raises(ConnectionError, match="lost"):
        unit.run(third)
    monkeypatch.undo()
    # the bank holds neither the first job's couplings nor the third's
    assert unit.run(first) == numeric.run(first)


def test_a_bad_job_is_raised_after_the_readout_before_it() -> None:
    unit, _ = opened()
    good = jobs()[0]
    bad = dataclasses.replace(good, samples=2**20 + 1)
    results = unit.run_many([good, bad])
    assert isinstance(next(results), Readout)
    with pytest.raises(ValueError, match="samples = 1048577 is out of range"):
        next(results)

    def broken() -> Iterator[Job]:
        yield good
        raise KeyError("no more")

    results = unit.run_many(broken())
    assert isinstance(next(results), Readout)
    with pytest.raises(KeyError, match="no more"):
        next(results)


@pytest.mark.parametrize("reason", [r for r in FaultReason if r != FaultReason.none])
def test_every_fault_has_its_name_and_its_text(reason: FaultReason) -> None:
    unit, link = opened()
    link.fault = reason
    link.words[link.address("fault")] = int(reason)
    with pytest.raises(UnitFault) as caught:
        unit.run(jobs()[0])
    assert str(caught.value) == f"{reason.name}: {reason.doc}"
    assert unit.stream == 0
    link.fault = FaultReason.none
    assert isinstance(unit.run(jobs()[0]), Readout)


def test_a_unit_that_is_never_done_is_aborted() -> None:
    unit, link = opened()
    link.hangs = True
    with pytest.raises(UnitFault, match="not done after"):
        unit.run(jobs()[0])
    assert link.traffic[-1][:2] == ("write", link.address("control"))
    assert link.words[link.address("control")] == 2  # abort


def test_what_answers_has_to_be_the_unit_that_is_expected() -> None:
    link = PythonUnit(SPEC)
    link.words[link.address("id")] = 0xFFFFFFFF
    with pytest.raises(ValueError, match="not a Thermokron unit"):
        RegisterUnit(link, SPEC)
    with pytest.raises(ValueError, match="another one: it has lanes = 1, not 5; rhs_depth = 3"):
        RegisterUnit(PythonUnit(SPEC), dataclasses.replace(SPEC, lanes=5, rhs_depth=7))


def test_closing_the_unit_closes_its_link() -> None:
    unit, link = opened()
    with unit:
        pass
    assert link.closed


# ---- streams -----------------------------------------------------------------------------------


def test_bulk_data_pass_the_streams_and_no_window() -> None:
    unit, link = opened_with_streams()
    numeric = NumericUnit(SPEC, seed=6)
    assert [unit.run(job) for job in jobs()] == [numeric.run(job) for job in jobs()]
    first_window = min(window.address for window in link.map.windows.values())
    assert not [a for what, a, _ in link.traffic if what in ("write", "read") and a >= first_window]
    sent = [(what, stream) for what, stream, _ in link.traffic if what in ("send", "take")]
    each = [("send", "couplings"), ("send", "biases"), ("take", "results")]
    assert sent == each * len(jobs())


def test_streams_are_left_alone_where_they_are_not_wanted_or_not_there() -> None:
    for link, spec, streams in (
        (StreamedUnit(SPEC, 6), SPEC, False),
        (PythonUnit(SPEC, 6), SPEC, True),
        (StreamedUnit(dataclasses.replace(SPEC, stream_bits=None), 6), None, True),
    ):
        unit = RegisterUnit(link, spec or link.spec, 6, streams=streams)
        assert not unit.streams
        numeric = NumericUnit(unit.spec, seed=6)
        for job, found in zip(jobs(), unit.run_many(jobs()), strict=True):
            assert found == numeric.run(job)
        assert {what for what, _, _ in link.traffic} == {"write", "read"}


def test_run_many_sends_the_next_couplings_ahead() -> None:
    unit, link = opened_with_streams()
    sent = run_ahead(unit, link)
    story = [
        "start" if address == link.address("control") else what
        for what, address, _ in sent
        if what in ("job", "deliver", "take") or address in ("couplings", link.address("control"))
    ]
    next_one = ["job", "send", "take", "deliver", "start"]  # sent while the run before is on
    assert story == ["job", "send", "deliver", "start", *3 * next_one, "take"]


def test_packets_of_a_run_that_failed_are_flushed() -> None:
    unit, link = opened_with_streams()
    numeric = NumericUnit(SPEC, seed=6)
    first, second, *_ = jobs()
    for fault in (FaultReason.illegal_settle, FaultReason.adc_timeout):
        link.fault = fault
        link.words[link.address("fault")] = int(fault)
        with pytest.raises(UnitFault, match=fault.name):
            unit.run(first)
        assert ("flush", "", 0) in link.traffic
        link.traffic.clear()
        link.fault = FaultReason.none
        link.numeric.stream = 0
        assert unit.run(first, stream=0) == numeric.run(first, stream=0)
    link.hangs = True
    with pytest.raises(UnitFault, match="not done after"):
        unit.run(first)
    assert link.traffic[-1] == ("flush", "", 0)
    link.hangs = False
    # couplings that are not taken are in no bank
    link.stuck = True
    with pytest.raises(UnitFault, match="not taken"):
        unit.run(second)
    assert link.traffic[-1] == ("flush", "", 0)
    link.stuck, link.numeric.stream = False, 0
    assert unit.run(second, stream=0) == numeric.run(second, stream=0)


def test_couplings_that_cannot_be_sent_ahead_are_refused_at_their_turn() -> None:
    unit, link = opened_with_streams()
    good = jobs()[0]
    bad = dataclasses.replace(good, couplings=good.couplings.astype(np.int64) * 3)
    results = unit.run_many([good, bad])
    assert isinstance(next(results), Readout)
    with pytest.raises(ValueError, match="couplings hold a code of magnitude"):
        next(results)
    assert sum(stream == "couplings" for what, stream, _ in link.traffic if what == "send") == 1
