"""The demo's own program: bytes that it sends, its output, and failures of the demo."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import demo
from ocsf_nft.demo import attempts
from ocsf_nft.demo.attempts import Trace, all_attempts
from ocsf_nft.errors import UnsupportedError
from ocsf_nft.fence import nft
from ocsf_nft.lab import GATEWAY4, GATEWAY_MAC, INTERNET4, INTERNET6, SANDBOX4, SANDBOX6
from tests.kernel.long_limits import long_program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocsf_nft.demo.attempts import Attempt
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_ETH_P_ALL = 3
_ETHERNET_BYTES = 14
_DELAY_SECONDS = 0.2


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return long_program(tmp_path)


def _run(
    lab: Lab, program: Path, *arguments: str, **environment: str
) -> tuple[int, dict[str, Any]]:
    """Run the program in the sandbox; return its exit code and what it printed."""
    command = [sys.executable, "-I", "-S", str(program), *arguments]
    done = lab.sandbox_namespace.call(
        lambda: subprocess.run(
            command, capture_output=True, env=environment, timeout=120, check=False
        )
    )
    assert not done.stderr, done.stderr
    assert done.stdout.count(b"\n") == 1
    assert done.stdout.endswith(b"\n")
    return done.returncode, json.loads(done.stdout)


def _sniffer(device: str) -> socket.socket:
    """Return a socket that gets each frame of a device."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    sock.bind((device, 0))
    sock.settimeout(60)
    return sock


def _frames(sniffer: socket.socket) -> Iterator[bytes]:
    while True:
        yield sniffer.recv(2048)


def _payload4(frame: bytes, protocol: int) -> bytes | None:
    packet = frame[_ETHERNET_BYTES:]
    head = bytes([0x45]), bytes([protocol]), _packed(SANDBOX4) + _packed(INTERNET4)
    found = packet[:1], packet[9:10], packet[12:20]
    return packet[20:] if frame[12:14] == b"\x08\0" and found == head else None


def _payload6(frame: bytes, protocol: int) -> bytes | None:
    packet = frame[_ETHERNET_BYTES:]
    head = bytes([protocol]), _packed(SANDBOX6) + _packed(INTERNET6)
    return (
        packet[40:] if frame[12:14] == b"\x86\xdd" and (packet[6:7], packet[8:40]) == head else None
    )


def _packed(address: str) -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_pton(family, address)


def _sum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of bytes; 0 if it is valid."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    return 0xFFFF - (total & 0xFFFF) - (total >> 16)


def test_demo_program_sends_the_packets_of_its_attempts(lab: Lab, program: Path) -> None:
    sniffer = lab.gateway_namespace.call(lambda: _sniffer(lab.gateway_device))
    own = lab.sandbox_namespace.call(lambda: _sniffer(lab.sandbox_device))
    mac = own.getsockname()[4]
    own.close()
    with sniffer:
        for arguments, payload_of, protocol in (
            (("raw", "132", INTERNET4), _payload4, 132),
            (("raw", "47", INTERNET6), _payload6, 47),
            (("ping", INTERNET4), _payload4, 1),
            (("ping", INTERNET6), _payload6, 58),
        ):
            start = time.perf_counter()
            code, printed = _run(lab, program, *arguments)
            assert (code, printed["saw"]) == (0, "sent")
            assert 0 < printed["milliseconds"] <= (time.perf_counter() - start) * 1000
            sent = next(filter(None, (payload_of(frame, protocol) for frame in _frames(sniffer))))
            if arguments[0] == "raw":
                assert sent == bytes(20)
            elif protocol == 1:
                # RFC 792: an echo request, identifier 0, sequence number 1.
                assert (sent[:2] + sent[4:], _sum(sent)) == (bytes.fromhex("0800 0000 0001"), 0)
            else:
                pseudo = _packed(SANDBOX6) + _packed(INTERNET6) + struct.pack("!II", len(sent), 58)
                assert sent[:2] + sent[4:] == bytes.fromhex("8000 0000 0001")
                assert _sum(pseudo + sent) == 0
        assert _run(lab, program, "frame", lab.sandbox_device, GATEWAY_MAC)[0] == 0
        frame = next(frame for frame in _frames(sniffer) if frame[12:14] == b"\x88\xb5")
        assert frame == bytes.fromhex(GATEWAY_MAC.replace(":", "")) + mac + b"\x88\xb5" + bytes(46)


