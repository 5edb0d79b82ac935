"""Digital machines by name, in float32, which papers on K-FAC use.

    v100, a100, h100    NVIDIA's cards, every figure with its source
    this                the computer here, once `thermokron predict --measure` has measured it

Where no measurement was found, a figure is scaled from another card, says so, and has a range.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from thermokron.host.predict.machines.machine import Curve, Machine
from thermokron.host.predict.quantity import Quantity

__all__ = ["MACHINES", "machine"]

#: Of `Machine` that was measured here.
THIS = "this"

#: Sides and FLOP/s of float32 products.
A100_GEMM = {
    256: 2.05e12,
    512: 8.19e12,
    1024: 16.0e12,
    2048: 17.6e12,
    3200: 18.46e12,
    4600: 18.88e12,
}
#: The same of sides from 1024; below as the A100 has it, in parts of what it has at 1024.
V100_GEMM = {1024: 10.56e12, 2048: 12.71e12, 4096: 13.85e12, 8192: 14.38e12, 10240: 14.51e12}
H100_GEMM = {1024: 37.39e12, 2048: 49.58e12, 4096: 51.88e12, 8192: 51.81e12}

#: Rows, and seconds of an inverse: GV100. Below 250 time is a line through the next two points.
GV100_INVERSE = {
    16: 0.156e-3,
    64: 0.254e-3,
    125: 0.378e-3,
    250: 0.632e-3,
    500: 1.141e-3,
    1000: 3.031e-3,
    2000: 6.632e-3,
    4000: 25.125e-3,
}
GV100_SOURCE = "CuPy pull request 2495: invh of float32 on GV100; below 250 rows assumed: linear"
#: FLOP/s of eigendecompositions: Titan XP, float64.
TITAN_EIGEN = {256: 1.74e9, 1024: 19.7e9, 4096: 88.3e9}
#: Bandwidths of which the Titan XP has 547 GB/s.
TITAN_BYTES = 547e9


@dataclass(frozen=True)
class Card:
    """What differs between cards; triples are low, nominal, high.

    Attributes
    ----------
    gemm, gemm_source
        Sides and FLOP/s.
    inverse : float
        How much faster than GV100 inverses are.
    inverse_trust : triple
        How far that may be off.
    peak_bytes : float
        Of the data sheet, byte/s.
    bandwidth, launch, idle, byte_energy : triple and source
    board : float
        W, of the data sheet, which products of large matrices draw.
    """

    label: str
    gemm: dict[int, float]
    gemm_source: str
    gemm_trust: tuple[float, float, float]
    inverse: float
    inverse_source: str
    inverse_trust: tuple[float, float, float]
    peak_bytes: float
    bandwidth: tuple[tuple[float, float, float], str]
    launch: tuple[tuple[float, float, float], str]
    idle: tuple[tuple[float, float, float], str]
    byte_energy: tuple[tuple[float, float, float], str]
    board: float
    board_source: str


CARDS = {
    "v100": Card(
        label="V100 SXM2",
        gemm=V100_GEMM,
        gemm_source="zzc0721/torch-performance-test-data issue 140",
        gemm_trust=(0.85, 1.0, 1.08),
        inverse=1.0,
        inverse_source=GV100_SOURCE,
        inverse_trust=(0.85, 1.0, 2.0),
        peak_bytes=900e9,
        bandwidth=(
            (0.5e12, 0.65e12, 0.83e12),
            "assumed; low: 0.53 TB/s fit PipeFisher's layers of width 768, with all that a count "
            "of kernels leaves out, see pipefisher.py; high: 0.92 of the data sheet",
        ),
        launch=(
            (5e-6, 20e-6, 60e-6),
            "assumed; high: 49 us fit PipeFisher's small batches, in PyTorch of 2022",
        ),
        idle=(
            (40.0, 56.6, 70.0),
            "NVIDIA/nvidia-docker issue 1076: V100-SXM2-32GB without processes; range assumed",
        ),
        byte_energy=(
            (32e-12, 65e-12, 169e-12),
            "8.1 pJ/bit of a V100 by NVML, unreviewed; low: HBM2 alone, O'Connor et al. MICRO "
            "2017; high: 21.1 pJ/bit, Arunkumar et al. HPCA 2019",
        ),
        board=300.0,
        board_source="V100 data sheet",
    ),
    "a100": Card(
        label="A100 SXM4 80GB",
        gemm=A100_GEMM,
        gemm_source="triton-lang/triton issue 2491, Yinghan-Li/YHs_Sample issue 4: cuBLAS on a "
        "PCIe card",
        gemm_trust=(0.9, 1.0, 1.03),
        inverse=1.24,
        inverse_source="assumed: scaled from GV100 by the peaks, 19.5/15.7; low: not scaled; high: "
        "by bandwidth; a RTX 3090 is 1.27 times as fast as a V100 in PipeFisher's tables",
        inverse_trust=(0.8, 1.0, 1.83),
        peak_bytes=2.039e12,
        bandwidth=(
            (1.48e12, 1.82e12, 1.9e12),
            "assumed: 0.89 of the peak, which an A800 reaches, mli/transformers-benchmarks issue "
            "4; low: NVIDIA/cccl pull request 7019",
        ),
        launch=((4e-6, 10e-6, 30e-6), "assumed: PyTorch without graphs; high: as measured on V100"),
        idle=(
            (50.0, 56.0, 90.0),
            "facebookresearch/vissl issue 422, allenai/PeerRead issue 40; high assumed",
        ),
        byte_energy=(
            (31e-12, 95e-12, 169e-12),
            "11.9 pJ/bit of an A100 by NVML, unreviewed; low: HBM2E alone; high: Arunkumar et al. "
            "HPCA 2019",
        ),
        board=400.0,
        board_source="A100 data sheet",
    ),
    "h100": Card(
        label="H100 SXM5",
        gemm=H100_GEMM,
        gemm_source="zzc0721/torch-performance-test-data issue 79",
        gemm_trust=(0.88, 1.0, 1.1),
        inverse=2.0,
        inverse_source="assumed: scaled from GV100 by 2: PyTorch pull request 173515, of a card it "
        "does not name, has 0.38 and 1.95 ms for factors of 512 and 2048 rows, FlagGems pull "
        "request 5161 0.14 ms for what remains of 256 on a H20; low: by clocks; high: by peaks",
        inverse_trust=(0.65, 1.0, 2.13),
        peak_bytes=3.35e12,
        bandwidth=(
            (2.3e12, 2.65e12, 2.9e12),
            "NVIDIA/nccl issue 1264: 2.57, pytorch/FBGEMM pull request 3993: 2.77 TB/s; range "
            "assumed",
        ),
        launch=((3e-6, 8e-6, 30e-6), "assumed: PyTorch without graphs; high: as measured on V100"),
        idle=(
            (64.0, 100.0, 145.0),
            "low: NVIDIA's DGX manual; high: wilicc/gpu-burn issue 114, clocks up; between assumed",
        ),
        byte_energy=(
            (30e-12, 80e-12, 169e-12),
            "assumed: between V100 and A100 by NVML; low: HBM3 alone; high: Arunkumar et al. HPCA "
            "2019",
        ),
        board=700.0,
        board_source="H100 data sheet",
    ),
}

#: Names of those that need no measurement.
MACHINES = tuple(CARDS)


def machine(name: str) -> Machine:
    """A machine by its name.

    Raises
    ------
    ValueError
        If there is none of this name.
    FileNotFoundError
        If this computer was not measured yet.
    """
    if name == THIS:
        from thermokron.host.predict.machines.measured import load

        return load()
    if name not in CARDS:
        raise ValueError(f"machine = {name!r} is unknown; legal: {', '.join([*MACHINES, THIS])}")
    return _card(name)


@cache
def _card(name: str) -> Machine:
    card = CARDS[name]

    def quantity(
        what: str, figures: tuple[float, float, float], unit: str, source: str
    ) -> Quantity:
        return Quantity(f"{card.label} {what}", *figures, unit, source)

    fastest = max(card.gemm.values())
    idle, idle_source = card.idle
    per_flop = (card.board - idle[1]) / fastest
    scale = card.peak_bytes / TITAN_BYTES
    return Machine(
        name=name,
        gemm=_products(card),
        inverse=Curve(
            tuple(GV100_INVERSE),
            tuple(card.inverse * n**3 / seconds for n, seconds in GV100_INVERSE.items()),
            card.inverse_source,
        ),
        eigen=Curve(
            tuple(TITAN_EIGEN),
            tuple(scale * rate for rate in TITAN_EIGEN.values()),
            "assumed: syevd on a Titan XP, scaled by bandwidth",
        ),
        gemm_trust=quantity("trust in products", card.gemm_trust, "1", "assumed"),
        inverse_trust=quantity("trust in inverses", card.inverse_trust, "1", card.inverse_source),
        eigen_trust=quantity("trust in eigendecompositions", (0.4, 1.0, 3.0), "1", "assumed"),
        bandwidth=quantity("bandwidth", card.bandwidth[0], "byte/s", card.bandwidth[1]),
        launch=quantity("launch", card.launch[0], "s", card.launch[1]),
        idle_power=quantity("idle power", idle, "W", idle_source),
        flop_energy=quantity(
            "energy per operation",
            (0.6 * per_flop, per_flop, card.board / fastest),
            "J",
            f"{card.board:g} W of the {card.board_source}, without idle power, over the fastest "
            "product; low assumed: products draw two thirds of it",
        ),
        byte_energy=quantity("energy per byte", card.byte_energy[0], "J", card.byte_energy[1]),
        source=f"{card.label}, float32; see its figures",
        asynchronous=True,
    )


def _products(card: Card) -> Curve:
    """Its own rates, and below 1024 those of the A100, scaled."""
    small = {side: rate for side, rate in A100_GEMM.items() if side < min(card.gemm)}
    scale = card.gemm[1024] / A100_GEMM[1024]
    rates = {side: scale * rate for side, rate in small.items()} | card.gemm
    scaled = "; below 1024 assumed: scaled from A100" if small else ""
    return Curve(tuple(rates), tuple(rates.values()), card.gemm_source + scaled)
