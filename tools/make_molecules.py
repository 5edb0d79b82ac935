"""Write host/train/molecules.tsv: molecules with their boiling points, for the graph network.

    pip install chemicals==1.5.2 rdkit==2026.9.1
    python tools/make_molecules.py host/train/molecules.tsv

The boiling points are Wikidata's (public domain, CC0), as the package chemicals (MIT licence)
has them. Taken are neutral organic molecules of 2 to 24 heavy atoms whose structure that package
knows, without isotopes and stereochemistry, and with normal boiling points that do not differ by
more than 15 K from those of C. L. Yaws in the same package, where they are there: the others are
mostly measured at reduced pressure.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from pathlib import Path

import chemicals
from rdkit import Chem

ELEMENTS = {"C", "N", "O", "F", "Si", "P", "S", "Cl", "Br", "I"}
ATOMS = range(2, 25)
TOLERANCE_K = 15.0
BONDS = {1.0: "-", 1.5: ":", 2.0: "=", 3.0: "#"}
FOLDER = Path(chemicals.__file__).parent
HEADER = """\
# Boiling points of organic molecules in kelvin, from Wikidata (CC0), by way of chemicals {version}.
# Made by tools/make_molecules.py, which says how they were chosen.
# atoms: element, hydrogens and charge of each heavy atom; bonds: pairs of atoms, counted from 0,
# single -, double =, triple #, aromatic :
"""


def structures() -> dict[int, str]:
    """SMILES by CAS number without hyphens."""
    found: dict[int, str] = {}
    for size in ("small", "large"):
        path = FOLDER / "Identifiers" / f"chemical identifiers pubchem {size}.tsv"
        for line in path.read_text(encoding="utf-8").splitlines():
            fields = line.split("\t")
            found.setdefault(int(fields[1].replace("-", "")), fields[4])
    return found


def boiling_points(path: Path) -> dict[int, float]:
    """Kelvin by CAS number without hyphens."""
    with path.open(encoding="utf-8") as lines:
        rows = csv.DictReader(lines, delimiter="\t")
        return {int(r["CAS"].replace("-", "")): float(r["Tb"]) for r in rows if r["Tb"]}


def atom(a: Chem.Atom) -> str:
    """Such as CH3, or N+."""
    hydrogens = a.GetTotalNumHs()
    charge = {-1: "-", 0: "", 1: "+"}[a.GetFormalCharge()]
    protons = "H" * (hydrogens > 0) + str(hydrogens) * (hydrogens > 1)
    return a.GetSymbol() + protons + charge


def suits(molecule: Chem.Mol | None) -> bool:
    """Whether a structure is one that is taken."""
    if molecule is None or len(Chem.GetMolFrags(molecule)) != 1:
        return False
    kinds = {a.GetSymbol() for a in molecule.GetAtoms()}
    charges = [a.GetFormalCharge() for a in molecule.GetAtoms()]
    return (
        kinds <= ELEMENTS
        and "C" in kinds
        and molecule.GetNumAtoms() in ATOMS
        and sum(charges) == 0
        and max(map(abs, charges)) <= 1
        and not any(a.GetIsotope() for a in molecule.GetAtoms())
    )


def main(target: Path) -> None:
    """Write the table, sorted by structure."""
    known = structures()
    others = boiling_points(FOLDER / "Phase Change" / "Yaws Boiling Points.tsv")
    rows = {}
    left_out = Counter[str]()
    for cas, kelvin in boiling_points(FOLDER / "Misc" / "wikidata_properties.tsv").items():
        molecule = Chem.MolFromSmiles(known[cas]) if cas in known else None
        if not suits(molecule):
            left_out["structure"] += 1
        elif abs(others.get(cas, kelvin) - kelvin) > TOLERANCE_K:
            left_out["boiling point"] += 1
        else:
            Chem.RemoveStereochemistry(molecule)
            # once more from SMILES, so that atoms are in its order
            smiles = Chem.MolToSmiles(molecule)
            molecule = Chem.MolFromSmiles(smiles)
            bonds = (
                f"{b.GetBeginAtomIdx()}{BONDS[b.GetBondTypeAsDouble()]}{b.GetEndAtomIdx()}"
                for b in molecule.GetBonds()
            )
            atoms = " ".join(map(atom, molecule.GetAtoms()))
            rows[smiles] = f"{smiles}\t{kelvin:.1f}\t{atoms}\t{' '.join(bonds)}\n"
    header = HEADER.format(version=chemicals.__version__)
    body = "".join(rows[smiles] for smiles in sorted(rows))
    target.write_text(header + "smiles\tboiling_point_k\tatoms\tbonds\n" + body, encoding="utf-8")
    print(f"{len(rows)} molecules; left out: {dict(left_out)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
