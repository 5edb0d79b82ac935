"""ngspice as the judge: a pair of coupled RC cells as a circuit, beside `NoiseArray`.

The circuit is written from the device's own values: capacitors of unequal size, a transconductor
for each direction of a coupling, and as noise source of a cell a resistor behind one more, so that
nothing but it makes noise. Means are an operating point, variances an integrated noise analysis,
transients a transient analysis: no step of our model is in any of them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from thermokron.model import ArrayPhysics, NoiseArray, UnitSpec, sample_blocks
from thermokron.model.linear import LinearLaw

pytestmark = [
    pytest.mark.skipif(shutil.which("ngspice") is None, reason="ngspice is not installed"),
    pytest.mark.filterwarnings("ignore:cells of tau_s"),
]

R, C = 1e3, 1e-9  # τ = 1 µs
KT = 1.380649e-23 * 300.15  # ngspice's temperature
# x = 1 is a volt; 1,000 clock cycles per time constant
SPEC = UnitSpec(
    cells=2,
    lanes=2,
    coupling_bits=14,
    adc_bits=16,
    clock_hz=1e9,
    tau_s=R * C,
    temperature_full_scale=1e-4,
)
CODES = SPEC.coupling_codes(np.array([[0.9, 0.5], [0.5, 0.7]]))
BIASES = np.array([300, -100])
STATIC = ArrayPhysics(
    coupling_mismatch=0.05,
    cell_offset=0.02,
    noise_mismatch=0.4,
    tau_mismatch=0.3,
    device_seed=1,
)
POLES = ArrayPhysics(
    coupling_mismatch=0.05,
    coupling_asymmetry=0.3,
    cell_offset=0.02,
    noise_mismatch=0.4,
    tau_mismatch=0.3,
    noise_bandwidth_hz=0.6e6,
    coupling_bandwidth_hz=0.8e6,
    adc_bandwidth_hz=0.5e6,
    device_seed=1,
)


def pole(name: str, source: str, out: str, bandwidth: float | None) -> list[str]:
    """A filter of first order that loads nothing and makes no noise, or a wire."""
    if bandwidth is None:
        return [f"E{name} {out} 0 {source} 0 1"]
    return [
        f"G{name}a 0 {out} {source} 0 1",
        f"G{name}b {out} 0 {out} 0 1",
        f"C{name} {out} 0 {1 / (2 * np.pi * bandwidth):.12e} ic=0",
    ]


def circuit(array: NoiseArray, control: str) -> dict[str, list[float]]:
    """What ngspice prints for the circuit of an array, by name."""
    physics, n = array.physics, array.spec.cells
    times = np.ones(n) if array.device.time_factors is None else array.device.time_factors
    bias, lines = array.bias(BIASES), ["* coupled cells"]
    for i in range(n):
        lines += [f"C{i} x{i} 0 {C * times[i]:.12e} ic=0"]
        lines += [f"I{i} 0 x{i} dc {bias[i] / R:.12e} ac 1"]
        lines += pole(f"y{i}", f"x{i}", f"y{i}", physics.coupling_bandwidth_hz)
        lines += pole(f"w{i}", f"x{i}", f"w{i}", physics.adc_bandwidth_hz)
        lines += [f"G{i}{j} x{i} 0 y{j} 0 {array.matrix[i, j] / R:.12e}" for j in range(n)]
        # of current, one-sided: 4 T C/R; of the resistor's voltage 4 k T R
        gain = np.sqrt(array.temperatures[i] * C / R / (KT * R))
        lines += [f"Rn{i} n{i} 0 {R}", f"Gn{i} 0 x{i} f{i} 0 {gain:.12e}"]
        lines += pole(f"f{i}", f"n{i}", f"f{i}", physics.noise_bandwidth_hz)
        if physics.cell_saturation is not None:
            current = f"v(x{i})*(v(x{i})/{physics.cell_saturation})^8/{R}"
            lines += [f"B{i} x{i} 0 i={current}"]
    lines += [".options reltol=1e-6 abstol=1e-15 vntol=1e-9", ".control", control, ".endc", ".end"]
    done = subprocess.run(
        ["ngspice", "-b", "/dev/stdin"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    found: dict[str, list[float]] = {}
    for name, value in re.findall(r"^(\S+) = (\S+)$", done.stdout, re.MULTILINE):
        found.setdefault(name, []).append(float(value))
    assert found, done.stdout + done.stderr
    return found


def means_and_covariance(array: NoiseArray) -> tuple[np.ndarray, np.ndarray]:
    """Of what the converters see, settled."""
    noise = "\n".join(
        f"noise {what} I0 dec 200 1 1e11\nsetplot noise{2 * k}\nprint onoise_total"
        for k, what in enumerate(("v(w0)", "v(w1)", "v(w0,w1)"), 1)
    )
    found = circuit(array, f"op\nprint v(w0) v(w1)\n{noise}")
    first, second, apart = (value**2 for value in found["onoise_total"])
    between = (first + second - apart) / 2
    return (
        np.array([found["v(w0)"][0], found["v(w1)"][0]]),
        np.array([[first, between], [between, second]]),
    )


@pytest.mark.parametrize(
    "physics", [ArrayPhysics.ideal(), STATIC, POLES], ids=["ideal", "static", "poles"]
)
def test_means_and_variances_of_a_pair(chance, physics):
    """The law within 0.01 %, ngspice's integral; and 6,000 settled samples, of 5 scores."""
    array = NoiseArray(SPEC, physics, CODES, 900)
    mean, covariance = means_and_covariance(array)
    if array.modal:
        v = array.eigenvectors
        law = v @ array.mode_covariance(1000.0) @ v.T
    else:
        linear = LinearLaw(array, 1_000_000, 1000)
        law = (linear.factors[0].T @ linear.factors[0])[linear.seen, linear.seen]
    size = np.sqrt(np.outer(np.diag(law), np.diag(law)))
    np.testing.assert_allclose(covariance / size, law / size, atol=1e-4)
    np.testing.assert_allclose(mean, np.linalg.solve(array.matrix, array.bias(BIASES)), rtol=1e-5)

    blocks = sample_blocks(
        array,
        np.tile(BIASES, (6000, 1)),
        settle_cycles=1_000_000,
        interval_cycles=1000,
        seed=2,
        stream=0,
    )
    x = next(blocks)[0][:, 0]
    white = np.linalg.solve(np.linalg.cholesky(covariance), (x - mean).T)
    assert np.abs(white.mean(axis=1)).max() * np.sqrt(6000) < chance.sigmas
    scores = (white @ white.T / 6000 - np.eye(2)) * np.sqrt(6000 / (1 + np.eye(2)))
    assert np.abs(scores).max() < chance.sigmas


@pytest.mark.parametrize("saturation", [None, 0.15])
def test_transients_of_a_pair_without_noise(saturation):
    """From discharge, poles and clamps included, to 0.2 % of what is reached."""
    physics = replace(POLES, cell_saturation=saturation)
    array = NoiseArray(SPEC, physics, CODES, 0)
    at = 300 + 400 * np.arange(16)
    measures = "\n".join(
        f"meas tran m{cell} find v(w{cell}) at={time * 1e-9:.4e}\nprint m{cell}"
        for time in at
        for cell in (0, 1)
    )
    found = circuit(array, f"tran 2n {at[-1] + 100}n 0 2n uic\n{measures}")
    expected = np.array([found["m0"], found["m1"]]).T
    blocks = sample_blocks(
        array, BIASES[None], settle_cycles=300, interval_cycles=400, seed=0, stream=0
    )
    x = np.concatenate([next(blocks)[0][0] for _ in range(2)])
    np.testing.assert_allclose(x, expected, atol=2e-3 * np.abs(expected).max())
    if saturation:
        linear = np.linalg.solve(array.matrix, array.bias(BIASES))
        assert np.abs(linear).max() > 1.5 * saturation
