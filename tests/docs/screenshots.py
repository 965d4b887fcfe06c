"""Draw the pictures in docs/images: ``make screenshots``.

Those of terminals are from real runs. That of a report is of sample events, in chromium.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import tempfile
import termios
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.text import Text

from ocsf_nft.report.aggregator import Aggregator
from ocsf_nft.report.page import page
from ocsf_nft.report.selection import Span
from tests.docs import machines
from tests.docs.commands import ROOT
from tests.report.browser import Browser
from tests.report.day import BEGIN, MINUTE, events

if TYPE_CHECKING:
    from tests.docs.machines import Machine

IMAGES: Final = ROOT / "docs/images"
#: Size of the picture of a report, in CSS pixels.
_REPORT_WIDTH: Final = 1000
_REPORT_HEIGHT: Final = 1240
_COLUMNS: Final = 100
_LINES: Final = 60
#: The demo draws its table again with each row: from the hidden cursor to the last erased line.
_ANIMATION: Final = re.compile(r"\x1b\[\?25l.*\x1b\[2K", re.DOTALL)
#: The README has a complete event of its own.
_EVENT: Final = re.compile(r"^─+ The complete event .*?^─+$\n?", re.DOTALL | re.MULTILINE)

#: rich's own template loads a font from the network.
_SVG: Final = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
    font-family: monospace;
    font-size: {char_height}px;
    line-height: {line_height}px;
}}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


@dataclass(frozen=True, slots=True)
class Screenshot:
    """Picture of one command; ``before`` is a script that prepares the machine."""

    name: str
    command: str
    before: str = ""


SCREENSHOTS: Final = (
    Screenshot(name="demo", command="ocsf-nft demo"),
    Screenshot(
        name="tail",
        command="ocsf-nft tail events.jsonl",
        before="""\
ip netns exec agent sysctl -qw net.ipv6.conf.all.disable_ipv6=1
ocsf-nft install --sandbox agent --netns agent --proxy 10.200.0.1:3128
ocsf-nft run --sandbox agent >events.jsonl 2>run.log &
wait_for_line '"event":"ready"' run.log
attempt() {
    ip netns exec agent setpriv --reuid 1000 --regid 1000 --clear-groups "$@" || true
    wait_for_line "$expected" events.jsonl
}
expected=203.0.113.7 attempt curl -sS https://203.0.113.7/
expected=8.8.8.8 attempt bash -c 'echo >/dev/udp/8.8.8.8/53'
expected=169.254.169.254 attempt curl -sS http://169.254.169.254/
ip netns exec agent nft insert rule inet ocsf_nft output accept
wait_for_line '"class_uid":5019' events.jsonl
""",
    ),
)


def printed(machine: Machine, command: str) -> str:
    """Run a command in a pseudo-terminal on a machine, and return what it printed."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, _COLUMNS, 0, 0))
    script = f"export TERM=xterm-256color COLORTERM=truecolor\n{command}"
    with subprocess.Popen(
        machine.command(script), stdin=terminal, stdout=terminal, stderr=terminal
    ) as process:
        os.close(terminal)
        output = b""
        while part := _read(controller):
            output += part
    os.close(controller)
    text = output.decode().replace("\r\n", "\n")
    if process.returncode != 0:
        raise SystemExit(f"{command}: exit {process.returncode}\n{text}")
    return text


def _read(controller: int) -> bytes:
    try:
        return os.read(controller, 65_536)
    except OSError:  # EIO: all of its processes have ended
        return b""


def drawn(screenshot: Screenshot, text: str) -> str:
    """Return the picture of a terminal in which a command printed a text."""
    shown = Text.from_ansi(_ANIMATION.sub("", text).strip("\n"))
    event = _EVENT.search(shown.plain)
    parts = [Text.assemble(("$ ", "dim"), (screenshot.command, "bold"))]
    if event is None:
        parts.append(shown)
    else:
        before, _, after = shown.divide([event.start(), event.end()])
        before.rstrip()
        parts += [before, Text("\n… the complete event of the first attempt …\n", "dim"), after]
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=_COLUMNS, file=nowhere, force_terminal=True)
        console.print(*parts, sep="\n")
        return console.export_svg(
            title="ocsf-nft", code_format=_SVG, unique_id=f"terminal-{screenshot.name}"
        )


def report_page() -> bytes:
    """Return the page of a report about the sample events."""
    aggregator = Aggregator(Span(sandbox="agent-7"))
    for event in events():
        aggregator.add(event)
    return page(aggregator.view(), subject="Sandbox agent-7", made_ms=BEGIN + 60 * MINUTE)


def report_picture() -> bytes:
    """Return a PNG of the upper part of a report."""
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        file = Path(folder, "report.html")
        file.write_bytes(report_page())
        browser.load(file, width=_REPORT_WIDTH)
        return browser.picture(_REPORT_HEIGHT)


def main() -> None:
    """Draw all pictures."""
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / "report.png").write_bytes(report_picture())
    for screenshot in SCREENSHOTS:
        with machines.started("sandbox") as machine:
            done = machine.run(screenshot.before)
            if done.returncode != 0:
                raise SystemExit(done.stdout)
            text = printed(machine, screenshot.command)
        (IMAGES / f"{screenshot.name}.svg").write_text(drawn(screenshot, text), encoding="utf-8")


if __name__ == "__main__":
    main()
