"""What docs/integration.md computes is computed again, and its drawing is what the RTL does."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

from thermokron.model import Job, UnitSpec
from thermokron.rtl import packets

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "integration.md").read_text(encoding="utf-8")
NAMES = {"couplings": "couplings", "a bias vector": "biases", "a vector of results": "results"}


def table(mark: str) -> tuple[list[str], dict[int, list[int]]]:
    """The heads of a table's columns, and its numbers by the number of cells."""
    found = re.search(f"<!-- {mark} -->\n(.*?)<!-- /{mark} -->", PAGE, re.DOTALL)
    assert found is not None
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].split("\n")]
    head, _, *rows = [line for line in lines if len(line) > 1]
    numbers = [[int(cell.replace(",", "")) for cell in row] for row in rows]
    assert [row[0] for row in numbers] == [8, 16, 32, 64, 128, 256]
    return head[1:], {row[0]: row[1:] for row in numbers}


def unit(cells: int, head: str) -> UnitSpec:
    """The unit that the head of a column is about; 8 DAC lanes and 64 bits if it does not say."""
    lanes = re.search(r"(\d+) DAC lane", head)
    bits = re.search(r"(\d+)-bit", head)
    return UnitSpec(
        cells=cells,
        lanes=8,
        dac_lanes=int(lanes[1]) if lanes else 8,
        stream_bits=None if "AXI4-Lite" in head else int(bits[1]) if bits else 64,
        rhs_depth=cells,
    )


def job(spec: UnitSpec, vectors: int, samples: int = 1, *, second_moments: bool = False) -> Job:
    return Job(
        couplings=np.eye(spec.cells, dtype=int),
        biases=np.ones((vectors, spec.cells), int),
        temperature=3,
        settle_cycles=23,
        interval_cycles=spec.shortest_interval(second_moments),
        samples=samples,
        second_moments=second_moments,
    )


def test_solves() -> None:
    head, rows = table("solves")
    assert len(head) == 8
    for cells, numbers in rows.items():
        for about, number in zip(head, numbers, strict=True):
            spec = unit(cells, about)
            assert number == spec.elapsed_cycles(job(spec, cells)), (cells, about)


def test_parts_of_a_solve() -> None:
    head, rows = table("parts")
    assert len(head) == 6
    for cells, numbers in rows.items():
        for at in (0, 3):
            first, further, last = numbers[at : at + 3]
            spec = unit(cells, head[at])
            one = spec.phase_cycles(job(spec, 1))
            assert first == one["load"] + one["discharge"] + one["settle"]
            assert last == one["sample"] + one["results"]
            whole = sum(spec.phase_cycles(job(spec, cells)).values())
            before = sum(spec.phase_cycles(job(spec, cells - 1)).values())
            assert further == whole - before


def test_cycles_on_the_ports() -> None:
    head, rows = table("ports")
    assert len(head) == 12
    for cells, numbers in rows.items():
        for about, number in zip(head, numbers, strict=True):
            spec = unit(cells, about)
            assert number == spec.port_cycles(job(spec, 1))[NAMES[about.split(",")[0]]], about


def test_second_moments() -> None:
    head, rows = table("moments")
    assert len(head) == 6
    for cells, (means, moments, *results) in rows.items():
        spec = unit(cells, "")
        assert (means, moments) == (spec.shortest_interval(False), spec.shortest_interval(True))
        for about, number in zip(head[2:], results, strict=True):
            spec = unit(cells, about)
            run = job(spec, 1, 1000, second_moments=True)
            of_run, of_port = spec.phase_cycles(run)["results"], spec.port_cycles(run)["results"]
            assert number == (of_run or of_port), about


def test_what_was_measured_is_what_the_specification_says_and_little_more() -> None:
    """The command's own output is not run again: it takes a minute."""
    found = re.search("<!-- measured -->\n(.*?)<!-- /measured -->", PAGE, re.DOTALL)
    assert found is not None
    array, stream, says, measured, lite = (
        int(number.replace(",", "")) for number in re.findall(r"\| ([\d,]+) \| [\d.]+ \|", found[1])
    )
    spec = UnitSpec(
        cells=128, lanes=8, dac_lanes=8, stream_bits=64, rhs_depth=128, second_moments=False
    )
    solve = job(spec, 128)
    phases, ports = spec.phase_cycles(solve), spec.port_cycles(solve)
    assert array == sum(phases.values()) - phases["results"]
    assert stream == max(ports["couplings"] + ports["biases"], ports["results"])
    assert says == spec.elapsed_cycles(solve) < measured <= says + 100
    assert measured <= 1.3 * max(array, stream)
    assert lite > 20 * measured


