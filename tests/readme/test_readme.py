"""Every snippet of README.md and docs/ works when copied out alone, and prints what is shown.

Python runs in a fresh interpreter, which has torch at hand already if the snippet imports it;
commands run in bash, both in an empty folder; C is compiled. Of commands that begin with `make` it
is checked that the target exists (`make -n`): the tests do not run themselves, and the demo takes
minutes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
SNIPPET = re.compile(
    r"^```(?P<language>\w*)\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
SNIPPETS = [
    (page, match)
    for page, text in PAGES.items()
    for match in SNIPPET.finditer(text)
    if match["language"] != "text"
]
RUN = {"python", "sh"}
#: What an extra of that name brings, and snippets import.
OPTIONAL = ("lightning", "transformers", "tensorboard")
#: What torchrun says to a process that trains with others: here there are none.
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
#: Threads for matrices this small wait for each other, and the tests have all cores at work.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
BIN = str(Path(sys.executable).parent)
ENVIRONMENT = {"PATH": BIN + os.pathsep + os.environ["PATH"]} | ALONE | ONE_THREAD
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def _before(snippet: re.Match[str]) -> re.Match[str]:
    """The snippet that stands before one."""
    return list(SNIPPET.finditer(snippet.string, 0, snippet.start()))[-1]


def _named(snippets: list[tuple[str, re.Match[str]]]) -> list[object]:
    """Each by page and line."""
    return [
        pytest.param(match, id=f"{page}:{PAGES[page].count(chr(10), 0, match.start()) + 1}")
        for page, match in snippets
    ]


def _of(language: str) -> list[tuple[str, re.Match[str]]]:
    return [(page, match) for page, match in SNIPPETS if match["language"] == language]


def _assert_ran(code: int, stdout: str, stderr: str) -> str:
    assert code == 0, stdout + stderr
    return stdout


def _run(command: list[str], folder: Path) -> str:
    result = subprocess.run(
        command, cwd=folder, env=os.environ | ENVIRONMENT, capture_output=True, text=True
    )
    return _assert_ran(result.returncode, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def with_torch() -> Iterator[Callable[[str, Path], str]]:
    """What a program prints that runs in a folder and imports torch."""
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("interpreter.py")],
        env=os.environ | ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as interpreter:

        def run(code: str, folder: Path) -> str:
            print(json.dumps([code, str(folder)]), file=interpreter.stdin, flush=True)
            return _assert_ran(*json.loads(interpreter.stdout.readline()))

        yield run


def _assert_shown(printed: str, shown: str | None) -> None:
    """The words are those shown; numbers agree within a factor of two, as other BLAS kernels
    sample another realisation of the same noise."""
    if shown is None:
        return
    assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", shown).split()
    for got, expected in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        assert float(expected) / 2 <= float(got) <= float(expected) * 2, printed


@pytest.mark.parametrize("snippet", _named(_of("python")))
def test_python(snippet: re.Match[str], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    code = snippet["code"]
    for name in OPTIONAL:
        if re.search(rf"^(from|import) .*\b{name}\b", code, re.MULTILINE):
            pytest.importorskip(name, reason=f"needs the extra {name}")
    if re.search(r"^import torch$", code, re.MULTILINE):
        printed = request.getfixturevalue("with_torch")(code, tmp_path)
    else:
        printed = _run([sys.executable, "-c", code], tmp_path)
    _assert_shown(printed, snippet["output"])


#: What headers for C are made by: tested where they are used.
MAKE_HEADERS = [(page, _before(match).span()) for page, match in _of("c")]


@pytest.mark.parametrize(
    "snippet", _named([s for s in _of("sh") if (s[0], s[1].span()) not in MAKE_HEADERS])
)
def test_commands(snippet: re.Match[str], tmp_path: Path) -> None:
    lines = snippet["code"].splitlines()
    for line in lines:
        if line.startswith("make "):
            _run(["bash", "-ec", line.replace("make ", "make -n ", 1)], ROOT)
    rest = [line for line in lines if not line.startswith("make ")]
    if "train.py" in snippet["code"]:
        (tmp_path / "train.py").write_text(_before(snippet)["code"])
    _assert_shown(_run(["bash", "-euc", "\n".join(rest)], tmp_path), snippet["output"])


@pytest.mark.parametrize("snippet", _named(_of("c")))
def test_c(snippet: re.Match[str], tmp_path: Path) -> None:
    """Against the headers that the commands before it make, which are tested here, too."""
    commands = _before(snippet)
    assert commands["language"] == "sh"
    test_commands(commands, tmp_path)
    (tmp_path / "snippet.c").write_text(snippet["code"])
    folders = [f"-I{path.parent}" for path in tmp_path.rglob("*.h")]
    _run(["gcc", "-std=c11", "-Wall", "-Werror", "-fsyntax-only", *folders, "snippet.c"], tmp_path)


def test_every_snippet_is_of_a_language_that_is_run() -> None:
    others = {(page, match[0]) for page, match in SNIPPETS if match["language"] not in RUN | {"c"}}
    assert not others
    assert {match["language"] for page, match in SNIPPETS if page == "README.md"} == RUN


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_are_named_exist(page: str) -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)", PAGES[page]):
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"
    table = [line.split("|") for line in PAGES[page].splitlines() if line.startswith("| ")]
    if page.endswith(("what-happens-when.md", "faults.md")):
        lines = [cells for cells in table if cells[1].strip() != "when"]
        assert lines
        assert all("tests/" in cells[-2] for cells in lines)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", PAGES[page])
    assert not [t for t in targets if "://" not in t and not (folder / t).exists()]
