"""Traffic on `Couplings` and `Biases`, and their golden memory: a load sends what stands there."""

from __future__ import annotations

from typing import Any

from thermokron.model.timing import item_bytes
from thermokron.rtl.layout import bias_stride, coupling_cells
from thermokron.sim.benches.support import Bench, Block, settled, signed, value

__all__ = ["Loader"]


class Loader:
    """One instance, its golden memory, and the traffic on it.

    Attributes
    ----------
    words : list of list of (int or None)
        What the host has written, as 32-bit words; a list per coupling bank, or one for biases.
        None is what an earlier test may have left.
    sent : list of tuple
        Tags and code of the transfers since the last start.
    stall : float
        Fraction of the cycles in which the DAC is not ready.
    """

    def __init__(self, bench: Bench, block: Block) -> None:
        self.bench, self.block, self.rng = bench, block, bench.random(block)
        self.spec = spec = block.spec
        self.couplings = block.kind == "Couplings"
        self.streams = spec.stream_bits is not None
        self.bits = spec.coupling_bits if self.couplings else spec.bias_bits
        self.limit = (1 << (self.bits - 1)) - 1
        self.index = (spec.cells - 1).bit_length()
        self.stride = bias_stride(spec)
        depth = len(coupling_cells(spec)[0]) if self.couplings else spec.rhs_depth * self.stride
        self.windows = ["bank0", "bank1"] if self.couplings else ["window"]
        self.words: list[list[int | None]] = [[None] * depth for _ in self.windows]
        self.queue: list[tuple[int, int, int]] = []  # writes to come: window, address, word
        self.in_use: int | None = None
        self.sent: list[tuple[int, ...]] = []
        self.stall, self.stalls = 0.0, 0
        self.held: int | None = None  # a payload that is offered and not taken
        self.beats: list[tuple[int, int]] = []  # of the packet to come: data, and whether it ends
        self.pauses = 0.0  # fraction of the cycles in which the stream has nothing
        self.filled: int | None = None  # the bank that a packet fills

    # ---- golden model -------------------------------------------------------------------

    def used(self, select: int) -> list[int]:
        """Addresses of bank or vector `select` in its window."""
        if self.couplings:
            return list(range(len(self.words[select])))
        base, lanes = select * self.stride, self.spec.dac_lanes
        return list(range(base, base + -(-self.spec.cells // lanes) * lanes))

    def tagged(self, select: int) -> list[tuple[tuple[int, ...], list[int], list[bool]]]:
        """Tags, addresses and enables of every word of bank or vector `select`, in order."""
        lanes, addresses = self.spec.dac_lanes, self.used(select)
        tags: list[tuple[int, ...]] = [(cell,) for cell in range(len(addresses))]
        if self.couplings:
            rows, columns, on = (part.tolist() for part in coupling_cells(self.spec))
            tags = list(zip(rows, columns, strict=True))
        else:
            on = [cell < self.spec.cells for cell in range(len(addresses))]
        parts = [slice(i, i + lanes) for i in range(0, len(addresses), lanes)]
        return [(tags[part][0], addresses[part], on[part]) for part in parts]

    def expected(self, select: int) -> tuple[list[tuple[Any, ...]], bool]:
        """What a load sends, a word at a time, and whether it meets a bad code."""
        words = self.words[select if self.couplings else 0]
        sent: list[tuple[Any, ...]] = []
        for tags, addresses, enable in self.tagged(select):
            codes = []
            for address, on in zip(addresses, enable, strict=True):
                word = words[address]
                if on:
                    assert word is not None
                    codes.append(signed(word, 32))
            if any(abs(code) > self.limit for code in codes):
                return sent, True
            sent.append((*tags, *codes))
        return sent, False

    # ---- traffic ------------------------------------------------------------------------

    def any_word(self, legal: bool) -> int:
        low, high = self.limit, 1 << 31
        if legal:
            return self.rng.choice([self.rng.randint(-low, low), low, -low, 0, 1, -1])
        return self.rng.choice(
            [low + 1, -low - 1, 1 << self.bits, -(1 << self.bits), high - 1, -high]
        )

    def fill(self, select: int) -> None:
        """Queue writes of a whole bank or vector, in random order; some hold bad codes."""
        window = select if self.couplings else 0
        addresses = self.used(select)
        # codes that have no DAC may be anything
        idle = [a for _, some, on in self.tagged(select) for a, o in zip(some, on, strict=True)
                if not o]  # fmt: skip
        bad = [*idle, *(self.rng.sample(addresses, 1) if self.rng.random() < 0.4 else [])]
        self.rng.shuffle(addresses)
        self.queue += [(window, a, self.any_word(a not in bad)) for a in addresses]

    async def cycle(self, *, start: int = 0, cancel: int = 0, select: int = 0) -> None:
        """One clock cycle: drive, look, and keep the golden memory up to date."""
        block, rng = self.block, self.rng
        block.start.value, block.cancel.value = start, cancel
        (block.bank if self.couplings else block.vector).value = select
        ready = rng.random() >= self.stall
        block.dac_ready.value = int(ready)
        locked = rng.getrandbits(len(self.windows))
        block.locked.value = locked
        write = None
        for name in self.windows:
            getattr(block, f"{name}_write").value = 0
            getattr(block, f"{name}_read").value = 0
        if self.queue and self.queue[0][0] != self.in_use and rng.random() < 0.8:
            write = window, address, word = self.queue.pop(0)
            name = self.windows[window]
            getattr(block, f"{name}_write").value = 1
            getattr(block, f"{name}_address").value = address
            getattr(block, f"{name}_write_data").value = word & 0xFFFF_FFFF
        offered = bool(self.beats) and rng.random() >= self.pauses
        if self.streams:
            block.axis_tvalid.value = int(offered)
            data, last = self.beats[0] if offered else (0, 0)
            block.axis_tdata.value, block.axis_tlast.value = data, last
        idle = not start and not value(block.busy)  # else nobody reads a window
        if self.filled is not None and write is None and idle and rng.random() < 0.4:
            getattr(block, f"{rng.choice(self.windows)}_read").value = 1  # which comes first
        await settled()
        if self.filled is not None and self.couplings:
            locked |= value(block.open) << self.filled
        for number, name in enumerate(self.windows):
            assert value(getattr(block, f"{name}_locked")) == locked >> number & 1
        self._watch(ready, cancel)
        if offered and value(block.axis_tready):
            if self.filled is None:
                self.filled = 1 - select if self.couplings else 0
            self.beats.pop(0)
        if write is not None:
            self.words[window][address] = word
        await self.bench.next_cycle()
        block.start.value, block.cancel.value = 0, 0

    def _watch(self, ready: bool, cancel: int) -> None:
        """Note a transfer; a code that is offered stays until it is taken."""
        block = self.block
        valid = value(block.dac_valid)
        payload = value(block.dac_payload) if valid else 0
        if self.held is not None:
            assert valid, "a code was withdrawn"
            assert payload == self.held, "a code changed before it was taken"
        self.held = payload if valid and not ready and not cancel else None
        self.stalls += valid and not ready
        if valid and ready:
            mask, tags, lanes = (
                (1 << self.index) - 1,
                2 if self.couplings else 1,
                block.spec.dac_lanes,
            )
            fields = tuple(payload >> (self.index * i) & mask for i in range(tags))
            enable = payload >> (self.index * tags)
            codes = enable >> lanes
            self.sent.append((*fields, *(
                signed(codes >> (self.bits * lane), self.bits)
                for lane in range(lanes) if enable >> lane & 1
            )))  # fmt: skip
            assert value(block.busy)
        if value(block.bad_code):
            assert not valid, "a bad code was sent"

    async def drain(self) -> None:
        """Do all queued writes."""
        while self.queue:
            await self.cycle()

    def any_select(self) -> int:
        return self.rng.randrange(2 if self.couplings else self.block.spec.rhs_depth)

    async def load(self, select: int, *, cancel_after: int | None = None) -> None:
        """Load a bank or vector; compare codes, their order, and the cycles that it took."""
        block = self.block
        expected, bad = self.expected(select)
        self.sent, self.stalls = [], 0
        self.in_use = select if self.couplings else 0
        assert not value(block.busy)
        await self.cycle(start=1, select=select)
        cycles = 0
        while value(block.busy) and not value(block.bad_code):
            if cycles == cancel_after:
                break
            # a start during a load changes nothing
            again = int(self.rng.random() < 0.2)
            # while packets come the bank is what the load began with
            now = self.any_select() if self.filled is None else select
            await self.cycle(start=again, select=now)
            cycles += 1
            assert cycles < 100 * (len(expected) + 10), "a load does not end"
        if cycles == cancel_after:
            assert self.sent == expected[: len(self.sent)]
        else:
            assert self.sent == expected
            assert value(block.bad_code) == bad
            # two cycles to read the first word, and then one per word but for the stalls
            assert cycles == 2 + len(expected) + self.stalls + bad
        if bad and cancel_after is None:  # it says so until it is told to stop
            for _ in range(self.rng.randint(0, 5)):
                await self.cycle()
                assert value(block.bad_code)
                assert value(block.busy)
        if value(block.busy):
            sent = len(self.sent) + value(block.dac_valid)
            await self.cycle(cancel=1)
            assert len(self.sent) <= sent
        self.in_use = None
        assert not value(block.busy)
        assert not value(block.bad_code)
        sent = len(self.sent)
        for _ in range(self.rng.randint(0, 3)):
            await self.cycle()
        assert len(self.sent) == sent, "a code was sent after the end"

    async def read_back(self, count: int) -> None:
        """Read words through the windows, at any spacing; each comes two cycles later."""
        due: list[tuple[str, int] | None] = [None, None]
        block = self.block
        for left in reversed(range(count + 2)):
            for name in self.windows:
                getattr(block, f"{name}_write").value = 0
                getattr(block, f"{name}_read").value = 0
            due.append(None)
            if left >= 2 and self.rng.random() < 0.7:
                window = self.rng.randrange(len(self.windows))
                address = self.rng.randrange(len(self.words[window]))
                name, word = self.windows[window], self.words[window][address]
                getattr(block, f"{name}_read").value = 1
                getattr(block, f"{name}_address").value = address
                if not self.couplings and address % self.stride >= self.spec.cells:
                    due[-1] = name, 0  # between the vectors
                elif word is not None:  # of a code beyond the range only the low bits are kept
                    due[-1] = name, signed(word, self.bits)
            await settled()
            now = due[-3]
            if now is not None:
                assert signed(value(getattr(block, f"{now[0]}_read_data")), 32) == now[1]
            await self.bench.next_cycle()
        for name in self.windows:
            getattr(block, f"{name}_read").value = 0

    def row_beats(self, codes: list[int]) -> list[int]:
        """A row of codes as the stream has it, least significant first, a beat's data each."""
        size = 8 * item_bytes(self.bits)
        per_beat = (self.spec.stream_bits or 0) // size
        return [
            sum(
                (code & ((1 << size) - 1)) << (size * i)
                for i, code in enumerate(codes[at : at + per_beat])
            )
            for at in range(0, len(codes), per_beat)
        ]

    async def vectors(self) -> None:
        """Bias vectors by packet: one is cut off in its midst, then one comes whole."""
        block, rng = self.block, self.rng
        for cut in (True, False):
            count = rng.randint(1, self.spec.rhs_depth)
            block.vectors.value = count - 1
            block.stream_run.value = 1
            await self.cycle()
            block.stream_run.value = 0
            rows = [[self.any_word(True) for _ in range(self.spec.cells)] for _ in range(count)]
            beats = [beat for row in rows for beat in self.row_beats(row)]
            self.beats = [(beat, int(i == len(beats) - 1)) for i, beat in enumerate(beats)]
            if cut:
                left = rng.randint(0, len(beats) - 1)
                while len(self.beats) > left:
                    await self.cycle()
                await self.cycle(cancel=1)
                while self.beats or value(block.open):  # dropped up to its end
                    await self.cycle()
                await self.cycle()
                self.filled = None
                continue
            lanes = self.spec.dac_lanes
            for number, row in enumerate(rows):
                self.sent = []
                await self.cycle(start=1, select=number)
                for _ in range(100 * (len(beats) + 10)):
                    if not value(block.busy):
                        break
                    await self.cycle(select=number)
                assert not value(block.busy), "a vector does not end"
                assert not value(block.bad_code)
                expected = [(cell, *row[cell : cell + lanes]) for cell in range(0, len(row), lanes)]
                assert self.sent == expected
            assert not self.beats
            assert not value(block.open)
            self.filled = None
        block.window_run.value = 1
        await self.cycle()
        block.window_run.value = 0
        self.words[0] = [None] * len(self.words[0])

    async def packet(self, bank: int, *, wrong: int) -> None:
        """One into the bank beside `bank`, which is loaded meanwhile, and then the other.

        With `wrong` it ends a beat too early or too late.
        """
        block, rng = self.block, self.rng
        other = 1 - bank
        codes = [self.any_word(True) for _ in self.words[other]]
        beats = self.row_beats(codes)
        beats = beats[:wrong] if wrong < 0 else [*beats, *[0] * wrong]
        if not beats:
            return
        before, self.filled = value(block.packets), None
        self.beats, held = [(beats[0], int(len(beats) == 1))], beats[1:]
        while self.beats:
            assert not value(block.open)
            await self.cycle(select=bank)
        assert value(block.open)
        if held:  # no more comes until this bank is loaded
            await self.load(bank)
            assert value(block.open)
        self.sent, self.in_use = [], other
        if held and rng.random() < 0.6:
            await self.cycle(start=1, select=other)
            for _ in range(rng.randint(3, 9)):  # and the other waits
                await self.cycle(select=other)
                assert value(block.busy)
                assert not value(block.dac_valid)
        elif rng.random() < 0.5:  # software writes to the bank beside it
            self.fill(bank)
        self.beats = [(beat, int(i == len(held) - 1)) for i, beat in enumerate(held)]
        misplaced = 0
        for _ in range(40 * len(codes) + 400):
            if not self.beats and not value(block.open) and not value(block.busy):
                break
            if self.beats:
                assert value(block.open)
                assert not self.sent
            await self.cycle(select=other)
            misplaced |= value(block.early) << 1 | value(block.late)
            if misplaced:  # as the sequencer does
                break
        else:
            raise AssertionError("a packet or its load does not end")
        loading, self.in_use = value(block.busy), None
        await self.cycle(select=other)  # in which it is counted
        await self.drain()
        if wrong:
            while self.beats or value(block.open):
                await self.cycle(select=other)
            await self.cycle(cancel=1, select=other)
            await self.cycle(select=other)
            assert not misplaced or loading
            assert value(block.packets) == before
            assert value(block.spoiled) >> other & 1
            self.words[other] = [None] * len(codes)
        else:
            assert not misplaced
            assert value(block.packets) == before + 1 & 0xFFFF
            assert not value(block.spoiled) >> other & 1
            self.words[other] = list(codes)
            if self.sent:
                assert self.sent == self.expected(other)[0]
            self.filled = None
            await self.load(other)
        self.filled = None

    async def fill_unknown(self, select: int) -> None:
        """Write a bank or vector of which the contents are not known."""
        words = self.words[select if self.couplings else 0]
        if any(words[address] is None for address in self.used(select)):
            self.fill(select)
            await self.drain()

    async def session(self, rounds: int) -> None:
        """Load after load, while the other bank is being filled."""
        select = 0
        for _ in range(rounds):
            self.stall = self.rng.choice([0.0, 0.0, 0.3, 0.9])
            following = self.any_select()
            if self.rng.random() < 0.7:
                self.fill(following)  # of the bank in use, after the load
            cancel = self.rng.randint(0, 20) if self.rng.random() < 0.3 else None
            await self.fill_unknown(select)
            await self.load(select, cancel_after=cancel)
            await self.read_back(self.rng.randint(0, 12))
            await self.drain()
            select = following
