"""What converter bits are worth: K-FAC over bits of the couplings and of the ADC."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from thermokron.host.studies.effects import check_effects
from thermokron.host.studies.quantisation_report import Findings, write_report
from thermokron.host.studies.runs import Outcome, Run, Store, make_config
from thermokron.host.studies.settings import about, check_number_of_runs, own_tasks, take
from thermokron.host.train.config import UNIT_ENGINES
from thermokron.model import UnitSpec

__all__ = ["Quantisation", "Variant"]


@dataclass(frozen=True, order=True)
class Variant:
    """How a factor becomes coupling codes: scaled how, and guarded how."""

    equilibrate: bool
    guard: str

    def __str__(self) -> str:
        scaling = "equilibrated" if self.equilibrate else "divided by the largest entry"
        guards = {"lanczos": "guarded", "none": "unguarded"}
        return f"{scaling}, {guards.get(self.guard, f'guard {self.guard!r}')}"


#: Where in a grid.
Point = TypeVar("Point")


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """Grids of coupling bits times ADC bits, times samples, and times damping.

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
        exact K-FAC needs, and all runs end well.
    config, unit : dict
        Settings of `TrainConfig`, and fields of `UnitSpec`, for all runs on the unit. The same
        settings serve exact K-FAC.
    rival : dict
        Settings of `TrainConfig` for Adam.
    coupling_bits, adc_bits : list of int
        The first grid.
    equilibrate : list of bool
        With equilibration, without, or both; the first grid is run with each.
    guards : list of str
        Guards of `thermokron.host.linalg.inv`; the first grid is run with each.
    fixed_adc_bits : int
        Bits of the ADC in the other grids.
    samples_coupling_bits, samples : list of int
        The second grid.
    damping_coupling_bits : list of int
    damped : list of dict
        The third grid, beside exact K-FAC: each a `damping`, and the `lr` that goes with it.
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
    guards: list[str]
    fixed_adc_bits: int
    samples_coupling_bits: list[int]
    samples: list[int]
    damping_coupling_bits: list[int]
    damped: list[dict[str, float]]

    #: What the unit is compared with, and over whom K-FAC leads.
    exact: ClassVar[str] = "K-FAC, exact"
    rival_name: ClassVar[str] = "Adam"

    def __post_init__(self) -> None:
        for name in ("seeds", "coupling_bits", "adc_bits", "equilibrate", "guards"):
            if not getattr(self, name):
                raise ValueError(f"{name} needs one entry at least")
        bits = len(self.coupling_bits) * len(self.adc_bits)
        seeds = len(self.seeds)
        check_number_of_runs(seeds, bits, len(self.equilibrate), len(self.guards))
        check_number_of_runs(seeds, len(self.samples_coupling_bits), len(self.samples))
        check_number_of_runs(seeds, len(self.damping_coupling_bits), len(self.damped))
        for name in ("target", "keeps"):
            if getattr(self, name) <= 0.0:
                raise ValueError(f"{name} = {getattr(self, name)}; legal: above 0")
        for settings in self.damped:
            if set(settings) != {"damping", "lr"}:
                raise ValueError(f"damped holds {settings}; legal: damping and lr")
        for name in ("config", "rival"):
            if "seed" in getattr(self, name):
                raise ValueError(f"seed does not belong in {name}; the plan has seeds")
        if self.config.get("optimizer", "kfac") != "kfac":
            raise ValueError(f"optimizer = {self.config['optimizer']!r} in config; legal: kfac")
        if self.config.get("engine", "numeric") not in UNIT_ENGINES:
            raise ValueError(
                f"engine = {self.config['engine']!r} in config; legal: {', '.join(UNIT_ENGINES)}"
            )
        # every spec and config is made here, and so checked
        references = dict(self.references())
        grids = (self.grid(), self.samples_grid(), self.damping_grid())
        on_unit = [run for grid in grids for _, runs in grid for run in runs]
        with about("config"):
            check_effects(self.config, on_unit)
        with about("rival"):
            check_effects(self.rival, references[self.rival_name])

    # ---- what to run ----------------------------------------------------------------------

    @property
    def tasks(self) -> list[str]:
        """Functions of the user's that it imports and calls."""
        return own_tasks([self.config, self.rival])

    def stages(self, store: Store) -> Iterator[tuple[str, list[Run]]]:
        """References, and the grids of bits, samples and damping."""
        yield "references", [run for _, runs in self.references() for run in runs]
        yield "bits", [run for _, runs in self.grid() for run in runs]
        yield "samples", [run for _, runs in self.samples_grid() for run in runs]
        yield "damping", [run for _, runs in self.damping_grid() for run in runs]

    @property
    def variants(self) -> list[Variant]:
        """What the first grid is run with."""
        return [Variant(e, guard) for e in self.equilibrate for guard in self.guards]

    def references(self) -> Iterator[tuple[str, list[Run]]]:
        """Exact K-FAC and Adam."""
        yield self.exact, self._seeds(self.exact, {**self.config, "engine": "exact"}, None)
        yield (
            self.rival_name,
            self._seeds(self.rival_name, {"optimizer": "adam", **self.rival}, None),
        )

    def grid(self) -> Iterator[tuple[tuple[Variant, int, int], list[Run]]]:
        """Coupling bits times ADC bits, by variant."""
        for variant in self.variants:
            for couplings in self.coupling_bits:
                for adc in self.adc_bits:
                    runs = self._on_unit(couplings, adc, **vars(variant))
                    yield (variant, couplings, adc), runs

    def samples_grid(self) -> Iterator[tuple[tuple[int, int], list[Run]]]:
        """Coupling bits times samples per run of the unit."""
        for couplings in self.samples_coupling_bits:
            for samples in self.samples:
                runs = self._on_unit(couplings, self.fixed_adc_bits, samples=samples)
                yield (couplings, samples), runs

    def damping_grid(self) -> Iterator[tuple[tuple[int | None, float, float], list[Run]]]:
        """Coupling bits, and None for exact inverses, times damping and its learning rate."""
        for settings in self.damped:
            damping, lr = settings["damping"], settings["lr"]
            exact = {**self.config, "engine": "exact", **settings}
            yield (None, damping, lr), self._seeds(f"{self.exact}, damping {damping}", exact, None)
            for couplings in self.damping_coupling_bits:
                runs = self._on_unit(couplings, self.fixed_adc_bits, **settings)
                yield (couplings, damping, lr), runs

    def _seeds(
        self, label: str, settings: dict[str, Any], unit: dict[str, Any] | None
    ) -> list[Run]:
        with about(label):
            spec = None if unit is None else take(UnitSpec, unit)
            configs = [make_config({**settings, "seed": seed}) for seed in self.seeds]
        return [
            Run(label=f"{label}, seed {config.seed}", config=config, spec=spec)
            for config in configs
        ]

    def _on_unit(self, couplings: int, adc: int, **more: Any) -> list[Run]:
        marks = ", ".join(f"{name} {value}" for name, value in more.items())
        return self._seeds(
            f"{couplings}-bit couplings, {adc}-bit ADC, {marks}",
            {"engine": "numeric", **self.config, **more},
            {**self.unit, "coupling_bits": couplings, "adc_bits": adc},
        )

    def report(self, store: Store, folder: Path) -> list[Path]:
        """`tables.md` and `bits.png`."""

        def done(grid: Iterable[tuple[Point, list[Run]]]) -> dict[Point, list[Outcome]]:
            return {point: [store[run] for run in runs] for point, runs in grid}

        findings = Findings(
            title=self.title,
            target=self.target,
            keeps=self.keeps,
            fixed_adc_bits=self.fixed_adc_bits,
            exact=self.exact,
            rival=self.rival_name,
            references=done(self.references()),
            bits=done(((str(variant), c, a), runs) for (variant, c, a), runs in self.grid()),
            samples=done(self.samples_grid()),
            damping=done(self.damping_grid()),
        )
        return write_report(
            findings,
            folder,
            abreast=len(self.guards),
            made_from=store.told_runs(),
            versions=store.told_versions(),
        )
