"""Runs programs like `python -c`, without the seconds that importing torch takes every time.

A line of the input is a JSON list: a program, which imports torch, and the folder where it runs. It
runs as the main module of a fork of its own of this process, which has imported torch and done
nothing else. A line of the output says how it ended: a JSON list of its exit status, what it wrote
to stdout, and to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import types

# with what torch imports when the first optimiser is made
import torch._dynamo  # noqa: F401


def serve() -> tuple[str, str] | None:
    """Answer until the input ends; in a fork return the program and the folder."""
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            process = os.fork()
            if not process:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(stdout.fileno(), 1)
                os.dup2(stderr.fileno(), 2)
                program, folder = json.loads(line)
                return program, folder
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            stdout.seek(0)
            stderr.seek(0)
            print(json.dumps([status, stdout.read(), stderr.read()]), flush=True)
    return None


if asked := serve():
    os.chdir(asked[1])
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv, sys.path[0] = ["-c"], ""
    exec(compile(asked[0], "<string>", "exec"), main.__dict__)
