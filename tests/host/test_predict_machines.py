"""Digital machines: presets against what was published, parts of a step, measuring, files."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn

from thermokron.host.kfac import KFAC
from thermokron.host.predict.machines import computing, digital, measure, measured
from thermokron.host.predict.machines.cards import MACHINES, machine
from thermokron.host.predict.machines.machine import Curve, Machine
from thermokron.host.predict.machines.pipefisher import PARTS, calibrated, predicted, rows
from thermokron.host.predict.quantity import Quantity, Values
from thermokron.host.predict.workloads.networks import network
from thermokron.host.predict.workloads.tracing import trace
from thermokron.host.predict.workloads.workload import Block, Operation, total_bytes, total_flops

BOARDS = {"v100": 300.0, "a100": 400.0, "h100": 700.0}
PEAKS = {"v100": 15.7e12, "a100": 19.5e12, "h100": 66.9e12}
NOMINAL = Values()


def block(inputs: int = 65, outputs: int = 32, rows: int = 128, **more: object) -> Block:
    return Block("layer", inputs, outputs, rows, **more)


# ---- presets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MACHINES)
def test_every_figure_has_a_source_and_a_range(name) -> None:
    for each in fields(Machine):
        value = getattr(machine(name), each.name)
        if isinstance(value, Curve):
            assert len(value.source) > 10
        elif isinstance(value, Quantity):
            assert value.source
            assert value.low < value.nominal or value.nominal < value.high
            assert value.unit


@pytest.mark.parametrize("name", MACHINES)
def test_large_products_draw_what_the_board_may(name) -> None:
    card, n = machine(name), 16384
    operations = [Operation.product("forward", n, n, n)]
    seconds = card.seconds(operations, NOMINAL)
    joules = card.joules(seconds, total_flops(operations), total_bytes(operations), NOMINAL)
    assert joules / seconds == pytest.approx(BOARDS[name], rel=0.1)


@pytest.mark.parametrize("name", MACHINES)
def test_rates_are_below_the_peak(name) -> None:
    card = machine(name)
    assert 0.6 * PEAKS[name] < max(card.gemm.rates) < PEAKS[name]
    for n in (1000, 2000, 4000):
        assert 0.009 < card.inverse(n) / PEAKS[name] < 0.17
    assert max(card.eigen.rates) < 0.03 * PEAKS[name]


def test_inverses_take_what_cupy_measured() -> None:
    card = machine("v100")
    for n, ms in ((250, 0.632), (500, 1.141), (1000, 3.031), (2000, 6.632), (4000, 25.125)):
        assert card.inverse_seconds(n, NOMINAL) == pytest.approx(1e-3 * ms, rel=1e-3)
    assert card.inverse_seconds(64, NOMINAL) > 0.2e-3


def test_newer_cards_are_faster() -> None:
    workload = network("bert-base", 8)
    seconds = [machine(name).seconds(workload.operations, NOMINAL) for name in MACHINES]
    assert seconds == sorted(seconds, reverse=True)


def test_unknown_machines_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="machine = 'tpu' is unknown; legal: v100, a100, h100, th"):
        machine("tpu")


# ---- against PipeFisher's tables -----------------------------------------------------------------


def errors(card: Machine, width: int, tokens: int = 1) -> list[float]:
    return [
        abs(math.log(predicted(row, card)[part] / row.seconds[part]))
        for row in rows()
        for part in PARTS
        if row.width == width and row.batch * row.sequence >= tokens
    ]


def test_one_half_of_the_rows_foretells_the_other() -> None:
    """Every part of every row within 30%; what fits lies in the preset's ranges."""
    known = [row for row in rows() if row.width == 768]
    assert len(known) == len(rows()) - len(known) == 11
    preset = machine("v100")
    card = calibrated(preset, known)
    assert max(errors(card, 1024)) < math.log(1.3)
    assert preset.bandwidth.low < card.bandwidth.nominal < preset.bandwidth.high
    assert preset.launch.low < card.launch.nominal < preset.launch.high
    assert card.gemm(1024.0) == pytest.approx(preset.gemm(1024.0), rel=0.06)
    assert card.inverse(1000.0) == pytest.approx(preset.inverse(1000.0), rel=0.06)