async def test_demo_program_prints_its_outcome_and_duration(lab: Lab, program: Path) -> None:
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        await asyncio.sleep(_DELAY_SECONDS)
        status = b"204 Fine" if b"fine" in requests[-1] else b"501 Not Implemented"
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    sock = lab.gateway_namespace.call(lambda: socket.create_server((GATEWAY4, 8080)))
    async with await asyncio.start_server(serve, sock=sock):
        for arguments, code, saw in (
            (("http://example.com/fine", f"http://{GATEWAY4}:8080"), 0, "204 Fine"),
            ((f"http://{GATEWAY4}:8080/fine",), 0, "204 Fine"),
            ((f"http://{GATEWAY4}:8080/x",), 1, "Not Implemented"),
        ):
            start = time.perf_counter()
            got = await asyncio.to_thread(
                _run, lab, program, "http", *arguments, http_proxy="http://127.0.0.1:9"
            )
            took = (time.perf_counter() - start) * 1000
            assert (got[0], got[1]["saw"]) == (code, saw)
            assert _DELAY_SECONDS * 1000 <= got[1]["milliseconds"] <= took
    assert requests == [
        b"GET http://example.com/fine HTTP/1.1", b"GET /fine HTTP/1.1", b"GET /x HTTP/1.1",
    ]  # fmt: skip
    code, printed = _run(lab, program, "http", f"http://{GATEWAY4}:9/")
    assert (code, printed["saw"]) == (1, "Connection refused")


async def test_demo_attempt_with_a_timeout_is_ended(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "_TIMEOUT_SECONDS", 0.2)
    waiting = replace(all_attempts("sb0")[0], command=("sleep", "600"))
    outcome = await waiting.make(lab.sandbox_namespace)
    assert (outcome.got_through, outcome.saw) == (False, "nothing happened")
    assert outcome.is_timed_outside
    assert 200 <= outcome.milliseconds < 60_000


def _failing(count: int) -> tuple[Attempt, ...]:
    """Return attempts that get through, and so are not refused."""
    fetching = all_attempts("sb0", "")[1]
    return tuple(
        replace(fetching, title=f"try {number}", command=("echo",), trace=Trace(protocol=number))
        for number in range(count)
    )


def test_demo_fails_with_its_first_failed_attempt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attempts, "_TIMEOUT_SECONDS", 60.0)
    monkeypatch.setattr(demo, "_REPORT_SECONDS", 0.01)
    for count, others in ((1, ""), (3, ", and 2 more failed")):
        monkeypatch.setattr(demo, "all_attempts", lambda _device, count=count: _failing(count))
        with pytest.raises(demo.DemoError) as caught:
            demo.demonstrate()
        assert str(caught.value) == (
            f"try 0 was not refused{others}: `ocsf-nft check` shows what this host lacks"
        )
        assert caught.value.exit_code == 1
        assert f"0 of {count} attempts refused and reported" in capsys.readouterr().err


@pytest.mark.kernel_log  # without NFLOG the kernel log is tried
def test_demo_needs_a_kernel_that_can_log_refused_packets(
    shim: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {**nft._ENVIRONMENT, "LD_PRELOAD": str(shim), "WITHOUT": "log"}
    monkeypatch.setattr(nft, "_ENVIRONMENT", environment)
    with pytest.raises(UnsupportedError, match=r"this kernel can't log refused packets: \w"):
        demo.demonstrate()
    assert "A sandbox is fenced" not in capsys.readouterr().err
