"""The subcommands of `thermokron`, one module each.

A module here offers `add_parser(subparsers)`, which declares its command, and `run(args)`, which
does the work and returns the exit status. Modules are imported for every `thermokron --help`, so
they import what is heavy in `run`.
"""

__all__: list[str] = []
