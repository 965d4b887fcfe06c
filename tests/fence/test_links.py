"""Links and routes of a namespace, as the kernel returns them for an address."""

from __future__ import annotations

import errno
import gc
import os
import socket
import subprocess
from ipaddress import ip_address, ip_network
from typing import Any, NoReturn

import pytest

from ocsf_nft import netlink, netns, rtnetlink
from ocsf_nft.errors import AbsentError, FenceError, UsageError
from ocsf_nft.fence import links, routes
from ocsf_nft.netns import Namespace
from tests.descriptors import open_descriptors

pytestmark = pytest.mark.kernel

_LINKS = """
link set lo up
link add d0 type veth peer name d1
link add br0 type bridge
link set d1 master br0
address add 10.0.0.2/24 dev d0
address add fd00::2/64 dev d0 nodad
link set d0 up
link set d1 up
route add 10.1.0.0/24 via 10.0.0.1
route add 10.2.0.0/24 via inet6 fe80::1 dev d0
route add fd01::/64 via fd00::1
route add unreachable 10.3.0.0/24
route add prohibit fd03::/64
"""
#: An address, the links towards it (none means all links), and the neighbours on them.
_ROUTES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("10.0.0.1", ("d0",), ("10.0.0.1",)),
    ("10.1.0.7", ("d0",), ("10.0.0.1", "10.1.0.7")),
    ("10.2.0.7", ("d0",), ("10.2.0.7", "fe80::1")),
    ("fd00::1", ("d0",), ("fd00::1",)),
    ("fd01::7", ("d0",), ("fd00::1", "fd01::7")),
    # An address of the namespace itself.
    ("10.0.0.2", (), ()),
    ("fd00::2", (), ()),
    # No route.
    ("192.0.2.1", (), ("192.0.2.1",)),
    ("2001:db8::1", (), ("2001:db8::1",)),
    ("10.3.0.1", (), ("10.3.0.1",)),
    ("fd03::1", (), ("fd03::1",)),
)


def _add_links() -> None:
    subprocess.run(["ip", "-batch", "-"], input=_LINKS, text=True, check=True)
    # A worker of the kernel adds the route to an own IPv6 address after the address.
    table = ["ip", "-6", "route", "show", "table", "local", "fd00::2"]
    for _ in range(1000):
        if subprocess.run(table, capture_output=True, check=True).stdout:
            return
    pytest.fail("no local route to fd00::2")


def test_survey_returns_the_links_and_neighbours_towards_each_address() -> None:
    def check() -> None:
        _add_links()
        for address, uplinks, neighbours in _ROUTES:
            found = links.survey(Namespace(), [ip_address(address)])
            assert set(found.links) == {"d0", "d1", "br0"}
            assert found.uplinks == (uplinks or found.links), address
            assert tuple(map(str, found.neighbours)) == neighbours
        both = links.survey(Namespace(), [ip_address("fd00::1"), ip_address("10.1.0.7")])
        assert list(map(str, both.neighbours)) == ["10.0.0.1", "10.1.0.7", "fd00::1"]
        assert links.names() == both.links

    netns.in_scratch(check)


def test_survey_of_a_device_accepts_a_routed_one_alone() -> None:
    def check() -> None:
        _add_links()
        (d0,) = (link.ifindex for link in rtnetlink.links() if link.name == "d0")
        found = links.survey_device(Namespace(), "d0")
        assert (found.links, found.ifindex) == (("d0",), d0)
        for device, kind, sentence in (
            ("tap0", AbsentError, "there is no interface tap0 in this network namespace"),
            ("lo", UsageError, "is loopback: name the VM's TAP device"),
            ("d1", FenceError, "is a port of a bridge, a bond or a VRF"),
        ):
            with pytest.raises(kind, match=sentence):
                links.survey_device(Namespace(), device)

    netns.in_scratch(check)


def test_survey_names_the_cause_of_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[OSError] = [OSError(errno.EPERM, os.strerror(errno.EPERM)), TimeoutError("late")]

    def fail(*_: object, **__: object) -> NoReturn:
        raise errors.pop(0)

    monkeypatch.setattr(netlink, "request", fail)
    with pytest.raises(FenceError, match="links and routes: Operation not permitted"):
        links.names()
    with pytest.raises(FenceError, match="links and routes: late"):
        links.survey(Namespace(), [ip_address("10.0.0.1")])
    errors.append(OSError(errno.EPERM, "not permitted"))
    with pytest.raises(OSError, match="not permitted"):
        routes.to_address(ip_address("10.0.0.1"))


def test_only_the_first_addresses_and_neighbours_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process in the namespace may add millions."""
    sockets: list[Counting] = []

    class Counting(socket.socket):
        received = 0

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            sockets.append(self)

        def recvfrom(self, *arguments: Any) -> Any:
            self.received += 1
            return super().recvfrom(*arguments)

    def check() -> None:
        _add_links()
        batch = [
            line
            for number in range(5_000)
            for address in [f"10.9.{number >> 8}.{number & 255}"]
            for line in (
                f"address add {address}/32 dev d0",
                f"neighbour add {address} lladdr 02:00:00:00:00:01 nud permanent dev d0",
            )
        ]
        subprocess.run(["ip", "-batch", "-"], input="\n".join(batch), text=True, check=True)
        monkeypatch.setattr(socket, "socket", Counting)
        assert len(list(rtnetlink.neighbours(1_000))) == 1_000
        assert len(list(rtnetlink.addresses(1_000))) == 1_000
        assert len(links._addresses()) == 500
        assert [each.fileno() for each in sockets] == [-1] * 3
        assert max(each.received for each in sockets) < 20
        # A reader that stops earlier closes the socket too.
        for _ in zip(range(3), rtnetlink.neighbours(), strict=False):
            pass
        gc.collect()
        assert sockets[-1].fileno() == -1
        assert len(list(rtnetlink.neighbours())) >= 5_000
        monkeypatch.undo()

    netns.in_scratch(check)


def test_too_many_routes_leave_no_open_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        _add_links()
        monkeypatch.setattr(routes, "_MOST_ROUTES", 1)
        opened = open_descriptors()
        with pytest.raises(FenceError, match="more than 1 routes") as caught:
            routes.to_networks([ip_network("10.1.0.0/16")])
        assert open_descriptors() == opened
        assert caught.value.__traceback__ is not None  # it has the frames that read

    netns.in_scratch(check)
