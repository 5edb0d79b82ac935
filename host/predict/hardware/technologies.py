"""Technologies to predict with: TNGD's assumptions, a board, an array on a chip at 28 nm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from thermokron.host.predict.hardware.converters import adc_area, adc_energy
from thermokron.host.predict.hardware.technology import Technology
from thermokron.host.predict.quantity import ASSUMED, Quantity, exactly
from thermokron.model import UnitSpec

__all__ = ["TECHNOLOGIES", "as_built", "built_at_28nm", "technology"]

UM2, MM2, PJ, NS, US = 1e-12, 1e-6, 1e-12, 1e-9, 1e-6
TNGD = "arXiv 2405.13817, appendix C"
#: τ at which static powers are told, in seconds; they go as 1/τ.
POWER_TAU = 50 * NS
AD7606 = "AD7606 data sheet, rev. C"


@dataclass(frozen=True)
class OnChip:
    """Converters on a chip, see `thermokron.host.predict.hardware.converters`."""

    node_nm: float

    def energy(self, bits: int, rate: float) -> Quantity:
        return adc_energy(bits, rate, self.node_nm)

    def area(self, bits: int, rate: float) -> Quantity:
        return adc_area(bits, rate, self.node_nm)


@dataclass(frozen=True)
class Parts:
    """Converters that are parts on a board, whatever their bits."""

    each: Quantity
    room: Quantity

    def energy(self, bits: int, rate: float) -> Quantity:
        return self.each

    def area(self, bits: int, rate: float) -> Quantity:
        return self.room


def built_at_28nm(spec: UnitSpec, **changes: object) -> Technology:
    """An array on a chip at 28 nm to a spec of any bits, cells, lanes, clock and τ.

    A cell is an integrator; a coupling is a ladder of switched resistors with its code in SRAM
    beside it; every cell has an ADC and a bias DAC. Nobody has built one so large: what is not
    sourced is assumed, and says so.

    Parameters
    ----------
    spec : UnitSpec
    changes
        Fields of `Technology` that differ.
    """
    bits, tau, clock = spec.coupling_bits, spec.tau_s, spec.clock_hz
    faster = POWER_TAU / tau
    sram = "TSMC 28 nm SRAM cell, 0.127 um2, with periphery x2 (x1.5 to x4) assumed"
    made = Technology(
        name="cmos28",
        source="an array on a chip at 28 nm beside the accelerator, one ADC and DAC per cell",
        spec=spec,
        tau=Quantity("tau", tau / 5.0, tau, tau * 10.0, "s", f"{ASSUMED}: RC and amplifiers"),
        clock=Quantity("clock", clock / 2.0, clock, clock * 1.5, "Hz", f"{ASSUMED}: of the design"),
        adc=OnChip(28.0),
        dac_energy=Quantity(
            "DAC energy per bias code",
            0.29 * PJ,
            1.0 * PJ,
            5.2 * PJ,
            "J",
            "BRAHMS 8 b at 40 nm, 0.29 pJ; Albireo, 5.2 pJ (hwcomponents-library); middle assumed",
        ),
        coupling_energy=Quantity(
            "energy per coupling code",
            0.1 * bits * PJ,
            0.3 * bits * PJ,
            1.5 * bits * PJ,
            "J",
            f"{ASSUMED}: 0.3 pJ a bit for some mm of wire and a write to SRAM",
        ),
        dac_area=Quantity(
            "DAC area", 160 * UM2, 440 * UM2, 2000 * UM2, "m2", "BRAHMS 438 um2, Albireo 153 um2"
        ),
        coupling_area=Quantity(
            "coupling area",
            2.0 * bits * UM2,
            6.0 * bits * UM2,
            20.0 * bits * UM2,
            "m2",
            f"{ASSUMED}: per bit two switched resistors, one for either cell, and SRAM",
        ),
        cell_area=Quantity(
            "cell area",
            350 * UM2,
            2000 * UM2,
            10000 * UM2,
            "m2",
            "NeuRRAM's integrator, 350 um2 at 130 nm, to 10 pF at 1 nF/mm2, a reader's remark on "
            "2308.05660; middle assumed",
        ),
        lane_area=Quantity(
            "multiplier area", 300 * UM2, 600 * UM2, 2000 * UM2, "m2", f"{ASSUMED}: 12 bits"
        ),
        word_area=Quantity("memory area per bit", 0.19 * UM2, 0.25 * UM2, 0.5 * UM2, "m2", sram),
        coupling_power=Quantity(
            "static power of a coupling",
            1e-9 * faster,
            5e-8 * faster,
            1e-6 * faster,
            "W",
            f"{ASSUMED}: at 50 ns 0.1 V over 200 kOhm, 10 kOhm to 10 MOhm; as 1/tau",
        ),
        cell_power=Quantity(
            "static power of a cell",
            1e-5 * faster,
            1e-4 * faster,
            1e-3 * faster,
            "W",
            f"{ASSUMED}: amplifiers, at 50 ns, as 1/tau; such circuits' is published by nobody",
        ),
        control_power=Quantity("static power of control", 1e-3, 1e-2, 0.1, "W", ASSUMED),
        product_energy=Quantity(
            "energy per product",
            2 * PJ,
            8 * PJ,
            25 * PJ,
            "J",
            "Horowitz 2014 at 45 nm: a multiplication of 12 bits 0.5 pJ, two accesses to 8 kB of "
            "SRAM 20 pJ; at 28 nm about 0.4 of that, assumed",
        ),
        link_bandwidth=Quantity(
            "link bandwidth",
            2.5e11,
            5.0e11,
            7.2e12,
            "bit/s",
            "PCIe 4.0 x16 31.5 GB/s, PCIe 5.0 x16 63 GB/s, NVLink-C2C 900 GB/s",
        ),
        link_energy=Quantity(
            "link energy per bit",
            0.5 * PJ,
            6.5 * PJ,
            10 * PJ,
            "J",
            "UCIe 0.5 pJ; PCIe 5.0 6.5 pJ, five times NVLink-C2C as NVIDIA says; high assumed",
        ),
        link_latency=Quantity(
            "link latency", 0.1 * US, 1.0 * US, 3.0 * US, "s", "PCIe 1 to 3 us, C2C 0.1 to 0.2 us"
        ),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def as_built(spec: UnitSpec, **changes: object) -> Technology:
    """The same with the control plane as it is: every run loads all couplings of the array, as many
    codes a cycle as the spec has `dac_lanes`, and the link carries what passes the unit's ports."""
    return built_at_28nm(spec, **{"fitted": False, **changes})


