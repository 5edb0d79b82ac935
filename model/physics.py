"""How a built array departs from its nominal: `ArrayPhysics`."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from thermokron.model.checks import check_integer, check_real, fields_from_json
from thermokron.model.spec import UnitSpec

__all__ = ["ArrayPhysics"]

#: Largest |INL| in ADC steps at which the bow is monotone at every legal ADC width (4 bits up).
MAX_INL_LSB = 4.0
#: Of the variance of a mode of λ = 1, what an ADC's input filter has to pass, or it is said.
LEAST_PASSED = 0.9
#: Effects that make the array more than n linear cells with a symmetric matrix, seen at once.
BEYOND_MODES = (
    "coupling_asymmetry",
    "noise_bandwidth_hz",
    "coupling_bandwidth_hz",
    "adc_bandwidth_hz",
    "cell_flicker",
    "cell_saturation",
    "adc_jitter_s",
    "adc_skew_s",
)
#: Rates in 1/τ of the processes that flicker noise is the sum of: a decade apart.
FLICKER_RATES = tuple(10.0**k for k in range(-6, 2))
#: Of the shortest interval between samples, what jitter and skew may be.
MOST_APERTURE = 0.05
#: Boltzmann's constant in J/K, exact by definition (SI Brochure, 9th edition, 2019).
BOLTZMANN = 1.380649e-23


def _effect(low: float, high: float, doc: str) -> Any:
    return field(default=None, metadata={"range": (low, high), "doc": doc})


@dataclass(frozen=True, kw_only=True)
class ArrayPhysics:
    """Deviations of the analog array and its converters from `UnitSpec`'s nominal values.

    A field that is `None`, as all are by default, switches its effect off: the ideal value. The
    host never reads this object, as no host could.

    The static deviations of one device are draws from (`device_seed`, cells), each effect from a
    generator of its own, so that switching one on does not change the others.

    Attributes
    ----------
    coupling_mismatch : float or None, relative
        Standard deviation of each coupling element about its programmed value:
        A_ij → A_ij (1 + σ g_ij), one draw per pair (one element makes the coupling in both
        directions), the diagonal included.
    coupling_asymmetry : float or None, relative
        Standard deviation of what a coupling has in one direction alone: A_ij → A_ij (1 + σ h_ij),
        i ≠ j, one draw per direction, as of the transconductors that make a coupling of two
        one-way currents. A is then no longer symmetric, the mean is still A⁻¹b, and the covariance
        solves A Σ + Σ Aᵀ = 2 T (a non-reciprocal array is out of equilibrium).
    coupling_drift : float or None, an exponent
        Standard deviation of the exponent ν of each coupling's drift since it was programmed, as
        conductances of phase-change memory drift (Joshi et al., Nature Communications 11, 2473,
        2020): A_ij → A_ij (1 + t/1 s)^(-ν_ij) at the age t, one draw per pair. A ν that all have in
        common would scale the matrix, and is not in it.
    coupling_age_s : float or None, in seconds
        The age t of the couplings; without it they do not drift. A run is taken to be short.
    coupling_tempco_per_k : float or None, relative per kelvin
        Standard deviation of each coupling's temperature coefficient about that of all:
        A_ij → A_ij (1 + α_ij ΔT), one draw per pair. Data sheets of resistors state a range, ±α as
        of a uniform α/√3 (100e-6 of common thick film, 25e-6 of thin film).
    temperature_rise_k : float or None, in kelvin
        ΔT from the temperature at which couplings have their nominal values.
    cell_offset : float or None, in ADC full scales
        Standard deviation of the input-referred offset of each integrator. It adds to the
        bias, τ dx = -(A x - b - o) dt + …, so the mean moves by A⁻¹o, and x = 0 holds during
        discharge. (An offset at the output is `adc_offset`.)
    cell_flicker : float or None, in ADC full scales per √Hz
        1/f noise a at each integrator's input, beside the bias, as amplifiers have it: one-sided
        density a²/f in full scales squared per Hz, so a is its root at 1 Hz. With the white
        source's 4 T τ it meets at the corner a²/(4 T τ). It is a sum of Ornstein-Uhlenbeck
        processes whose rates are a decade apart, from 1e-6/τ to 10/τ, each of variance a² ln 10
        (van der Ziel, Physica 16, 359, 1950): within 8 % of a²/f from 2π f τ = 1e-5 to 1. Slower
        is what stays through a run, as `cell_offset` does. Each discharge has its own.
    cell_saturation : float or None, in ADC full scales
        Voltage at which a clamp across each cell takes the current of a coupling of 1, so that
        cells clip softly: τ dx = -(A x - b + x (x/x_sat)^8) dt + …, 0.4 % at half of it. For
        symmetric A the stationary density is Boltzmann's, exp(-U/T) with
        U = xᵀA x/2 - bᵀx + Σ_i x_i² (x_i/x_sat)^8/10; an indefinite A has one, too. Integrated in
        short steps, see `model.saturation`. Not beside jitter or skew.
    noise_mismatch : float or None, relative
        Standard deviation of each cell's noise power: T → T f_i, with f_i log-normal of mean 1,
        which keeps a power positive.
    tau_mismatch : float or None, relative
        Standard deviation of each cell's time constant: τ → τ_i = τ f_i, with f_i log-normal of
        mean 1, as capacitors of unequal size make it (Pelgrom et al., IEEE J. Solid-State Circuits
        24, 1433, 1989, for their spread). A noise source drives a cell with the current that it
        drives any other with:

            τ_i dx_i = -(A x - b)_i dt + √(2 T τ) dW_i,

        so that means stay where they were, and a cell alone has the variance T τ/(τ_i A_ii), less
        the larger its capacitor, as kT/C has.
    noise_bandwidth_hz : float or None, in Hz
        -3 dB bandwidth f of the noise sources, of first order, so that noise has the correlation
        time 1/(2π f) = ε τ. Its density at low frequencies stays. A mode of λ has the variance
        T/λ / (1 + ε λ) (Hänggi and Jung, Adv. Chem. Phys. 89, 239, 1995).
    coupling_bandwidth_hz : float or None, in Hz
        -3 dB bandwidth f of the amplifiers in the coupling path, of first order, each at the output
        of a cell: τ dx = -(A y - b) dt + …, dy = 2π f (x - y) dt. With 1/(2π f) = ε τ a mode of λ
        has the variance T (1/λ + ε), and rings from ε λ = ¼ on.
    adc_gain_error : float or None, relative
        Standard deviation of the gain of each ADC channel about 1.
    adc_offset : float or None, in ADC full scales
        Standard deviation of the input-referred offset of each ADC channel.
    adc_noise : float or None, in ADC full scales
        Rms input-referred noise of every conversion, independent.
    adc_inl_lsb : float or None, in ADC steps
        Integral nonlinearity of every channel, a parabolic bow v → v + inl (1 - v²) that is
        largest at mid-scale and vanishes at both rails (end-point definition); signed.
    adc_dnl_lsb : float or None, in ADC steps
        Standard deviation of the DNL at mid-scale, where it is largest, of successive-approximation
        converters. Their 2^N unit elements have the mismatch σ = dnl/√(2^N): the weight of bit k is
        2^k + σ √(2^k) g, which makes DNL and INL code by code (Ginsburg and Chandrakasan, IEEE
        J. Solid-State Circuits 42, 739, 2007). The end points stay.
    adc_rate_hz : float or None, in samples per second
        The highest rate at which the converters convert, of their data sheet. It changes no sample:
        `check` says where a spec samples faster.
    adc_bandwidth_hz : float or None, in Hz
        -3 dB bandwidth f of the low-pass filter at the input of each converter, of its data sheet,
        of first order: what is converted is w, dw = 2π f (x - w) dt. With 1/(2π f) = ε τ a mode of
        λ keeps 1/(1 + ε λ) of its variance. `check` says where it is too narrow for the cells.
    adc_jitter_s : float or None, in seconds
        Aperture jitter: rms deviation of the instant of each conversion in each channel from the
        mean, independent. Instants are -√3, 0 and √3 of it from the mean, of probabilities ⅙, ⅔, ⅙:
        the Gauss-Hermite quadrature whose moments up to the fifth are those of a normal deviation.
        The array is sampled there exactly, with no expansion in slopes, which noise has not.
    adc_skew_s : float or None, in seconds
        Standard deviation of the instant at which each channel samples, about that of all; the
        earliest channel samples at CONVST. Exact, as jitter is.
    cell_capacitance_f : float or None, in farads
        Capacitance of a cell, and
    full_scale_v : float or None, in volts
        what x = 1 is: the ADC's range is ± this. They change no sample: with them a noise
        temperature is one in kelvin, see `thermal_noise`, `noise_excess` and `noise_density`.
    device_seed : int
        Which device: seeds the static deviations, and nothing else.

    Raises
    ------
    ValueError
        If a field is out of range; the message names the field, its value and the legal range. If
        saturation is beside jitter or skew.
    TypeError
        If a field is not a number of the right kind.
    """

    coupling_mismatch: float | None = _effect(0.0, 1.0, "relative std of each coupling")
    coupling_asymmetry: float | None = _effect(0.0, 1.0, "relative std of a coupling's directions")
    coupling_drift: float | None = _effect(0.0, 1.0, "std of the exponent of each coupling's drift")
    coupling_age_s: float | None = _effect(0.0, 1e10, "time since couplings were programmed, s")
    coupling_tempco_per_k: float | None = _effect(0.0, 1e-2, "std of tempcos of couplings, 1/K")
    temperature_rise_k: float | None = _effect(-300.0, 300.0, "departure from nominal, kelvin")
    cell_offset: float | None = _effect(0.0, 1.0, "std of each cell's input offset, full scales")
    cell_flicker: float | None = _effect(0.0, 1.0, "1/f noise at 1 Hz, full scales/sqrt(Hz)")
    cell_saturation: float | None = _effect(1e-3, 1e3, "where cells clip softly, full scales")
    noise_mismatch: float | None = _effect(0.0, 10.0, "relative std of each cell's noise power")
    tau_mismatch: float | None = _effect(0.0, 10.0, "relative std of each cell's time constant")
    noise_bandwidth_hz: float | None = _effect(1.0, 1e15, "bandwidth of the noise sources, Hz")
    coupling_bandwidth_hz: float | None = _effect(1.0, 1e15, "bandwidth of the couplings, Hz")
    adc_gain_error: float | None = _effect(0.0, 1.0, "relative std of each channel's gain")
    adc_offset: float | None = _effect(0.0, 1.0, "std of each channel's offset, full scales")
    adc_noise: float | None = _effect(0.0, 1.0, "rms noise of a conversion, full scales")
    adc_inl_lsb: float | None = _effect(-MAX_INL_LSB, MAX_INL_LSB, "peak of the bow, ADC steps")
    adc_dnl_lsb: float | None = _effect(0.0, 4.0, "std of the DNL at mid-scale, ADC steps")
    adc_rate_hz: float | None = _effect(1.0, 1e12, "highest rate of the converters, samples/s")
    adc_bandwidth_hz: float | None = _effect(1.0, 1e15, "bandwidth of the ADC's input filter, Hz")
    adc_jitter_s: float | None = _effect(0.0, 1e-3, "rms aperture jitter of a conversion, s")
    adc_skew_s: float | None = _effect(0.0, 1e-3, "std of each channel's sampling instant, s")
    cell_capacitance_f: float | None = _effect(1e-18, 1.0, "capacitance of a cell, farads")
    full_scale_v: float | None = _effect(1e-6, 1e6, "volts that are an ADC full scale")
    device_seed: int = field(default=0, metadata={"range": (0, 2**63 - 1), "doc": "which device"})

    def __post_init__(self) -> None:
        for f in fields(self):
            value, (low, high) = getattr(self, f.name), f.metadata["range"]
            if f.name == "device_seed":
                object.__setattr__(self, f.name, check_integer(f.name, value, low, high))
            elif value is not None:
                object.__setattr__(self, f.name, check_real(f.name, value, low, high))
        if self.cell_saturation is not None:
            for name in ("adc_jitter_s", "adc_skew_s"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"cell_saturation = {self.cell_saturation} beside {name} = "
                        f"{getattr(self, name)} is not modelled; legal: one of them None"
                    )

    @classmethod
    def ideal(cls) -> ArrayPhysics:
        """The array as nominal: every effect off."""
        return cls()

    @classmethod
    def discrete_board(cls, *, device_seed: int = 0) -> ArrayPhysics:
        """A board of 1 % resistors and AD7606C-16 converters.

        Resistors of the E96 series (IEC 60063) have a tolerance of ±1 %, taken as uniform: a
        standard deviation of 0.01/√3. A coupling is a ratio of two, and so is the gain of a noise
        source, whose power is that ratio squared. The converter's data sheet states on its first
        page a total unadjusted error of at most 0.05 % of the range, that is 0.001 full scales,
        taken as a uniform gain error, and an SNR of typically 92 dB on its differential range:
        with a full-scale sine of rms 1/√2 that is 1.8e-5 full scales of noise, 1.6e-5 without
        the part that quantisation to 16 bits has in it.

        The converters take 1 MSPS, and a spec that samples faster is told. They have an input
        filter of 25 or 220 kHz, which is not in here, as cells that it can follow are far slower
        than `UnitSpec`'s default: `preset("discrete_board")` has it, and a spec to go with it.
        """
        ratio = 0.01 * math.sqrt(2.0 / 3.0)
        return cls(
            coupling_mismatch=ratio,
            noise_mismatch=2.0 * ratio,
            adc_gain_error=0.001 / math.sqrt(3.0),
            adc_noise=1.6e-5,
            adc_rate_hz=1e6,
            full_scale_v=20.0,  # of the differential range that the SNR is stated for
            device_seed=device_seed,
        )

    @property
    def beyond_modes(self) -> tuple[str, ...]:
        """Names of the effects that are on and that modes do not describe; see `model.linear`."""
        return tuple(name for name in BEYOND_MODES if getattr(self, name) is not None)

    @property
    def states_per_cell(self) -> int:
        """How many states the array has for each cell: see `linear.linear_system`."""
        states = 1 + sum(name.endswith("_bandwidth_hz") for name in self.beyond_modes)
        return states + (0 if self.cell_flicker is None else len(FLICKER_RATES))

    # ---- beside a spec --------------------------------------------------------------------------

    def check(self, spec: UnitSpec, *, stacklevel: int = 2) -> None:
        """Say where this array's converters cannot do what a spec asks of them.

        A `UserWarning` names both numbers: if the spec's shortest interval is shorter than a
        conversion, or if the filter at the ADC's input takes more than a tenth of the variance of
        a mode of λ = 1, which keeps 1/(1 + λ/(2π f τ)) of it. Every engine asks when it is opened.

        Parameters
        ----------
        spec : UnitSpec
        stacklevel : int
            As of `warnings.warn`.

        Raises
        ------
        ValueError
            If jitter or skew is more than a twentieth of the spec's shortest interval.
        """
        interval = spec.shortest_interval(second_moments=False) * spec.clock_s
        for name in ("adc_jitter_s", "adc_skew_s"):
            if (time := getattr(self, name)) is not None:
                check_real(name, time, 0.0, MOST_APERTURE * interval)
        rate = spec.clock_hz / spec.shortest_interval(second_moments=False)
        if self.adc_rate_hz is not None and rate > self.adc_rate_hz * (1.0 + 1e-9):
            warnings.warn(
                f"the unit may sample at {rate:.4g} samples/s (clock_hz = {spec.clock_hz:.4g}, "
                f"adc_cycles = {spec.adc_cycles}), and the converters take adc_rate_hz = "
                f"{self.adc_rate_hz:.4g}; a spec that goes with them has more adc_cycles, as those "
                "of thermokron.model.preset",
                stacklevel=stacklevel + 1,
            )
        if self.adc_bandwidth_hz is not None:
            passed = 1.0 / (1.0 + 1.0 / (2.0 * math.pi * self.adc_bandwidth_hz * spec.tau_s))
            if passed < LEAST_PASSED:
                warnings.warn(
                    f"cells of tau_s = {spec.tau_s:.4g} are too fast for converters of "
                    f"adc_bandwidth_hz = {self.adc_bandwidth_hz:.4g}, which pass {passed:.1%} of "
                    "the variance of a mode of lambda = 1; a spec that goes with them has a longer "
                    "tau_s, as those of thermokron.model.preset",
                    stacklevel=stacklevel + 1,
                )

    def thermal_noise(self, *, kelvin: float = 300.0) -> float:
        """kT/C in full scales squared: the noise temperature that a cell's own resistor makes.

        A cell that nothing couples or drives has the variance kT/C, in volts squared, whatever its
        resistor (Johnson 1928, Nyquist 1928). It is all that a unit without a noise source has.

        Parameters
        ----------
        kelvin : float
            The temperature of the resistor.

        Raises
        ------
        ValueError
            If `cell_capacitance_f` or `full_scale_v` is not stated, or `kelvin` is negative.
        """
        kelvin = check_real("kelvin", kelvin, 0.0, 1e6)
        capacitance = self._stated("cell_capacitance_f")
        return BOLTZMANN * kelvin / capacitance / self._stated("full_scale_v") ** 2

    def noise_excess(self, spec: UnitSpec, code: int = 1, *, kelvin: float = 300.0) -> float:
        """How many times kT/C a temperature code of a spec is, which only a noise source can make.

        Code 1 of `UnitSpec`'s default scale is 15,000 kT/C at 1 pF and 1 V. Parameters and errors
        as of `thermal_noise`; a code out of the spec's range is a `ValueError`, too.
        """
        code = check_integer("code", code, 0, spec.temperature_max)
        kelvin = check_real("kelvin", kelvin, 1e-6, 1e6)
        return spec.temperature_value(code) / self.thermal_noise(kelvin=kelvin)

    def noise_density(self, spec: UnitSpec, code: int = 1) -> float:
        """Density in V/√Hz of the noise source that a temperature code of a spec stands for.

        One-sided, of a voltage in series with a cell's resistor R: √(4 T τ) full scales, as
        Johnson's √(4 k T R) is for T = kT/C and τ = RC. A current into the cell is this over R.

        Raises
        ------
        ValueError
            If `full_scale_v` is not stated, or the code is out of the spec's range.
        """
        code = check_integer("code", code, 0, spec.temperature_max)
        root = math.sqrt(4.0 * spec.temperature_value(code) * spec.tau_s)
        return root * self._stated("full_scale_v")

    def _stated(self, name: str) -> float:
        value: float | None = getattr(self, name)
        if value is None:
            raise ValueError(f"{name} = None is not stated, and noise in volts follows from it")
        return value

    def to_json(self) -> str:
        """The deviations as one JSON object, keys in field order."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ArrayPhysics:
        """The inverse of `to_json`; unknown or missing fields are a `ValueError`."""
        return cls(**fields_from_json(cls, text))
