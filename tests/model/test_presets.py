"""Presets, specs that do not fit a physics, and what a noise temperature is in kelvin."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from thermokron.host import open_unit
from thermokron.model import PRESETS, ArrayPhysics, Job, NumericUnit, UnitSpec, preset


def said(spec: UnitSpec, physics: ArrayPhysics, engine: str = "numeric") -> list[str]:
    """What is said when a unit is opened."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_unit(engine, spec, physics).close()
    return [str(each.message) for each in caught if each.category is UserWarning]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_itself_and_runs(name):
    spec, physics = preset(name, device_seed=3)
    assert physics.device_seed == 3
    assert said(spec, physics) == []
    job = Job(
        couplings=spec.coupling_max * np.eye(spec.cells, dtype=int),
        biases=np.zeros((1, spec.cells), int),
        temperature=spec.temperature_code(0.01),
        settle_cycles=math.ceil(5 * spec.tau_s * spec.clock_hz),
        interval_cycles=max(math.ceil(2 * spec.tau_s * spec.clock_hz), spec.shortest_interval()),
        samples=2000,
    )
    with NumericUnit(spec, physics) as unit:
        readout = unit.run(job)
    variance = np.diag(readout.products).mean() / 2000 * spec.adc_step**2
    assert variance == pytest.approx(0.01, rel=0.1)


def test_a_preset_takes_changes_of_its_spec():
    spec, _ = preset("tngd", cells=24, adc_bits=14)
    assert (spec.cells, spec.adc_bits, spec.tau_s) == (24, 14, pytest.approx(1e-6))
    assert preset("spu")[0].cells == 8
    with pytest.raises(ValueError, match=r"name = 'board' is not legal; legal: discrete_board"):
        preset("board")
    with pytest.raises(ValueError, match="cells = 1 is out of range"):
        preset("tngd", cells=1)
    with pytest.raises(TypeError, match="cell"):
        preset("tngd", cell=2)


@pytest.mark.parametrize("engine", ["numeric", "statistical"])
def test_a_spec_that_samples_faster_than_its_converters_is_told(engine):
    (message,) = said(UnitSpec(cells=8), ArrayPhysics.discrete_board(), engine)
    assert "3.125e+06 samples/s" in message
    assert "adc_rate_hz = 1e+06" in message


def test_a_rate_is_told_from_the_first_cycle_too_few_on():
    # adc_cycles and 4 for the handshake
    physics = ArrayPhysics(adc_rate_hz=1e6)
    assert said(UnitSpec(adc_cycles=21), physics) == []
    assert len(said(UnitSpec(adc_cycles=20), physics)) == 1


def test_cells_that_outrun_the_input_filter_are_told():
    """A pole at f passes 1/(1 + 1/(2π f τ)) of the variance of an Ornstein-Uhlenbeck process."""
    physics = ArrayPhysics(adc_bandwidth_hz=220e3)
    (message,) = said(UnitSpec(), physics)
    assert "tau_s = 2e-08" in message
    assert "adc_bandwidth_hz = 2.2e+05" in message
    assert "pass 2.7% of the variance" in message
    least = 9 / (2 * math.pi * 220e3)  # passes 0.9
    assert said(UnitSpec(tau_s=1.01 * least), physics) == []
    assert len(said(UnitSpec(tau_s=0.99 * least), physics)) == 1


def test_what_is_not_stated_is_not_told():
    assert said(UnitSpec(), ArrayPhysics(coupling_mismatch=0.1)) == []


# ---- where the noise comes from ---------------------------------------------------------------


def test_the_lowest_code_is_thousands_of_kt_over_c():
    physics = ArrayPhysics(cell_capacitance_f=1e-12, full_scale_v=1.0)
    # kT at 300 K is 4.1419e-21 J
    assert physics.thermal_noise() == pytest.approx(4.1419e-9, rel=1e-4)
    assert physics.thermal_noise(kelvin=600) == pytest.approx(8.2839e-9, rel=1e-4)
    assert physics.noise_excess(UnitSpec()) == pytest.approx(14_751, rel=1e-3)
    assert physics.noise_excess(UnitSpec(), 3) == pytest.approx(3 * 14_751, rel=1e-3)
    larger = ArrayPhysics(cell_capacitance_f=1e-12, full_scale_v=2.0)
    assert larger.thermal_noise() == pytest.approx(physics.thermal_noise() / 4)


def test_a_source_as_strong_as_the_resistors_own_noise_has_johnsons_density():
    """At T = kT/C the density is √(4 k T R): 1 kΩ at 300 K has 4.07 nV/√Hz."""
    physics = ArrayPhysics(cell_capacitance_f=1e-9, full_scale_v=0.5)
    scale = physics.thermal_noise() * UnitSpec().temperature_max  # code 1 is kT/C
    spec = UnitSpec(tau_s=1e-6, temperature_full_scale=scale)
    assert physics.noise_excess(spec) == pytest.approx(1.0)
    assert physics.noise_density(spec) == pytest.approx(4.07e-9, rel=1e-3)
    assert physics.noise_density(spec, 4) == pytest.approx(2 * 4.07e-9, rel=1e-3)


def test_noise_in_volts_needs_what_is_not_stated():
    spec = UnitSpec()
    with pytest.raises(ValueError, match="cell_capacitance_f = None is not stated"):
        ArrayPhysics(full_scale_v=1.0).thermal_noise()
    with pytest.raises(ValueError, match="full_scale_v = None is not stated"):
        ArrayPhysics(cell_capacitance_f=1e-12).noise_excess(spec)
    with pytest.raises(ValueError, match="full_scale_v = None is not stated"):
        ArrayPhysics().noise_density(spec)
    whole = ArrayPhysics(cell_capacitance_f=1e-12, full_scale_v=1.0)
    with pytest.raises(ValueError, match="code = 1024 is out of range; legal: 0 to 1023"):
        whole.noise_density(spec, 1024)
    with pytest.raises(ValueError, match="kelvin = -1"):
        whole.thermal_noise(kelvin=-1)
