"""Write what is computed in docs/integration.md: its tables, and the drawing of a solve.

    python tools/make_guide.py
    pip install wavedrom
    wavedrompy --input docs/solve-timing.json --svg docs/solve-timing.svg
    sed -i '0,/<defs>/s//<rect fill="white" height="100%" width="100%" \\/><defs>/' \\
        docs/solve-timing.svg

The tables follow from the specification alone. The drawing is what a small unit's RTL does, clock
cycle by clock cycle, in Amaranth's simulator. Tests compare both with the page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.hdl import DomainRenamer
from amaranth.sim import Simulator

from thermokron.host.tables import markdown
from thermokron.model import Job, UnitSpec
from thermokron.rtl import ThermodynamicUnit, register_map
from thermokron.rtl.packets import pack_biases, pack_couplings

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, DRAWING = DOCS / "integration.md", DOCS / "solve-timing.json"
CELLS = (8, 16, 32, 64, 128, 256)
STREAM_BITS = (32, 64, 128)
LANES = {"1 DAC lane": 1, "8 DAC lanes": 8}
SETTLE_CYCLES = 23

# ---- tables --------------------------------------------------------------------------------------


def unit(cells: int, dac_lanes: int, stream_bits: int | None) -> UnitSpec:
    """The unit of a row: 8 multipliers, and a bias vector for every cell; the rest is default."""
    return UnitSpec(
        cells=cells, lanes=8, dac_lanes=dac_lanes, stream_bits=stream_bits, rhs_depth=cells
    )


def solve(spec: UnitSpec, vectors: int) -> Job:
    """Solutions of so many columns, a sample each."""
    n = spec.cells
    return Job(
        couplings=np.eye(n, dtype=int),
        biases=np.zeros((vectors, n), int),
        temperature=1,
        settle_cycles=SETTLE_CYCLES,
        interval_cycles=spec.shortest_interval(False),
        samples=1,
        second_moments=False,
    )


def whole(spec: UnitSpec) -> int:
    """Clock cycles of a solve of n columns with its data."""
    return spec.elapsed_cycles(solve(spec, spec.cells))


def latencies(spec: UnitSpec) -> tuple[int, int, int]:
    """Of a solve: START to the first CONVST, one more vector, the last CONVST to DONE."""
    one = spec.phase_cycles(solve(spec, 1))
    first = one["load"] + one["discharge"] + one["settle"]
    total = [sum(spec.phase_cycles(solve(spec, k)).values()) for k in (spec.cells - 1, spec.cells)]
    return first, total[1] - total[0], sum(one.values()) - first


def solves() -> str:
    """Cycles of a whole solve by size, DAC lanes and port."""
    rows = []
    for n in CELLS:
        streams = [whole(unit(n, lanes, bits)) for lanes in LANES.values() for bits in STREAM_BITS]
        rows.append([n, *streams, *(whole(unit(n, lanes, None)) for lanes in LANES.values())])
    head = [f"{lanes}, {bits}-bit" for lanes in LANES for bits in STREAM_BITS]
    return _table(["cells", *head, *(f"{lanes}, AXI4-Lite" for lanes in LANES)], rows)


def parts() -> str:
    """Latency and throughput on the array, of units with streams of 64 bits."""
    rows = [[n, *latencies(unit(n, 1, 64)), *latencies(unit(n, 8, 64))] for n in CELLS]
    what = ("START to the first CONVST", "each further vector", "last CONVST to DONE")
    head = [f"{lanes}: {name}" for lanes in LANES for name in what]
    return _table(["cells", *head], rows)


def ports() -> str:
    """Cycles on the ports, of units with 8 DAC lanes."""
    rows = []
    for n in CELLS:
        row = [n]
        for name in ("couplings", "biases", "results"):
            for bits in (*STREAM_BITS, None):
                spec = unit(n, 8, bits)
                row.append(spec.port_cycles(solve(spec, 1))[name])
        rows.append(row)
    head = [
        f"{name}, {'AXI4-Lite' if bits is None else f'{bits}-bit'}"
        for name in ("couplings", "a bias vector", "a vector of results")
        for bits in (*STREAM_BITS, None)
    ]
    return _table(["cells", *head], rows)


def moments() -> str:
    """What second moments cost: the grid, and the results on their way out."""
    rows = []
    for n in CELLS:
        row = [n, unit(n, 8, 64).shortest_interval(False), unit(n, 8, 64).shortest_interval(True)]
        for bits in (*STREAM_BITS, None):
            spec = unit(n, 8, bits)
            job = Job(
                couplings=np.eye(n, dtype=int),
                biases=np.zeros((1, n), int),
                temperature=1,
                settle_cycles=SETTLE_CYCLES,
                interval_cycles=spec.shortest_interval(True),
                samples=1000,
            )
            on_its_own = spec.phase_cycles(job)["results"]
            row.append(on_its_own if bits else spec.port_cycles(job)["results"])
        rows.append(row)
    head = ["shortest interval, means", "shortest interval, second moments"]
    head += [f"results, {bits}-bit" for bits in STREAM_BITS] + ["results, AXI4-Lite"]
    return _table(["cells", *head], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[int]]) -> str:
    return markdown(head, [[f"{number:,}" for number in row] for row in rows])


# ---- the drawing ---------------------------------------------------------------------------------

DRAWN = UnitSpec(
    cells=5, dac_lanes=1, stream_bits=32, rhs_depth=2, discharge_cycles=6, second_moments=False
)
DRAWN_JOB = Job(
    couplings=DRAWN.coupling_codes(0.9 * np.eye(5)),
    biases=np.arange(-5, 5).reshape(2, 5),
    temperature=10,
    settle_cycles=8,
    interval_cycles=8,
    samples=1,
    second_moments=False,
)


def recorded() -> dict[str, list[Any]]:
    """What stands at the pins in every clock cycle, from the one before START is obeyed to DONE.

    DACs are always ready, streams never wait, and DRDY is a flip-flop behind CONVST.
    """
    spec, job = DRAWN, DRAWN_JOB
    regmap = register_map(spec)
    dut = ThermodynamicUnit(spec)
    beat = (spec.stream_bits or 0) // 8
    sources = {
        "couplings": (dut.s_axis_couplings, _beats(pack_couplings(spec, job.couplings), beat)),
        "biases": (dut.s_axis_biases, _beats(pack_biases(spec, job.biases), beat)),
    }
    program = {
        "mode": {"second_moments": 0, "bank": 1, "stream_biases": 1, "stream_results": 1},
        "biases": {"value": len(job.biases)},
        "temperature": {"value": job.temperature},
        "settle": {"value": job.settle_cycles},
        "interval": {"value": job.interval_cycles},
        "samples": {"value": job.samples},
        "irq_enable": {"done": 1, "fault": 1},
        "control": {"start": 1},
    }
    writes = [
        (regmap.registers[name].address, regmap.registers[name].pack(**fields))
        for name, fields in program.items()
    ]
    seen: list[dict[str, Any]] = []

    async def play(context: Any) -> None:
        axi, results = dut.s_axi, dut.m_axis_results
        for pin in (dut.dac_ready, dut.bias_ready, results.tready, axi.bready):
            context.set(pin, 1)
        context.set(axi.wstrb, 0xF)
        left = {name: list(beats) for name, (_, beats) in sources.items()}
        drdy = 0
        while not seen or not seen[-1]["irq"]:
            for name, (axis, _) in sources.items():
                beats = left[name]
                context.set(axis.tvalid, bool(beats))
                context.set(axis.tdata, beats[0] if beats else 0)
                context.set(axis.tlast, len(beats) == 1)
            ready = bool(writes) and not left["couplings"] and not context.get(axi.bvalid)
            if ready:
                context.set(axi.awaddr, writes[0][0])
                context.set(axi.wdata, writes[0][1])
            context.set(axi.awvalid, ready)
            context.set(axi.wvalid, ready)
            context.set(dut.drdy, drdy)
            seen.append(_pins(context, dut, start=ready and len(writes) == 1))
            drdy = context.get(dut.convst)
            taken = {n: left[n] and context.get(axis.tready) for n, (axis, _) in sources.items()}
            accepted = ready and context.get(axi.awready) and context.get(axi.wready)
            await context.tick()
            for name, is_taken in taken.items():
                if is_taken:
                    left[name].pop(0)
            if accepted:
                writes.pop(0)

    simulator = Simulator(DomainRenamer({"pins": "sync"})(dut))
    simulator.add_clock(1e-6)
    simulator.add_testbench(play)
    simulator.run()
    begin = max(at for at, pins in enumerate(seen) if pins["start"])
    return {name: [pins[name] for pins in seen[begin:]] for name in seen[0]}


def _beats(packet: bytes, size: int) -> list[int]:
    return [int.from_bytes(packet[at : at + size], "little") for at in range(0, len(packet), size)]


def _pins(context: Any, dut: Any, *, start: bool) -> dict[str, Any]:
    get = context.get
    biases, results = dut.s_axis_biases, dut.m_axis_results
    return {
        "start": int(start),
        "couplings to the DACs": get(dut.dac_valid),
        "s_axis_biases": get(biases.tvalid) and get(biases.tready),
        "bias_valid": get(dut.bias_valid),
        "bias_cell": get(dut.bias_cell),
        "bias_load": get(dut.bias_load),
        "discharge": get(dut.discharge),
        "convst": get(dut.convst),
        "drdy": get(dut.drdy),
        "m_axis_results": get(results.tvalid) and get(results.tready),
        "tlast": get(results.tvalid) and get(results.tlast),
        "irq": get(dut.irq),
    }


def drawing() -> dict[str, Any]:
    """The drawing, for WaveDrom."""
    pins = recorded()
    cycles = len(pins["irq"])
    n, vectors = DRAWN.cells, len(DRAWN_JOB.biases)
    beats = DRAWN.port_cycles(DRAWN_JOB)["biases"] // vectors  # as many as of the results
    signals: list[dict[str, Any]] = [
        {"name": "clk", "wave": "p" + "." * (cycles - 1)},
        _bits("START is written", pins["start"]),
        _bits("dac_valid", pins["couplings to the DACs"]),
        _buses("s_axis_biases", pins["s_axis_biases"], beats),
        _buses("bias_code", pins["bias_valid"], DRAWN.bias_words),
        *(_bits(name, pins[name]) for name in ("bias_load", "discharge", "convst", "drdy")),
        _buses("m_axis_results", pins["m_axis_results"], beats),
        _bits("m_axis_results_tlast", pins["tlast"]),
        _bits("irq", pins["irq"]),
    ]
    text = f"{n} cells, {vectors} vectors, settle = {DRAWN_JOB.settle_cycles}, "
    text += f"discharge = {DRAWN.discharge_cycles}, adc_cycles = {DRAWN.adc_cycles}, "
    text += f"{DRAWN.dac_lanes} DAC lane, {DRAWN.stream_bits}-bit streams"
    return {
        "signal": signals,
        "head": {"text": text, "tick": 0},
        "config": {"skin": "narrow"},
    }


def _bits(name: str, levels: Sequence[int]) -> dict[str, Any]:
    marks = [
        str(level) if not at or level != levels[at - 1] else "." for at, level in enumerate(levels)
    ]
    return {"name": name, "wave": "".join(marks)}


def _buses(name: str, valid: Sequence[int], words: int) -> dict[str, Any]:
    """A transfer in every cycle in which it is valid; so many make a vector, of which each has
    a colour and a number at its first word."""
    marks, labels, count = [], [], 0
    for at, is_valid in enumerate(valid):
        if is_valid:
            vector, word = divmod(count, words)
            marks.append("=3"[vector % 2])
            labels.append(f"{vector}" if not word else "")
            count += 1
        else:
            marks.append("x" if not at or valid[at - 1] else ".")
    return {"name": name, "wave": "".join(marks), "data": labels}


# ---- writing -------------------------------------------------------------------------------------

TABLES = {"solves": solves, "parts": parts, "ports": ports, "moments": moments}


def main() -> None:
    """Write the page's tables, and the drawing's source."""
    page = PAGE.read_text(encoding="utf-8")
    for mark, make in TABLES.items():
        before, begin, rest = page.partition(f"<!-- {mark} -->\n")
        _, end, after = rest.partition(f"<!-- /{mark} -->")
        if not begin or not end:
            raise SystemExit(f"{PAGE} has no marks {mark}")
        page = f"{before}{begin}{make()}{end}{after}"
    PAGE.write_text(page, encoding="utf-8")
    lines = ",\n".join(f"    {json.dumps(signal)}" for signal in drawing()["signal"])
    rest = {key: value for key, value in drawing().items() if key != "signal"}
    text = f'{{\n  "signal": [\n{lines}\n  ],\n'
    text += ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in rest.items())
    DRAWING.write_text(f"{text}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
