"""What the unit was asked to do, in counts: what its energy depends on, beside time."""

from __future__ import annotations

from dataclasses import dataclass, fields

from thermokron.model import Job, UnitSpec

__all__ = ["Activity"]


@dataclass(frozen=True)
class Activity:
    """Counts, which add up.

    Attributes
    ----------
    vectors : int
        Bias vectors, each of which is a discharge.
    matrices : int
        Sets of couplings that passed the unit's port; a run with those of the run before has them.
    couplings, biases : int
        Codes put on the DACs, in every run.
    conversions : int
        Of the ADCs: one a cell and sample.
    products : int
        Added up by the accumulator, n(n+1)/2 a sample of runs with second moments.
    """

    vectors: int = 0
    matrices: int = 0
    couplings: int = 0
    biases: int = 0
    conversions: int = 0
    products: int = 0

    @classmethod
    def of(cls, spec: UnitSpec, job: Job, *, moved: bool) -> Activity:
        """Of one run; `moved` says whether its couplings passed the port for it."""
        codes = job.biases.size
        return cls(
            vectors=len(job.biases),
            matrices=int(moved),
            couplings=spec.coupling_count,
            biases=codes,
            conversions=job.samples * codes,
            products=job.samples * spec.coupling_count if job.second_moments else 0,
        )

    def __add__(self, other: Activity) -> Activity:
        return Activity(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))
