"""Attempts of the demo to send packets from its sandbox.

Most attempts try to bypass the proxy. The fence refuses these attempts, and an event reports each
of them.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.demo import program
from ocsf_nft.lab import GATEWAY4, GATEWAY_MAC, INTERNET4, INTERNET6, PROXY_PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ocsf_nft.netns import Namespace

PROXY_URL: Final = f"http://{GATEWAY4}:{PROXY_PORT}"
#: Page that is requested through the proxy, which answers itself: nothing leaves the machine.
_PAGE: Final = "http://example.com/"
_NAMESERVER: Final = "203.0.113.53"
_METADATA: Final = "169.254.169.254"
_ICMP, _TCP, _UDP, _GRE, _ICMPV6, _SCTP = 1, 6, 17, 47, 58, 132

#: Maximum time that a program waits for an answer.
_TIMEOUT_SECONDS: Final = 3.0
_PROGRAM: Final = Path(program.__file__)
#: Not ``PATH``: a user who can set it would choose the programs that run with our privileges.
_TRUSTED: Final = "/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Trace:
    """Values by which the demo finds the event about an attempt, such as protocol and port.

    A value is None if the event does not have it.
    """

    protocol: int | None = None
    destination: str | None = None
    port: int | None = None
    ethertype: int | None = None

    def is_in(self, event: Mapping[str, Any]) -> bool:
        """Return true if ``event`` reports refused packets, and has all values of this trace."""
        destination = event.get("dst_endpoint", {})
        found = Trace(
            protocol=event.get("connection_info", {}).get("protocol_num"),
            destination=destination.get("ip"),
            port=destination.get("port"),
            ethertype=event.get("unmapped", {}).get("ethertype"),
        )
        return event.get("activity_name") == "Refuse" and found == self


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result and duration of one attempt of the demo to send packets."""

    #: The attempt reached its destination.
    got_through: bool
    #: Short text about the result, such as an answer or an error.
    saw: str
    milliseconds: float
    #: The duration includes the start of the program that makes the attempt.
    is_timed_outside: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Attempt of the demo to reach an address from the sandbox, by one program."""

    title: str
    #: Program with its arguments.
    command: tuple[str, ...]
    #: Reads the output of the running program until the outcome is known. The number is the start
    #: time of the program (:func:`time.perf_counter`).
    watch: Callable[[subprocess.Popen[str], float], Outcome]
    #: Values of the event about the attempt; None for an allowed attempt, which has no event.
    trace: Trace | None

    async def make(self, sandbox: Namespace) -> Outcome:
        """Run the program inside the sandbox's namespace, and return the outcome of the attempt.

        The program is killed after 3 s, or when this method is cancelled.
        """
        start = time.perf_counter()
        process = sandbox.call(self._start)
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                return await asyncio.to_thread(self._watch, process, start)
        except TimeoutError:
            return _outside(start, got_through=False, saw="nothing happened")
        finally:
            process.kill()  # has no effect if it has exited
            process.wait()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # Not the user's environment, which may have a proxy.
            env={"LC_ALL": "C.UTF-8"},
        )

    def _watch(self, process: subprocess.Popen[str], start: float) -> Outcome:
        try:
            return self.watch(process, start)
        finally:
            # Closed here and not by the waiting coroutine: only this thread reads the pipes.
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


def all_attempts(device: str, tools: str = _TRUSTED) -> tuple[Attempt, ...]:
    """Return all attempts of the demo, in the order in which the demo makes them.

    ``device`` is the sandbox's network interface. ``tools`` is the search path for the programs
    curl and ping. A Python program replaces a missing program.
    """
    curl, ping = (shutil.which(tool, path=tools) for tool in ("curl", "ping"))
    ipv6_url = f"http://[{INTERNET6}]/"
    ethertype = program.ETHERTYPE
    dns, web6 = Trace(_UDP, _NAMESERVER, 53), Trace(_TCP, INTERNET6, 80)
    frame = Trace(ethertype=ethertype)
    return (
        _fetch(curl, f"https://{INTERNET4}/", Trace(_TCP, INTERNET4, 443)),
        _python(f"urllib {ipv6_url}", web6, "http", ipv6_url),
        _python(f"DNS query to {_NAMESERVER}", dns, "dns", _NAMESERVER),
        _ping(ping, INTERNET4, _ICMP),
        _ping(ping, INTERNET6, _ICMPV6),
        _raw("SCTP", _SCTP, INTERNET4),
        _raw("GRE", _GRE, INTERNET6),
        _python(f"Ethernet frame, type {ethertype:#06x}", frame, "frame", device, GATEWAY_MAC),
        _fetch(curl, f"http://{_METADATA}/", Trace(_TCP, _METADATA, 80)),
        _fetch(curl, _PAGE, None),
    )


def _fetch(curl: str | None, url: str, trace: Trace | None) -> Attempt:
    # The attempt that leaves no trace is allowed: it uses the proxy.
    through = () if trace is not None else (PROXY_URL,)
    way = f"{url} by proxy" if through else url
    if curl is None:
        return _python(f"urllib {way}", trace, "http", url, *through)
    flags = ("--proxy", *through) if through else ("--noproxy", "*")
    # -q: without the settings of the user who runs the demo.
    command = (curl, "-q", "-sS", "--output", "-", "--max-time", "2", *flags)
    return Attempt(
        title=f"curl {way}",
        command=(*command, "--write-out", "\n%{http_code} %{time_total}", url),
        watch=_watch_curl,
        trace=trace,
    )


def _ping(ping: str | None, address: str, protocol: int) -> Attempt:
    trace = Trace(protocol, address)
    if ping is None:
        return _python(f"ping {address}", trace, "ping", address)
    return Attempt(
        title=f"ping {address}",
        command=(ping, "-n", "-c1", "-W1", address),
        watch=_watch_ping,
        trace=trace,
    )


def _raw(name: str, protocol: int, address: str) -> Attempt:
    trace = Trace(protocol, address)
    return _python(f"raw {name} to {address}", trace, "raw", str(protocol), address)


def _python(title: str, trace: Trace | None, *arguments: str) -> Attempt:
    return Attempt(
        title=f"python {title}" if title.startswith("urllib") else title,
        # Isolated and without site: it starts twice as fast.
        command=(sys.executable, "-I", "-S", str(_PROGRAM), *arguments),
        watch=_watch_python,
        trace=trace,
    )


def _watch_python(process: subprocess.Popen[str], start: float) -> Outcome:
    output, errors = process.communicate()
    try:
        result = json.loads(output)
    except ValueError:
        return _outside(start, got_through=process.returncode == 0, saw=_last_line(errors))
    return Outcome(process.returncode == 0, result["saw"], result["milliseconds"])


def _watch_curl(process: subprocess.Popen[str], start: float) -> Outcome:
    output, errors = process.communicate()
    got_through = process.returncode == 0
    page, _, figures = output.rpartition("\n")
    status, _, seconds = figures.partition(" ")
    # curl's message ends with the reason, after the address and a colon.
    saw = f"{status}: {page.strip()}" if got_through else _last_line(errors).rpartition(": ")[2]
    try:
        milliseconds = float(seconds) * 1000
    except ValueError:
        return _outside(start, got_through=got_through, saw=saw)
    return Outcome(got_through, saw, milliseconds)


def _watch_ping(process: subprocess.Popen[str], start: float) -> Outcome:
    # If the kernel refuses to send, ping writes this at once, but may still wait for an answer.
    complaint = "" if process.stderr is None else process.stderr.readline()
    if not complaint:
        return _outside(start, got_through=process.wait() == 0, saw="no complaint")
    return _outside(start, got_through=False, saw=complaint.rpartition(": ")[2].strip())


def _outside(start: float, *, got_through: bool, saw: str) -> Outcome:
    milliseconds = (time.perf_counter() - start) * 1000
    return Outcome(got_through, saw, milliseconds, is_timed_outside=True)


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
