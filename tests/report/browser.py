"""Chromium as a judge of a page: its pictures, its width, and the errors that it reports.

The protocol is that of the developer tools, with a null byte after each message:
https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import tempfile
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from pathlib import Path

_OPTIONS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """A running chromium with one page."""

    def __init__(self, program: str = "chromium") -> None:
        self._program = program
        #: Messages of the console, and what the browser refused, as the page was loaded.
        self.reports: list[str] = []
        self._number = 0
        self._rest = b""
        self._is_loaded = False
        self._session: str | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            theirs, self._to = os.pipe()
            self._from, answers = os.pipe()

            def as_descriptors() -> None:  # chromium reads from 3, and writes to 4
                low = os.dup(theirs), os.dup(answers)
                os.dup2(low[0], 3)
                os.dup2(low[1], 4)

            self._process = stack.enter_context(
                subprocess.Popen(
                    [self._program, *_OPTIONS, f"--user-data-dir={folder}", "about:blank"],
                    preexec_fn=as_descriptors,  # noqa: PLW1509 - no other thread runs
                    close_fds=False,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
            stack.callback(self._process.kill)
            os.close(theirs)
            os.close(answers)
            targets = self.call("Target.getTargets")["targetInfos"]
            (page,) = (each["targetId"] for each in targets if each["type"] == "page")
            attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Log", "Runtime", "Network"):
                self.call(f"{domain}.enable")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        os.close(self._to)
        os.close(self._from)

    def load(self, path: Path, *, width: int, dark: bool = False, paper: bool = False) -> None:
        """Load a file as on a screen of this width, or as on paper."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800,
                  deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="print" if paper else "", features=[scheme])
        self._is_loaded = False
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self._is_loaded:
            self._take(self._message())

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"][
            "value"
        ]

    def picture(self, height: int | None = None) -> bytes:
        """Return a PNG of the whole page, or of its upper part."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"],
                "scale": 1}  # fmt: skip
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self._number:
            self._take(answer)
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._from, 1 << 16)
            if not part:
                raise AssertionError("chromium has ended")
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found

    def _take(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._is_loaded = True
            case "Log.entryAdded":
                self.reports.append(parameters["entry"]["text"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown":
                self.reports.append(json.dumps(parameters))
            case "Network.requestWillBeSent":
                address = parameters["request"]["url"]
                if not address.startswith("file:"):
                    self.reports.append(f"request of {address}")