def test_the_preset_foretells_them_without_calibration() -> None:
    """But for batches that launches limit, which were slower in PyTorch of 2022."""
    for width in (768, 1024):
        assert max(errors(machine("v100"), width, tokens=1024)) < math.log(1.3)


# ---- parts of a step -----------------------------------------------------------------------------


def test_parts_count_what_the_package_counts() -> None:
    """Operations of a step of K-FAC, entered where they happen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10))
    x, y = torch.randn(32, 64), torch.randint(10, (32,))
    workload = trace(model, x)
    kfac = KFAC(model, lr=0.1, kl_clip=None)
    nn.CrossEntropyLoss()(model(x), y).backward()
    counted = kfac.step().digital_flops
    ours = sum(
        total_flops(operations)
        for each in workload.blocks
        for operations in (digital.inversion_operations(each), digital.apply_operations(each))
    )
    assert ours < counted < 1.1 * ours  # of lower order: damping, norms, shortening


def test_moments_take_two_products() -> None:
    operations = digital.factor_operations(block())
    assert total_flops(operations) == 2 * 128 * (65**2 + 32**2)
    made_elsewhere = digital.factor_operations(block(), inputs=False)
    assert total_flops(made_elsewhere) == 2 * 128 * 32**2


def test_equal_inputs_are_made_once() -> None:
    alike = [replace(block(), name=name, shared="query") for name in ("query", "key", "value")]
    together = total_flops(digital.curvature_operations(alike))
    assert together == 2 * 128 * (65**2 + 3 * 32**2)
    more = digital.curvature_operations(alike, diagonal=1000)
    assert total_bytes(more) > total_bytes(digital.curvature_operations(alike))


def test_diagonals_cost_no_inverse() -> None:
    words = block(diagonal_inputs=True)
    assert total_flops(digital.inversion_operations(words)) == 32**3
    assert total_flops(digital.apply_operations(words)) == 2 * 32 * 32 * 65
    assert total_flops(digital.factor_operations(words)) == 2 * 128 * 32**2
    both = block(diagonal_inputs=True, diagonal_outputs=True)
    assert total_flops(digital.inversion_operations(both)) == 0


def test_blocks_of_a_grouped_convolution_count_each() -> None:
    one, four = block(patch=9), block(patch=9, blocks=4)
    for part in (digital.factor_operations, digital.inversion_operations, digital.apply_operations):
        assert total_flops(part(four)) == 4 * total_flops(part(one))
    plain = total_bytes(digital.factor_operations(block()))
    assert total_bytes(digital.factor_operations(one)) > plain


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize(
    "part",
    [digital.factor_operations, digital.inversion_operations, digital.apply_operations],
)
def test_more_rows_take_longer(name, part) -> None:
    card = machine(name)
    sizes = (256, 512, 1024, 2048, 4096)
    seconds = [card.seconds(part(block(n + 1, n, 8 * n)), NOMINAL) for n in sizes]
    assert seconds == sorted(seconds)
    assert seconds[-1] > 3 * seconds[0]


def test_float64_takes_longer() -> None:
    card = machine("v100")
    single, double = (
        card.seconds(digital.inversion_operations(block(1025, 1024), double=double), NOMINAL)
        for double in (False, True)
    )
    assert 1.1 * single < double < 2.5 * single


def test_optimisers_move_parameters_and_their_moments() -> None:
    workload = network("mlp:64x1")
    numbers = workload.parameters
    assert total_bytes(digital.update_operations(workload, "sgd")) == 20 * numbers
    assert total_bytes(digital.update_operations(workload, "adam")) == 28 * numbers
    with pytest.raises(ValueError, match="optimiser = 'lion' is unknown; legal: sgd, adam"):
        digital.update_operations(workload, "lion")


def test_parts_add_up_on_a_machine_that_waits() -> None:
    card = replace(machine("v100"), asynchronous=False)
    operations = network("cnn").operations
    one_by_one = sum(card.seconds([each], NOMINAL) for each in operations)
    assert card.seconds(operations, NOMINAL) == pytest.approx(one_by_one)
    overlapping = machine("v100").seconds(operations, NOMINAL)
    assert overlapping < one_by_one
    launches = sum(each.count for each in operations) * card.launch.nominal
    assert overlapping >= launches


def test_draws_are_handed_through() -> None:
    values = Values(count=50, seed=1)
    seconds = machine("h100").seconds(network("vit-s16", 8).operations, values)
    assert isinstance(seconds, np.ndarray)
    assert seconds.shape == (50,)
    assert (seconds > 0.0).all()
    assert np.ptp(seconds) > 0.0


# ---- this computer -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def this() -> Machine:
    """Measured in a hurry, with few sizes."""
    few = {
        "PATIENCE": 0.002,
        "ROUNDS": 2,
        "SIDES": (32, 128),
        "THIN": (2, 32),
        "CONVOLVED": ((4, 4, 3, 8), (16, 16, 3, 8)),
        "VECTORS": (16, 64),
        "COUNTS": (64, 256),
        "INVERTED": (16, 64),
        "DECOMPOSED": (16, 32),
        "MOVED": (2**13, 2**16),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in few.items():
            patch.setattr(measure, name, value)
        patch.setattr(computing, "SIDE", 512)
        told: list[float] = []
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        found = measure.measure(lambda done, what: told.append(done))
        torch.set_num_threads(threads)
    assert told[0] == 0.0
    assert told == sorted(told)
    assert told[-1] == 1.0
    return found


def test_a_measured_machine_says_what_it_is_of(this) -> None:
    assert measured.cpu_name() in this.source
    assert "1 thread," in this.source
    assert this.gemm.source == this.source
    assert this.flop_energy.source.startswith("assumed")
    assert not this.asynchronous
    assert this.slower["aten.tanh"] < this.slower["aten.relu"]


def test_a_measured_machine_foretells(this) -> None:
    workload = network("digits")
    seconds = this.seconds(workload.operations, NOMINAL)
    assert 0.0 < seconds < 1.0
    assert this.seconds(digital.inversion_operations(block()), NOMINAL) > 0.0


def test_a_measured_machine_is_kept(this, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("THERMOKRON_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="not measured yet: `thermokron predict --measure`"):
        machine("this")
    where = measured.save(this, measure.about())
    assert where == tmp_path / "machine.json"
    assert machine("this") == this
    about = json.loads(where.read_text())["about"]
    assert set(about) >= {"cpu", "threads", "torch", "date"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=7), "its format is 7; legal: 1"),
        (lambda c: c["about"].update(cpu="another"), "is of 'another', and this is"),
        (lambda c: c["machine"].pop("gemm"), "no measured machine .*gemm.*measure again"),
        (lambda c: c["machine"]["launch"].update(low=-1.0), "no measured machine .*above 0"),
    ],
)
def test_other_files_are_refused(this, tmp_path, change, message) -> None:
    path = measured.save(this, measure.about(), tmp_path / "machine.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        measured.load(path)
    path.write_text("no json")
    with pytest.raises(ValueError, match="no measured machine"):
        measured.load(path)


def test_curves_are_lines_in_logarithms() -> None:
    curve = Curve((10.0, 1000.0), (1.0, 100.0), "a table")
    assert curve(100.0) == pytest.approx(10.0)
    assert curve(1.0) == pytest.approx(1.0)
    assert curve(1e6) == pytest.approx(100.0)
    for sizes, rates in (
        ((), ()),
        ((1.0,), (1.0, 2.0)),
        ((2.0, 1.0), (1.0, 1.0)),
        ((0.0,), (1.0,)),
    ):
        with pytest.raises(ValueError, match="legal"):
            Curve(sizes, rates, "a table")
