"""Limits of a reading of a fence's surroundings, which one process may fill with objects."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import subprocess
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import netlink, netns, privileges
from ocsf_nft.fence.surroundings import read_snapshot, traffic_control
from ocsf_nft.fence.surroundings.facts import Snapshot
from ocsf_nft.fence.surroundings.read_snapshot import Subject
from tests.kernel import net_programs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.surroundings.facts import FilterFact

pytestmark = pytest.mark.kernel

_FIRST = ipaddress.ip_address("10.1.0.0")
_GETNEIGH, _NEWTFILTER, _GETTFILTER = 30, 44, 46
_MOST_INSTRUCTIONS = 4_096
_SUBJECT = Subject(
    own_tables=(), uplinks=("d0",), neighbours=frozenset([ipaddress.ip_address("10.0.0.1")])
)


def _load(program: str, lines: Iterator[str]) -> None:
    text = "\n".join(lines)
    subprocess.run([program, "-batch", "-"], input=text, text=True, check=True)


def _read_counted() -> tuple[Snapshot, Counter[int], float]:
    """Return a snapshot, the number of the kernel's replies of each kind, and the time in s."""
    asked: Counter[int] = Counter()
    replies = netlink.replies

    def counted(protocol: int, kind: int, payload: bytes, *, dump: bool = False) -> Iterator[bytes]:
        for reply in replies(protocol, kind, payload, dump=dump):
            asked[kind] += 1
            yield reply

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(netlink, "replies", counted)
        started = time.thread_time()
        found = read_snapshot.read(_SUBJECT)
        return found, asked, time.thread_time() - started


def test_number_of_neighbours_that_are_read_is_limited() -> None:
    def check() -> tuple[Snapshot, Counter[int], float]:
        subprocess.run(["ip", "link", "add", "d0", "type", "veth"], check=True)
        subprocess.run(["ip", "link", "set", "d0", "up"], check=True)
        entries = (
            f"neigh add {_FIRST + number} lladdr 02:00:00:00:00:01 dev d0 nud permanent"
            for number in range(6_000)
        )
        _load("ip", entries)
        return _read_counted()

    found, asked, seconds = netns.in_scratch(check)
    assert found.incomplete == ("neighbours",)
    assert asked[_GETNEIGH] <= 4_097
    assert seconds < 1


def test_number_of_filters_that_are_read_is_limited() -> None:
    def check() -> tuple[Snapshot, Counter[int], float]:
        for name in ("d0", "d1", "d2"):
            subprocess.run(["ip", "link", "add", name, "type", "veth"], check=True)
            subprocess.run(["tc", "qdisc", "add", "dev", name, "clsact"], check=True)
        filters = (
            f"filter add dev {name} egress protocol ip prio 1 u32 match u32 {number} 0xffffffff"
            for name in ("d0", "d1", "d2")
            for number in range(700)
        )
        _load("tc", filters)
        return _read_counted()

    found, asked, _ = netns.in_scratch(check)
    assert found.incomplete == ("tc filters",)
    assert asked[_GETTFILTER] <= 1_001
    assert {each.link for each in found.filters} >= {"d0"}


@pytest.mark.parametrize(
    ("code", "incomplete"),
    [
        (errno.ENOENT, ()), (errno.ENODEV, ()), (errno.EINVAL, ()), (errno.EOPNOTSUPP, ()),
        (errno.EMSGSIZE, ("tc filters",)),
    ],
)  # fmt: skip
def test_unreadable_filters_are_reported(
    monkeypatch: pytest.MonkeyPatch, code: int, incomplete: tuple[str, ...]
) -> None:
    def refused(*_: object) -> list[FilterFact]:
        raise OSError(code, os.strerror(code))

    def check() -> Snapshot:
        subprocess.run(["tc", "qdisc", "add", "dev", "lo", "clsact"], check=True)
        return read_snapshot.read(_SUBJECT)

    monkeypatch.setattr(traffic_control, "filters", refused)
    assert netns.in_scratch(check).incomplete == incomplete


def test_programs_that_cannot_be_listed_are_reported() -> None:
    def check() -> Snapshot:
        privileges.keep_only(frozenset())
        return read_snapshot.read_polled(_SUBJECT, Snapshot())

    assert netns.in_scratch(check).incomplete == ("BPF programs",)


def test_xdp_program_of_a_link_is_found_without_a_notice() -> None:
    def check() -> Snapshot:
        before = read_snapshot.read(_SUBJECT)
        assert before.programs == ()
        with net_programs.linked_xdp("lo"):
            return read_snapshot.read_polled(_SUBJECT, before)

    (found,) = netns.in_scratch(check).programs
    assert (found.link, found.hook) == ("lo", "xdp")


def test_filter_without_room_in_a_message_is_reported() -> None:
    """The kernel ends the list there with an error: it hides all filters after it."""

    def check() -> Snapshot:
        subprocess.run(["tc", "qdisc", "add", "dev", "lo", "clsact"], check=True)
        program = bytes(8) * (_MOST_INSTRUCTIONS - 1) + struct.pack("=HBBI", 6, 0, 0, 0)
        options = netlink.attribute(4, struct.pack("=H", _MOST_INSTRUCTIONS))
        options += netlink.attribute(5, program)
        priority_and_protocol = 1 << 16 | socket.htons(3)
        body = struct.pack("=BxxxiIII", 0, 1, 0, 0xFFFFFFF3, priority_and_protocol)
        body += netlink.attribute(1, b"bpf\0") + netlink.attribute(2, options)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_ROUTE) as sock:
            sock.send(netlink.message(_NEWTFILTER, 0x605, body, 1))
            ((_, answer),) = netlink.messages(memoryview(sock.recv(1 << 17)))
            netlink.raise_for_error(answer)
        return read_snapshot.read(_SUBJECT)

    assert netns.in_scratch(check).incomplete == ("tc filters",)
