"""Arrays beyond their modes: the compiled RTL and the simulated Verilog return the same integers.

Every effect at once, but for saturation, which is not modelled beside jitter and skew: in two.
"""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from thermokron.host import open_unit
from thermokron.model import ArrayPhysics, Job, NumericUnit, UnitSpec
from thermokron.sim import SIMULATORS, missing

SPEC = UnitSpec(
    cells=6, lanes=3, rhs_depth=4, discharge_cycles=3, dac_lanes=4, stream_bits=128
)  # "two folds" of test_identity
ALL = ArrayPhysics(
    coupling_mismatch=0.03,
    coupling_asymmetry=0.05,
    coupling_drift=0.01,
    coupling_age_s=86400.0,
    coupling_tempco_per_k=1e-4,
    temperature_rise_k=30.0,
    cell_offset=0.02,
    cell_flicker=0.005,
    noise_mismatch=0.2,
    tau_mismatch=0.2,
    noise_bandwidth_hz=20e6,
    coupling_bandwidth_hz=50e6,
    adc_gain_error=0.02,
    adc_offset=0.01,
    adc_noise=0.003,
    adc_inl_lsb=0.7,
    adc_dnl_lsb=0.6,
    adc_rate_hz=1e6,
    adc_bandwidth_hz=30e6,
    adc_jitter_s=2e-9,
    adc_skew_s=3e-9,
    cell_capacitance_f=1e-12,
    full_scale_v=1.0,
    device_seed=5,
)
PHYSICS = {
    "linear": ALL,
    "saturated": replace(ALL, adc_jitter_s=None, adc_skew_s=None, cell_saturation=0.4),
}
#: What is asked each time; the rest takes a minute.
QUICK = {("compiled", "linear"), ("compiled", "saturated"), ("icarus", "linear")}


def test_no_effect_is_left_out() -> None:
    on = {f.name for physics in PHYSICS.values() for f in fields(physics)
          if getattr(physics, f.name) is not None}  # fmt: skip
    assert on == {f.name for f in fields(ArrayPhysics)}


@pytest.mark.filterwarnings("ignore:cells of tau_s", "ignore:the unit may sample")
@pytest.mark.parametrize(
    ("rtl", "name"),
    [
        pytest.param(rtl, name, marks=[] if (rtl, name) in QUICK else [pytest.mark.slow])
        for rtl in ("compiled", *SIMULATORS)
        for name in PHYSICS
    ],
)
def test_every_engine_returns_the_numeric_integers(rtl: str, name: str) -> None:
    """Sums, products, clip counts and cycles; several vectors, many samples, clipping."""
    if rtl != "compiled" and (reason := missing(rtl)):
        pytest.skip(reason)
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((6, 12))
    matrix = factor @ factor.T / 12
    couplings = SPEC.coupling_codes(matrix / np.abs(matrix).max())
    of_rtl = {} if rtl == "compiled" else {"simulator": rtl}
    engine = "compiled" if rtl == "compiled" else "cosim"
    most = 1500 if (rtl, name) == ("compiled", "linear") else 50  # short steps take their time
    clipped = 0
    with open_unit(engine, SPEC, PHYSICS[name], seed=9, **of_rtl) as unit:
        numeric = NumericUnit(SPEC, PHYSICS[name], seed=9)
        assert numeric.physics.beyond_modes
        for vectors, samples, second, code in (
            (1, most, True, 300),
            (4, 1, False, 300),
            (3, 40, False, 1023),
            (1, most // 8, True, 0),
        ):
            job = Job(
                couplings=couplings,
                biases=rng.integers(-900, 900, (vectors, 6)),
                temperature=code,
                settle_cycles=7,
                interval_cycles=SPEC.shortest_interval(second) + 1,
                samples=samples,
                second_moments=second,
            )
            expected = numeric.run(job)
            assert unit.run(job) == expected
            clipped += expected.clipped.sum()
        assert numeric.stream == unit.stream == 9
    assert clipped or name == "saturated"