def _cmos28() -> Technology:
    return built_at_28nm(
        UnitSpec(
            cells=4096,
            coupling_bits=8,
            bias_bits=8,
            adc_bits=8,
            rhs_depth=256,
            adc_cycles=10,
            discharge_cycles=20,
            stream_bits=None,  # its link is told beside it
            clock_hz=1e9,
            tau_s=50 * NS,
        ),
        word_bits=8,
        ports=64,
    )


def _tngd() -> Technology:
    """What TNGD says: 16 bits, 50 Gb/s for all that is programmed and read, RC of 1 us."""
    spec = UnitSpec(
        cells=4096,
        coupling_bits=16,
        bias_bits=16,
        adc_bits=16,
        rhs_depth=256,
        adc_cycles=255,
        stream_bits=None,
        clock_hz=50e9 / 16,
        tau_s=1e-6,
    )
    return built_at_28nm(
        spec,
        name="tngd",
        source=f"{TNGD}: 16 b, 50 Gb/s, R = 1 kOhm, C = 1 nF; energy and area are ours, as cmos28",
        tau=exactly("tau", 1e-6, "s", f"{TNGD}: R = 1 kOhm, C = 1 nF"),
        clock=exactly("clock", 50e9 / 16, "Hz", f"{TNGD}: a code of 16 b in the link's time"),
        link_bandwidth=exactly("link bandwidth", 50e9, "bit/s", TNGD),
        link_latency=exactly("link latency", 0, "s", f"{TNGD}: none is counted"),
        cell_area=Quantity(
            "cell area", 0.5 * MM2, 1.0 * MM2, 2.0 * MM2, "m2", "1 nF is about 1 mm2 in CMOS"
        ),
        word_bits=16,
        ports=4096,  # what is transferred is programmed
    )


