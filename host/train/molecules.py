"""The other data: molecules as graphs, with their boiling points."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from sklearn.model_selection import train_test_split

__all__ = ["Molecules"]

TABLE = Path(__file__).with_name("molecules.tsv")
TEST_MOLECULES = 96  # of the 496
ATOMS = 24  # the most in one molecule
ELEMENTS = ("C", "N", "O", "F", "Si", "P", "S", "Cl", "Br", "I")
BONDS = "-:=#"  # single, aromatic, double, triple
ATOM = re.compile(r"([A-Z][a-z]?)(?:H(\d?))?([+-]?)")
BOND = re.compile(r"(\d+)([-:=#])(\d+)")
#: Numbers that describe an atom.
FEATURES = len(ELEMENTS) + 2 + len(BONDS)


@dataclass(frozen=True)
class Molecules:
    """496 small organic molecules with measured boiling points, split for training and testing.

    Structures and boiling points are those of Wikidata, see `tools/make_molecules.py` for how they
    were chosen. Molecules are padded to 24 heavy atoms.

    Attributes
    ----------
    train_atoms, test_atoms : (400, 24, 16), (96, 24, 16) float32 tensors
        Per atom its element (one of ten, as an indicator), its hydrogens, its charge, and its
        single, aromatic, double and triple bonds; zeros where there is no atom.
    train_bonds, test_bonds : (400, 24, 24), (96, 24, 24) float32 tensors
        1 between bonded atoms.
    train_targets, test_targets : (400,), (96,) float32 tensors
        Boiling points, shifted and scaled by mean and standard deviation of those to train on.
    deviation_k : float
        That standard deviation in kelvin.
    """

    train_atoms: torch.Tensor
    train_bonds: torch.Tensor
    train_targets: torch.Tensor
    test_atoms: torch.Tensor
    test_bonds: torch.Tensor
    test_targets: torch.Tensor
    deviation_k: float

    @classmethod
    def load(cls, seed: int) -> Self:
        """The data, split at random by `seed`."""
        lines = [
            line
            for line in TABLE.read_text(encoding="utf-8").splitlines()
            if not line.startswith("#")
        ]
        rows = [line.split("\t") for line in lines[1:]]
        atoms, bonds = zip(*(_graph(row[2], row[3]) for row in rows), strict=True)
        kelvin = torch.tensor([float(row[1]) for row in rows])
        train, test = train_test_split(
            torch.arange(len(rows)), test_size=TEST_MOLECULES, random_state=seed
        )
        mean, deviation = kelvin[train].mean(), kelvin[train].std()
        x, a, y = torch.stack(atoms), torch.stack(bonds), (kelvin - mean) / deviation
        return cls(x[train], a[train], y[train], x[test], a[test], y[test], deviation.item())


def _graph(atoms: str, bonds: str) -> tuple[torch.Tensor, torch.Tensor]:
    features, adjacency = torch.zeros(ATOMS, FEATURES), torch.zeros(ATOMS, ATOMS)
    for index, atom in enumerate(atoms.split()):
        match = ATOM.fullmatch(atom)
        assert match is not None, atom
        element, hydrogens, charge = match.groups()
        features[index, ELEMENTS.index(element)] = 1.0
        if hydrogens is not None:
            features[index, len(ELEMENTS)] = float(hydrogens or 1)
        features[index, len(ELEMENTS) + 1] = {"": 0.0, "+": 1.0, "-": -1.0}[charge]
    for first, kind, second in BOND.findall(bonds):
        for here, there in ((int(first), int(second)), (int(second), int(first))):
            adjacency[here, there] = 1.0
            features[here, len(ELEMENTS) + 2 + BONDS.index(kind)] += 1.0
    return features, adjacency