@pytest.mark.parametrize(("cells", "dac_lanes", "stream_bits"), [(5, 2, 32), (8, 8, 128)])
def test_the_layouts_are_what_the_page_says(cells: int, dac_lanes: int, stream_bits: int) -> None:
    """Its one-liners, as they stand there."""
    cells_of = [line.split("|") for line in PAGE.splitlines() if line.startswith("| ")]
    layouts = {line[1].strip(): re.findall(r"`([^`]+)`", line[2]) for line in cells_of}
    spec = UnitSpec(cells=cells, dac_lanes=dac_lanes, stream_bits=stream_bits)
    rng = np.random.default_rng(cells)
    a = rng.integers(-127, 128, (cells, cells))
    a = np.triu(a) + np.triu(a, 1).T
    b = rng.integers(-2047, 2048, (3, cells))
    names = {"np": np, "n": cells, "lanes": dac_lanes, "beat": stream_bits // 8, "K": 3}

    def value(code: str, **more: object) -> object:
        return eval(code, {**names, **more})

    couplings = layouts["couplings (n, n), int8 or int16 `kind`"][0]
    content = value(couplings, a=a, kind=np.dtype("<i1"))
    assert isinstance(content, bytes)
    packet = packets.pack_couplings(spec, a)
    assert packet == content + bytes(-len(content) % (stream_bits // 8))
    biases = layouts["biases (K, n)"][0]
    assert value(biases, b=b, kind=np.dtype("<i2")) == packets.pack_biases(spec, b)

    narrow = layouts["results, one sample a vector, no second moments"][0]
    packet = rng.bytes(packets.result_bytes(spec, 3, 1, False))
    found = value(narrow, packet=packet, kind=np.dtype("<i2"))
    assert np.array_equal(found, packets.unpack_results(spec, packet, 3, 1, False)[0])
    words, sums, clipped, product = layouts["results otherwise"]
    for vectors, moments in ((3, False), (1, True)):
        packet = rng.bytes(packets.result_bytes(spec, vectors, 9, moments))
        names["K"] = vectors
        names["words"] = value(words.removeprefix("words = "), packet=packet)
        expected = packets.unpack_results(spec, packet, vectors, 9, moments)
        assert np.array_equal(value(sums.removeprefix("sums = ")), expected[0])
        assert np.array_equal(value(clipped), expected[1])
        if moments:
            assert expected[2] is not None
            for i in range(cells):
                for d in range(cells // 2):
                    assert value(product, i=i, d=d) == expected[2][i, (i + d) % cells]


def test_the_drawing_is_what_the_rtl_does() -> None:
    place = importlib.util.spec_from_file_location("guide", ROOT / "tools" / "make_guide.py")
    assert place is not None
    assert place.loader is not None
    guide = importlib.util.module_from_spec(place)
    place.loader.exec_module(guide)
    drawing = json.loads((ROOT / "docs" / "solve-timing.json").read_text(encoding="utf-8"))
    assert drawing == guide.drawing()

    # what the page says of it
    pins = guide.recorded()
    edges = {name: [at for at, level in enumerate(pins[name]) if level] for name in pins}
    loads, convst = edges["bias_load"], edges["convst"]
    released = [at for at in edges["discharge"] if at + 1 not in edges["discharge"]]
    second = edges["bias_valid"][guide.DRAWN.bias_words :]
    assert loads[0] < min(second)
    assert released[0] < max(second) < convst[0] < loads[1]
    assert pins["discharge"][convst[0]] == 0
    assert pins["discharge"][convst[0] + 1] == 1 == pins["bias_load"][convst[0] + 1]
    assert pins["convst"][convst[0] + 1] == 1  # the conversion goes on
    results = edges["m_axis_results"][: len(edges["m_axis_results"]) // 2]
    assert convst[0] < min(results)
    assert max(results) < released[1] + guide.DRAWN_JOB.settle_cycles
