"""What converter bits are worth: K-FAC over bits of the couplings and of the ADC."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thermokron.host.studies.plan import take
from thermokron.host.studies.runs import Outcome, Run, Store, make_config
from thermokron.host.studies.tables import markdown, median, number, write
from thermokron.model import UnitSpec

__all__ = ["Quantisation"]

#: Contender that the others are compared with, and the one whose lead is at stake.
EXACT, RIVAL = "K-FAC, exact", "Adam"


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """A grid of coupling bits times ADC bits, and a grid of coupling bits times samples.

    Attributes
    ----------
    name, title : str
        Of the study.
    seeds : list of int
        Seeds, of which medians are taken.
    target : float
        Training loss for "epochs to target".
    keeps : float
        K-FAC's advantage counts as kept where it needs at most this many times the epochs that
        exact K-FAC needs.
    config, unit : dict
        Settings of `TrainConfig`, and fields of `UnitSpec`, for all runs on the unit. The same
        settings serve exact K-FAC.
    rival : dict
        Settings of `TrainConfig` for Adam.
    coupling_bits, adc_bits : list of int
        The grid.
    equilibrate : list of bool
        With, without, or both.
    samples_coupling_bits, samples : list of int
        The second grid, with equilibration.
    samples_adc_bits : int
        Bits of its ADC.
    """

    name: str
    title: str
    seeds: list[int]
    target: float
    keeps: float
    config: dict[str, Any]
    unit: dict[str, Any]
    rival: dict[str, Any]
    coupling_bits: list[int]
    adc_bits: list[int]
    equilibrate: list[bool]
    samples_coupling_bits: list[int]
    samples: list[int]
    samples_adc_bits: int

    def __post_init__(self) -> None:
        for name in ("seeds", "coupling_bits", "adc_bits", "equilibrate"):
            if not getattr(self, name):
                raise ValueError(f"{name} needs one entry at least")
        if self.target <= 0.0:
            raise ValueError(f"target = {self.target}; legal: above 0")
        for _ in (*self._grid(), *self._samples_grid(), *self._references()):
            pass  # every spec and config is checked here

    # ---- what to run ----------------------------------------------------------------------

    def stages(self, store: Store) -> Iterator[tuple[str, list[Run]]]:
        """References, the grid of bits, the grid of samples."""
        yield "references", [run for _, runs in self._references() for run in runs]
        yield "bits", [run for _, runs in self._grid() for run in runs]
        yield "samples", [run for _, runs in self._samples_grid() for run in runs]

    def _seeds(
        self, label: str, settings: dict[str, Any], unit: dict[str, Any] | None
    ) -> list[Run]:
        spec = None if unit is None else take(UnitSpec, unit)
        return [
            Run(
                label=f"{label}, seed {seed}",
                config=make_config({**settings, "seed": seed}),
                spec=spec,
            )
            for seed in self.seeds
        ]

    def _references(self) -> Iterator[tuple[str, list[Run]]]:
        yield EXACT, self._seeds(EXACT, {**self.config, "engine": "exact"}, None)
        yield RIVAL, self._seeds(RIVAL, {"optimizer": "adam", **self.rival}, None)

    def _on_unit(self, couplings: int, adc: int, **more: Any) -> list[Run]:
        marks = ", ".join(f"{name} {value}" for name, value in more.items())
        return self._seeds(
            f"{couplings}-bit couplings, {adc}-bit ADC, {marks}",
            {"engine": "numeric", **self.config, **more},
            {**self.unit, "coupling_bits": couplings, "adc_bits": adc},
        )

    def _grid(self) -> Iterator[tuple[tuple[bool, int, int], list[Run]]]:
        for equilibrate in self.equilibrate:
            for couplings in self.coupling_bits:
                for adc in self.adc_bits:
                    runs = self._on_unit(couplings, adc, equilibrate=equilibrate)
                    yield (equilibrate, couplings, adc), runs

    def _samples_grid(self) -> Iterator[tuple[tuple[int, int], list[Run]]]:
        for couplings in self.samples_coupling_bits:
            for samples in self.samples:
                yield (
                    (couplings, samples),
                    self._on_unit(couplings, self.samples_adc_bits, samples=samples),
                )

    # ---- what to tell ---------------------------------------------------------------------

    def report(self, store: Store, folder: Path) -> list[Path]:
        """`tables.md` and `bits.png`."""
        from thermokron.host.studies.plots import plot_heat_maps

        def outcomes(runs: list[Run]) -> list[Outcome]:
            return [store[run] for run in runs]

        references = {name: outcomes(runs) for name, runs in self._references()}
        grid = {point: outcomes(runs) for point, runs in self._grid()}
        samples = {point: outcomes(runs) for point, runs in self._samples_grid()}
        parts = [f"## {self.title}", self._reference_table(references)]
        maps = {}
        limits = {}
        for equilibrate in self.equilibrate:
            scaling = "equilibrated" if equilibrate else "divided by the largest entry"
            for what, value in (
                (f"epochs to {self.target:g}", self._epochs),
                ("final loss", self._loss),
            ):
                table = [
                    [value(grid[equilibrate, c, a]) for a in self.adc_bits]
                    for c in self.coupling_bits
                ]
                maps[f"{what}\n{scaling}"] = table
                limits[what] = self._limits(value, references, grid)
                rows = [
                    [f"**{c}**", *(number(v, 2) for v in row)]
                    for c, row in zip(self.coupling_bits, table, strict=True)
                ]
                head = ["coupling bits \\ ADC bits", *map(str, self.adc_bits)]
                parts += [f"### {what[0].upper() + what[1:]}, {scaling}", markdown(head, rows)]
        limit = self.keeps * self._epochs(references[EXACT])
        parts += self._findings(grid, samples, limit)
        return [
            write(folder / "tables.md", *parts),
            plot_heat_maps(
                maps,
                folder / "bits.png",
                title=self.title,
                rows=("coupling bits", self.coupling_bits),
                columns=("ADC bits", self.adc_bits),
                limits=limits,
            ),
        ]

    @staticmethod
    def _limits(
        value: Callable[[list[Outcome]], float],
        references: dict[str, list[Outcome]],
        grid: dict[tuple[bool, int, int], list[Outcome]],
    ) -> tuple[float, float]:
        """Ends of a colour scale: those of all that is finite, references included.

        With Adam's on it, what is noise between neighbours does not look like an effect.
        """
        found = [value(done) for done in (*references.values(), *grid.values())]
        finite = [v for v in found if math.isfinite(v)] or [1.0]
        return min(finite), max(*finite, 1.01 * min(finite))

    def _epochs(self, outcomes: list[Outcome]) -> float:
        return median(outcome.epochs_to(self.target) for outcome in outcomes)

    @staticmethod
    def _loss(outcomes: list[Outcome]) -> float:
        return median(outcome.final_loss for outcome in outcomes)

    def _reference_table(self, references: dict[str, list[Outcome]]) -> str:
        rows = [
            [name, number(self._epochs(done)), number(self._loss(done), 2)]
            for name, done in references.items()
        ]
        return markdown(["", f"epochs to {self.target:g}", "final loss"], rows)

    def _findings(
        self,
        grid: dict[tuple[bool, int, int], list[Outcome]],
        samples: dict[tuple[int, int], list[Outcome]],
        limit: float,
    ) -> list[str]:
        kept = f"at most {self.keeps:g} times exact K-FAC's epochs, {number(limit)}"
        widest = max(self.adc_bits)
        rows = []
        for equilibrate in self.equilibrate:
            enough = [
                c for c in self.coupling_bits if self._epochs(grid[equilibrate, c, widest]) <= limit
            ]
            scaling = "equilibrated" if equilibrate else "divided by the largest entry"
            rows.append([scaling, str(min(enough)) if enough else "none of these"])
        parts = [
            f"### The fewest coupling bits, {widest}-bit ADC: {kept}",
            markdown(["", "coupling bits"], rows),
        ]
        if samples:
            rows = []
            for couplings in self.samples_coupling_bits:
                row = [samples[couplings, count] for count in self.samples]
                fewest = min(
                    (n for n, o in zip(self.samples, row, strict=True) if self._epochs(o) <= limit),
                    default=None,
                )
                hardware = math.nan
                if fewest is not None:
                    hardware = 1e3 * median(o.hardware_seconds for o in samples[couplings, fewest])
                rows.append(
                    [
                        f"**{couplings}**",
                        *(number(self._epochs(o), 2) for o in row),
                        "none of these" if fewest is None else f"{fewest:,}",
                        "" if fewest is None else number(hardware),
                    ]
                )
            head = ["coupling bits \\ samples", *(f"{n:,}" for n in self.samples)]
            head += ["fewest samples", "ms on the unit"]
            parts += [
                f"### Epochs to {self.target:g} by samples per run, {self.samples_adc_bits}-bit "
                f"ADC; the fewest for {kept}",
                markdown(head, rows),
            ]
        return parts
