from __future__ import annotations

import struct

import pytest

from ocsf_nft import netlink
from ocsf_nft.fence.surroundings.notices import RouteNotices
from ocsf_nft.netlink import Message

_NEWLINK, _DELLINK, _NEWADDR, _NEWROUTE, _NEWRULE, _NEWQDISC = 16, 17, 20, 24, 32, 36


def _message(
    kind: int, ifindex: int, attributes: bytes = b"", *, port: int = 0, family: int = 0
) -> Message:
    payload = struct.pack("=BxHiII", family, 1, ifindex, 0, 0) + attributes
    return Message(kind, 0, 0, port, memoryview(payload))


def test_notices_have_the_port_of_their_only_sender_until_the_check() -> None:
    notices = RouteNotices()
    notices.take(_message(_NEWQDISC, 3, port=42))
    notices.take(_message(_NEWQDISC, 3, port=42))
    notices.take(_message(_NEWRULE, 0, port=43))
    assert (notices.port("tc", 3), notices.port("tc", 4), notices.port("rule")) == (42, None, 43)
    assert (notices.has_news, notices.has_links) == (True, False)
    notices.clear()
    assert (notices.has_news, notices.has_links) == (False, False)
    assert notices.port("tc", 3) is None


@pytest.mark.parametrize("ports", [(41, 42), (41, 42, 41), (41, 0), (0, 41)])
def test_port_of_several_senders_is_unknown(ports: tuple[int, ...]) -> None:
    """The kernel itself, and an ioctl, have the port 0."""
    notices = RouteNotices()
    for port in ports:
        notices.take(_message(_NEWROUTE, 0, port=port))
    assert notices.port("route") is None


@pytest.mark.parametrize(("kind", "ifindex"), [(_NEWLINK, 3), (_NEWRULE, 0)])
def test_port_of_a_route_is_unknown_if_another_sender_changes_what_routes_depend_on(
    kind: int, ifindex: int
) -> None:
    notices = RouteNotices()
    notices.take(_message(_NEWROUTE, 0, port=41))
    notices.take(_message(_NEWQDISC, 3, port=42))
    assert notices.port("route") == 41
    notices.take(_message(kind, ifindex, port=41))
    assert notices.port("route") == 41
    notices.take(_message(kind, ifindex + 1, port=42))
    assert notices.port("route") is None


def test_port_is_unknown_after_dropped_notices() -> None:
    notices = RouteNotices()
    notices.take(_message(_NEWQDISC, 3, port=41))
    notices.mark_dropped()
    assert notices.port("tc", 3) is None
    notices.clear()
    notices.take(_message(_NEWQDISC, 3, port=41))
    assert notices.port("tc", 3) == 41
    for ifindex in range(100):
        notices.take(_message(_NEWQDISC, ifindex, port=41))
    assert notices.port("tc", 3) is None


@pytest.mark.parametrize("kind", [_NEWLINK, _NEWROUTE])
def test_notices_about_links_and_routes_need_a_check_of_the_fence(kind: int) -> None:
    notices = RouteNotices()
    notices.take(_message(kind, 3))
    assert notices.has_links


def test_notices_about_addresses_need_no_check() -> None:
    notices = RouteNotices()
    notices.take(_message(_NEWADDR, 3))
    assert not notices.has_news


def _moved(ifindex: int) -> Message:
    return _message(_DELLINK, ifindex, netlink.attribute(45, struct.pack("=i", 7)))


def test_notices_distinguish_deleted_and_moved_uplinks() -> None:
    notices = RouteNotices()
    notices.uplinks = frozenset({3, 4, 5})
    notices.take(_message(_DELLINK, 3))
    notices.take(_moved(4))
    notices.take(_message(_DELLINK, 5, family=7))  # it left a bridge
    assert (notices.deleted, notices.moved) == ({3}, {4: 7})
    notices.take(_message(_NEWLINK, 3))
    notices.take(_message(_NEWLINK, 4))
    assert (notices.deleted, notices.moved) == (set(), {})


def test_uplink_is_noted_after_any_number_of_other_links() -> None:
    notices = RouteNotices()
    notices.uplinks = frozenset({3, 4})
    for ifindex in range(10, 300):
        notices.take(_message(_DELLINK, ifindex))
        notices.take(_moved(ifindex))
    notices.take(_message(_DELLINK, 3))
    notices.take(_moved(4))
    assert notices.deleted == {3}
    assert notices.moved[4] == 7


def test_notices_have_the_links_that_were_moved() -> None:
    notices = RouteNotices()
    name = netlink.attribute(3, b"v0\0") + netlink.attribute(5, struct.pack("=i", 9))
    notices.take(_message(_DELLINK, 4, name + netlink.attribute(45, struct.pack("=i", 7))))
    ((link, target),) = ((each.link, each.target) for each in notices.moves)
    assert (link.ifindex, link.name, link.peer_ifindex, link.peer_nsid) == (4, "v0", 9, None)
    assert target == 7
    for ifindex in range(10_000):
        moved = netlink.attribute(3, b"v0\0") + netlink.attribute(45, struct.pack("=i", 7))
        notices.take(_message(_DELLINK, ifindex, moved))
    assert len(notices.moves) <= 1_000


def test_notices_of_a_flood_are_bounded() -> None:
    notices = RouteNotices()
    for ifindex in range(10_000):
        notices.take(_message(_NEWQDISC, ifindex, port=ifindex + 1))
        notices.take(_message(_DELLINK, ifindex))
        notices.take(_moved(ifindex))
    assert max(map(len, (notices._ports, notices.deleted, notices.moved))) <= 64


def test_truncated_notice_counts_as_news() -> None:
    notices = RouteNotices()
    notices.take(Message(_NEWQDISC, 0, 0, 5, memoryview(b"\0")))
    assert notices.has_news
