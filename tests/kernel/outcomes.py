"""Verdicts on packets, read from the counters of a fence and of observers behind it."""

from __future__ import annotations

import errno
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from ocsf_nft import netlink, nfnetlink
from ocsf_nft.flow import counter_suffix
from ocsf_nft.nfnetlink import Nftables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ocsf_nft.netns import Namespace

#: A named counter: the family and the name of its table, and its own name.
Counter: TypeAlias = tuple[str, str, str]

SO_MARK: Final = 36  # include/uapi/asm-generic/socket.h
_NFT_MSG_GETOBJ: Final = 19
_WRONG_AT_MOST: Final = 3
#: The longest time until a counter shows a packet, and then until another counter shows it, on a
#: busy machine.
_SECONDS: Final = 20.0
_SETTLED_SECONDS: Final = 10.0
_QUIET_SECONDS: Final = 20.0


@dataclass(frozen=True)
class Case:
    """A packet and its expected verdict.

    ``expected`` names the rules that count it. It has "out", "in" or (on loopback) "loop" for an
    accepted packet. It has "reset" or "error" for a packet that the fence answers.
    """

    name: str
    send: Callable[[], None]
    expected: str


class Outcomes:
    """The named counters of a namespace that show the verdict on a packet."""

    def __init__(self, namespace: Namespace, counted: Mapping[str, Counter]) -> None:
        self._counted = counted
        self._nftables = namespace.call(Nftables)

    def close(self) -> None:
        self._nftables.close()

    def outcome(self, send: Callable[[], None], expected: str = "") -> str:
        """Send, and return the labels of the counters that grew, once for each packet.

        Wait for the expected labels. Without expected labels, wait until the labels stay the same.
        """
        before = self.counts()
        send()
        found, end, is_over = "", time.monotonic() + _SECONDS, False
        while not is_over:
            is_over = time.monotonic() >= end  # there is one more reading
            after = self.counts()
            names = (name for name, count in after.items() for _ in range(count - before[name]))
            was, found = found, " ".join(names)
            if found and found == (expected or was):
                break
            if found and not was:
                end = min(end, time.monotonic() + _SETTLED_SECONDS)
            time.sleep(0.001)
        return found

    def wrong(self, cases: Iterable[Case]) -> dict[str, str]:
        """Return the first verdicts that differ from the expected ones."""
        found: dict[str, str] = {}
        for case in cases:
            outcome = self.outcome(case.send, case.expected)
            if outcome != case.expected:
                found[case.name] = f"{outcome or 'nothing'}, not {case.expected}"
                if len(found) == _WRONG_AT_MOST:
                    break
        return found

    def quiet(self) -> None:
        """Wait until the kernel sends no more packets of its own on new links."""
        before, since = self.counts(), time.monotonic()
        end = since + _QUIET_SECONDS
        while time.monotonic() - since < 0.1:
            assert since < end, before
            time.sleep(0.01)
            if (after := self.counts()) != before:
                before, since = after, time.monotonic()

    def counts(self) -> dict[str, int]:
        """Return the packets of each counter."""
        return {
            label: self._count(family, table, counter)
            for label, (family, table, counter) in self._counted.items()
        }

    def _count(self, family: str, table: str, counter: str) -> int:
        asked = b"".join(
            netlink.attribute(kind, value)
            for kind, value in (
                (1, table.encode() + b"\0"), (2, counter.encode() + b"\0"),
                (3, struct.pack("!I", 1)),  # NFT_OBJECT_COUNTER
            )
        )  # fmt: skip
        found = self._nftables.query(_NFT_MSG_GETOBJ, nfnetlink.FAMILIES[family], asked)
        data = dict(netlink.attributes(memoryview(found[4])))
        return int.from_bytes(bytes(data[2]), "big")


def send_frame(frame: bytes, device: str, mark: int = 0) -> None:
    """Send a frame from the calling thread's namespace. A rule may refuse it."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        sock.bind((device, 0))
        try:
            sock.sendto(frame, (device, int.from_bytes(frame[12:14], "big")))
        except OSError as error:
            # The output hook answers with EPERM, the egress hook of a device with ENOBUFS.
            if error.errno not in {errno.EPERM, errno.ENOBUFS}:
                raise


def take_any_source() -> None:
    """Let the calling thread's namespace accept packets from any source on any link.

    A new namespace inherits the host's reverse path filter.
    """
    for scope in Path("/proc/sys/net/ipv4/conf").iterdir():
        for name in ("rp_filter", "accept_local", "route_localnet"):
            (scope / name).write_text("0", encoding="ascii")


def mac_of(device: str) -> bytes:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((device, 0))
        address: bytes = sock.getsockname()[4]
        return address


def of_mode(counted: Mapping[str, Counter], *, is_permissive: bool) -> Mapping[str, Counter]:
    """Return the counters under their names in this mode of the fence."""
    return {
        label: (family, table, name)
        if table == "observer"
        else (family, table, counter_suffix(name, is_permissive=is_permissive))
        for label, (family, table, name) in counted.items()
    }