def _board() -> Technology:
    """Parts: AD7606 for eight cells each, multiplying DACs as couplings, amplifiers, Ethernet."""
    spec = UnitSpec(
        cells=4096,
        coupling_bits=12,
        bias_bits=12,
        adc_bits=16,
        rhs_depth=256,
        adc_cycles=100,
        discharge_cycles=5000,
        stream_bits=None,
        clock_hz=25e6,
        tau_s=50 * US,
    )
    return Technology(
        name="board",
        source="a board of AD7606-class converters and multiplying DACs, on gigabit Ethernet",
        spec=spec,
        tau=Quantity(
            "tau",
            20 * US,
            50 * US,
            200 * US,
            "s",
            f"{ASSUMED}: slow enough for the ADC's input filter, 23 kHz ({AD7606})",
        ),
        clock=Quantity("clock", 10e6, 25e6, 50e6, "Hz", f"{ASSUMED}: serial DACs, several a bus"),
        adc=Parts(
            Quantity(
                "ADC energy per conversion",
                50e-9,
                62.5e-9,
                90e-9,
                "J",
                f"{AD7606}: 100 mW, 8 channels, 200 kS/s; standby and worst case assumed",
            ),
            exactly("ADC area", 18 * MM2, "m2", f"{AD7606}: LQFP-64, 12 mm x 12 mm, 8 channels"),
        ),
        dac_energy=Quantity("DAC energy per bias code", 1e-9, 5e-9, 50e-9, "J", ASSUMED),
        coupling_energy=Quantity("energy per coupling code", 1e-9, 5e-9, 50e-9, "J", ASSUMED),
        dac_area=Quantity("DAC area", 4 * MM2, 8 * MM2, 30 * MM2, "m2", f"{ASSUMED}: of an octal"),
        coupling_area=Quantity(
            "coupling area", 8 * MM2, 16 * MM2, 40 * MM2, "m2", f"{ASSUMED}: two of a quad MDAC"
        ),
        cell_area=Quantity("cell area", 30 * MM2, 60 * MM2, 150 * MM2, "m2", ASSUMED),
        lane_area=exactly("multiplier area", 0, "m2", "in the FPGA, which is not counted"),
        word_area=exactly("memory area per bit", 0, "m2", "in the FPGA, which is not counted"),
        coupling_power=Quantity("static power of a coupling", 1e-4, 1e-3, 1e-2, "W", ASSUMED),
        cell_power=Quantity("static power of a cell", 5e-3, 2e-2, 6e-2, "W", f"{ASSUMED}: op-amps"),
        control_power=Quantity("static power of control", 0.5, 2.0, 5.0, "W", f"{ASSUMED}: FPGA"),
        product_energy=Quantity("energy per product", 1e-11, 5e-11, 2e-10, "J", ASSUMED),
        link_bandwidth=Quantity(
            "link bandwidth", 5e8, 9.4e8, 9.4e9, "bit/s", "Ethernet, 1 to 10 G"
        ),
        link_energy=Quantity("link energy per bit", 3e-10, 1e-9, 3e-9, "J", f"{ASSUMED}: PHYs"),
        link_latency=Quantity("link latency", 10 * US, 50 * US, 200 * US, "s", ASSUMED),
        word_bits=16,
        ports=1,
    )


#: By name, what makes it.
TECHNOLOGIES: dict[str, Callable[[], Technology]] = {
    "cmos28": _cmos28,
    "tngd": _tngd,
    "board": _board,
}


@cache
def technology(name: str) -> Technology:
    """A technology by name.

    Raises
    ------
    ValueError
        If there is none of that name; the message lists them.
    """
    if name not in TECHNOLOGIES:
        raise ValueError(
            f"technology = {name!r} is unknown; legal: {', '.join(sorted(TECHNOLOGIES))}"
        )
    return TECHNOLOGIES[name]()
