"""The command line: `thermokron COMMAND`, one command per module of `commands`."""

from thermokron.host.cli.main import build_parser, main

__all__ = ["build_parser", "main"]
