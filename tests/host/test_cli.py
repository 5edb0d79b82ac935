"""The command line as a newcomer meets it, and how it speaks of errors."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from thermokron.host import cli
from thermokron.host.cli import commands
from thermokron.model import UnitFault

#: The module, whose name the package gives to the function in it.
MAIN = importlib.import_module("thermokron.host.cli.main")
COMMANDS = sorted(
    path.stem for path in Path(commands.__path__[0]).glob("*.py") if path.stem != "__init__"
)


def _command(name: str, run: Callable[[argparse.Namespace], int]) -> SimpleNamespace:
    """A command module made on the spot."""

    def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        subparsers.add_parser(name, help="a command of this test")

    return SimpleNamespace(
        __name__=f"thermokron.host.cli.commands.{name}", add_parser=add_parser, run=run
    )


def _raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


def test_console_script_is_installed() -> None:
    script = Path(sys.executable).with_name("thermokron")
    result = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"thermokron {version('thermokron')}\n"


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: thermokron")
    for name in COMMANDS:
        assert f"    {name} " in out
        assert f"\n  thermokron {name} " in out, "no example of it"


def test_help_is_quick() -> None:
    """What a command says of itself needs none of the packages that it takes seconds to load."""
    code = "import sys; from thermokron.host.cli import build_parser; build_parser(); "
    code += "print({'torch', 'matplotlib', 'sklearn', 'amaranth', 'cocotb'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches_by_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert f"\n  thermokron {name}" in out, "no example on a line of its own"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_module_keeps_the_contract(name: str) -> None:
    module = importlib.import_module(f"thermokron.host.cli.commands.{name}")
    assert callable(module.add_parser)
    assert callable(module.run)


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["fly"])
    assert end.value.code == 2
    assert "'fly'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        ValueError("cells = 1 is out of range; legal: 2 to 4096"),
        UnitFault("adc_timeout"),
        OSError("no space left"),
        ModuleNotFoundError("install thermokron[train]"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_users_error_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(MAIN, "_command_modules", lambda: [_command("fail", _raising(error))])
    assert cli.main(["fail"]) == 2
    assert capsys.readouterr().err == f"thermokron: error: {error}\n"
    with pytest.raises(type(error)):
        cli.main(["--traceback", "fail"])


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    run = _raising(AssertionError("a bug"))
    monkeypatch.setattr(MAIN, "_command_modules", lambda: [_command("fail", run)])
    with pytest.raises(AssertionError):
        cli.main(["fail"])


def test_interrupt_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _raising(KeyboardInterrupt())
    monkeypatch.setattr(MAIN, "_command_modules", lambda: [_command("wait", run)])
    assert cli.main(["wait"]) == 130
    assert capsys.readouterr().err.strip() == "thermokron: interrupted"


def test_the_exit_status_is_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MAIN, "_command_modules", lambda: [_command("three", lambda args: 3)])
    assert cli.main(["three"]) == 3


@pytest.mark.parametrize("command", [["train", "demo"], ["train", "digits"], ["verilog"]])
def test_a_file_in_the_way_of_results(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    (tmp_path / "taken").touch()
    output = tmp_path / "taken" / "unit.v" if command == ["verilog"] else tmp_path / "taken"
    assert cli.main([*command, "-o", str(output)]) == 2
    # before the work of minutes, which would be lost
    assert capsys.readouterr().err == f"thermokron: error: {tmp_path / 'taken'}: File exists\n"
