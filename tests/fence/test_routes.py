"""Next hops towards the networks of exceptions, as the kernel's routing tables have them."""

from __future__ import annotations

import socket
import struct
import subprocess
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import netlink, netns
from ocsf_nft.errors import FenceError
from ocsf_nft.fence import links, routes
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.kernel

_ROUTES = """
link set lo up
link add d0 type veth peer name d1
link add e0 type veth peer name e1
link set d0 up
link set d1 up
link set e0 up
link set e1 up
address add 10.0.0.2/24 dev d0
address add 10.9.0.2/24 dev e0
address add fd00::2/64 dev d0 nodad
address add fd09::2/64 dev e0 nodad
route add default via 10.0.0.1
route add 10.1.0.0/16 via 10.0.0.3
route add 10.1.2.0/24 via 10.9.0.3
route add 10.1.3.0/24 via inet6 fe80::3 dev e0
route add unreachable 10.1.4.0/24
route add 10.2.0.0/16 nexthop via 10.0.0.5 nexthop via 10.9.0.5
route add 10.3.0.0/16 via 10.0.0.7 table 77
route add fd01::/32 via fd00::3
route add fd01:2::/48 via fd09::3
route add fd02::/32 nexthop via fd00::5 nexthop via fd09::5
"""
#: A network, the links towards it, and the gateways on them.
_FOUND: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    # On the link, as a whole or in part.
    ("10.0.0.0/24", ("d0",), ()),
    ("10.0.0.64/26", ("d0",), ()),
    ("10.0.0.0/16", ("d0",), ("10.0.0.1",)),
    # Behind a router, and partly behind another.
    ("192.0.2.0/24", ("d0",), ("10.0.0.1",)),
    ("10.1.5.0/24", ("d0",), ("10.0.0.3",)),
    ("10.1.2.128/25", ("e0",), ("10.9.0.3",)),
    ("10.1.0.0/22", ("d0", "e0"), ("10.0.0.3", "10.9.0.3", "fe80::3")),
    ("10.1.4.0/24", ("d0",), ("10.0.0.3",)),
    # Several next hops, and another routing table.
    ("10.2.0.0/16", ("d0", "e0"), ("10.0.0.5", "10.9.0.5")),
    ("10.2.7.0/24", ("d0", "e0"), ("10.0.0.5", "10.9.0.5")),
    ("10.3.0.0/24", ("d0",), ("10.0.0.1", "10.0.0.7")),
    ("10.0.0.0/8", ("d0", "e0"), (
        "10.0.0.1", "10.0.0.3", "10.0.0.5", "10.0.0.7", "10.9.0.3", "10.9.0.5", "fe80::3",
    )),
    ("fd01::/16", ("d0", "e0"), ("fd00::3", "fd09::3")),
    ("fd01:2:0:1::/64", ("e0",), ("fd09::3",)),
    ("fd02::/33", ("d0", "e0"), ("fd00::5", "fd09::5")),
    ("fd09::/64", ("e0",), ()),
)  # fmt: skip


def _inside(check: Callable[[], None], batch: str) -> None:
    def work() -> None:
        subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)
        check()

    netns.in_scratch(work)


def test_survey_finds_the_next_hops_of_each_part_of_a_network() -> None:
    def check() -> None:
        for network, uplinks, gateways in _FOUND:
            found = links.survey(Namespace(), [], [ip_network(network)])
            assert found.uplinks == uplinks, network
            assert tuple(map(str, found.neighbours)) == gateways, network

    _inside(check, _ROUTES)


def test_survey_of_networks_without_a_route_has_all_links() -> None:
    def check() -> None:
        networks = [ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")]
        found = links.survey(Namespace(), [], networks)
        assert set(found.uplinks) == {"d0", "d1"}
        assert found.neighbours == ()

    _inside(check, "link add d0 type veth peer name d1\nlink set d0 up\n")


def test_too_many_routes_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in the namespace may add millions."""
    monkeypatch.setattr(routes, "_MOST_ROUTES", 300)
    batch = "link add d0 type veth peer name d1\nlink set d0 up\naddress add 10.0.0.2/24 dev d0\n"
    batch += "".join(f"route add 10.5.{each}.0/24 dev d0\n" for each in range(250))

    def check() -> None:
        survey = links.survey
        networks = [ip_network("192.0.2.0/24")]
        survey(Namespace(), [], networks)
        more = "".join(f"route add 10.6.{each}.0/24 dev d0\n" for each in range(100))
        subprocess.run(["ip", "-batch", "-"], input=more, text=True, check=True)
        with pytest.raises(FenceError, match="more than 300 routes, too many to find"):
            survey(Namespace(), [], networks)
        survey(Namespace(), [])

    _inside(check, batch)


def _route(*attributes: bytes, family: int = socket.AF_INET, length: int = 16) -> bytes:
    header = routes._RTMSG.pack(family, length, 0, 0, 254, 0, 0, routes._RTN_UNICAST, 0)
    return header + b"".join(attributes)


_TO = netlink.attribute(routes._RTA_DST, bytes((10, 9, 0, 0)))
_OUT = netlink.attribute(routes._RTA_OIF, struct.pack("=I", 2))


@pytest.mark.parametrize(
    "reply",
    [
        _route(_TO, _OUT)[:11],
        _route(_TO[:-2], _OUT, length=33),
        _route(netlink.attribute(routes._RTA_DST, b"abc"), _OUT),
        _route(_TO, netlink.attribute(routes._RTA_OIF, b"\2")),
        _route(_TO, _OUT, netlink.attribute(routes._RTA_GATEWAY, b"\1\2")),
        _route(_TO, _OUT, netlink.attribute(routes._RTA_VIA, b"\2\0\1")),
        _route(_TO, _OUT, netlink.attribute(routes._RTA_TABLE, b"")),
        # A next hop of length 0: a loop over the next hops would not end.
        _route(_TO, netlink.attribute(routes._RTA_MULTIPATH, bytes(8))),
        _route(netlink.attribute(routes._RTA_DST, bytes(16)), _OUT),
    ],
)
def test_route_that_no_kernel_sends_is_an_os_error(reply: bytes) -> None:
    with pytest.raises(OSError, match="a route in an answer of the kernel is invalid"):
        routes._entry(reply, 4)


def test_route_to_an_address_has_one_next_hop() -> None:
    address = ip_address("10.9.0.1")
    assert routes._route(_route(_TO, _OUT), address) == routes.Route(address, 2)
    with pytest.raises(OSError, match="a route in an answer of the kernel is invalid"):
        routes._route(_route(_TO), address)
