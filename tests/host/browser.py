"""A real browser, told what to do through a pipe: Debian's Chromium, without a window."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

#: As the package installs it.
CHROMIUM = shutil.which("chromium")


class Page:
    """A page that is looked at, over the DevTools protocol.

    Attributes
    ----------
    errors : list of str
        What scripts raised, or the console says is wrong.
    asked : list of str
        Addresses of all that was loaded.
    """

    def __init__(self, path: Path, width: int, height: int = 900) -> None:
        assert CHROMIUM is not None
        self.errors: list[str] = []
        self.asked: list[str] = []
        self._numbers, self._buffer = count(1), b""
        there, self._out = _pipe()
        self._in, back = _pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{there} 4>&{back}', "browser", CHROMIUM, *options],
            pass_fds=(there, back),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(there)
        os.close(back)
        self._session: str | None = None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")
        self("Emulation.setDeviceMetricsOverride", width=width, height=height,
             deviceScaleFactor=1, mobile=False)  # fmt: skip
        self("Page.navigate", url=path.resolve().as_uri())
        self.run("new Promise(r => document.readyState === 'complete' ? r() : onload = r)")

    def __call__(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            self._hear(answer)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            more = os.read(self._in, 1 << 16)
            assert more, "the browser has gone"
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _hear(self, event: dict[str, Any]) -> None:
        told, params = event.get("method"), event.get("params", {})
        if told == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif told == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.errors.append(str(params["args"]))
        elif told == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif told == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])

    def run(self, script: str) -> Any:
        """The value of an expression, of a promise what it comes to."""
        options = {"returnByValue": True, "awaitPromise": True}
        result = self("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def screenshot(self, path: Path) -> Path:
        """A picture of the whole page."""
        shot = self("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._out)  # which ends it
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait()
        os.close(self._in)


def _pipe() -> tuple[int, int]:
    """Ends for reading and writing, of numbers that bash does not give away before it has both."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]
