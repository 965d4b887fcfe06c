"""Targets: answers and notices of netlink. A process in the sandbox chooses rules and names."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, Final, cast

from ocsf_nft import netlink, nfnetlink, rtnetlink
from ocsf_nft.attribution import sock_diag
from ocsf_nft.errors import FenceError
from ocsf_nft.fence import routes, rule_counters, table_query
from ocsf_nft.fence.counter_elements import ElementParser
from ocsf_nft.fence.ruleset_changes import ChangeReader
from ocsf_nft.fence.spec import TableId
from tests.fuzz import parts, seeds
from tests.fuzz.target import Target, require

if TYPE_CHECKING:
    from ocsf_nft.netns import Namespace

_TABLES: Final = (TableId("inet", "ocsf_nft"), TableId("netdev", "ocsf_nft"))
_ELEMENTS: Final = 3  # NFTA_SET_ELEM_LIST_ELEMENTS
_NEW_ELEMENTS: Final = 12
_NFGENMSG_BYTES: Final = 4
_IPV4_KEY: Final = 16
_DESTINATIONS: Final = (ipaddress.ip_address("10.9.0.1"), ipaddress.ip_address("2001:db8::1"))
_MOST_DESCRIBED: Final = 4000
_NAMES: Final = (b"ocsf_nft\0", b"flows4_egress\0", b"counter\0", b"\xff\0", b"a" * 255 + b"\0")


class _Socket:
    """Netlink socket that receives one datagram, and then nothing."""

    def __init__(self, datagram: bytes) -> None:
        self._left = [datagram] * 3

    def send(self, _data: bytes) -> None:
        pass

    def recv(self, _size: int) -> bytes:
        if not self._left:
            raise TimeoutError
        return self._left.pop()

    def recvfrom(self, _size: int) -> tuple[bytes, tuple[int, int]]:
        if not self._left:
            raise BlockingIOError
        return self._left.pop(), (0, 1)


def _nftables(datagram: bytes) -> nfnetlink.Nftables:
    made = nfnetlink.Nftables.__new__(nfnetlink.Nftables)
    made.deadline, made.cookie, made.port = float("inf"), 7, 8
    made._sequence = 0
    made._socket = cast("Any", _Socket(datagram))
    return made


def _notice(data: bytes) -> None:
    reader = ChangeReader(_TABLES)
    for each in (*reader.read(memoryview(data)), *reader.take_unfinished()):
        require(len(each.changes) < _MOST_DESCRIBED, "the description of a change is long")
        require(each.generation is None or 0 <= each.generation < 1 << 32, "no generation")
    require(not reader.is_incomplete, "a transaction is unfinished after its end")


def _answer(data: bytes) -> None:
    # The first byte selects the query. The answer to each has the sequence number 1.
    kind, data = data[:1], data[1:]
    nftables = _nftables(data)
    if kind == b"t":
        found = nftables.table("inet", "ocsf_nft")
        if found is not None:
            table_query._comment(found.userdata)
    elif kind == b"g":
        nftables.generation()
    elif kind == b"c":
        rule_counters._table_counters(nftables, "inet", "ocsf_nft")
    elif kind == b"k":
        for key in table_query._keys(nftables, "inet", "ocsf_nft", "allowed4"):
            table_query._key_text(key)
    elif kind == b"e":
        reader = rule_counters.RuleReader(nftables, "inet", "ocsf_nft", "egress")
        reader._elements("flows4", 60_000)
    else:
        nftables.commit([nfnetlink.Statement(0, 0, b"")])


def _elements(data: bytes) -> None:
    payload = memoryview(data)
    fast, slow = ElementParser(_IPV4_KEY, 60_000), ElementParser(_IPV4_KEY, 60_000)
    found = fast.parse(payload)
    require(found == slow.parse_one_by_one(payload), "the two parsers of elements differ")
    require(fast.parse(payload) == found, "the second reading differs from the first")


def _link(data: bytes) -> None:
    rtnetlink.link(memoryview(data))


def _route(data: bytes) -> None:
    for destination in _DESTINATIONS:
        routes._entry(data, destination.version)
        routes._route(data, destination)


def _socket(data: bytes) -> None:
    found = sock_diag._inet_socket(memoryview(data))
    require(0 <= found.local_port <= 0xFFFF and 0 <= found.remote_port <= 0xFFFF, "no ports")


def _closed_sockets(data: bytes) -> None:
    listener = sock_diag.ClosedSockets(cast("Namespace", None))
    listener._socket = cast("Any", _Socket(data))
    listener.read()


def _answers() -> list[bytes]:
    return [
        kind + answer
        for kind in (b"t", b"g", b"c", b"k", b"e", b"b")
        for answer in map(_numbered, seeds.recorded("netlink nft answer"))
    ]


def _numbered(datagram: bytes) -> bytes:
    """Return a datagram whose messages have the sequence number 1, as the answers to a query."""
    return b"".join(
        netlink.message(message.kind, message.flags, bytes(message.payload), 1)
        + bytes(-len(message.payload) % 4)
        for message in netlink.messages_with_headers(memoryview(datagram))
    )


def _element_lists() -> list[bytes]:
    lists = [
        bytes(value)
        for datagram in seeds.recorded("netlink nft answer")
        for kind, payload in netlink.messages(memoryview(datagram))
        if kind == nfnetlink.SUBSYSTEM | _NEW_ELEMENTS
        for number, value in netlink.attributes(payload[_NFGENMSG_BYTES:])
        if number == _ELEMENTS
    ]
    return [*lists, *(each * 3 for each in lists)]


TARGETS: Final = (
    Target(
        name="nft-notice",
        parse=_notice,
        seeds=seeds.of_kind("netlink nft notice"),
        parts=parts.netlink_messages,
        hostile=_NAMES,
        limit=16_384,
        share=8,
    ),
    Target(
        name="nft-answer",
        parse=_answer,
        seeds=_answers,
        parts=lambda data: parts.netlink_messages(data, at=1),
        hostile=_NAMES,
        documented=(
            OSError,
            FenceError,
            nfnetlink.InterruptedDumpError,
            rule_counters.ReplacedError,
            rule_counters.CrowdedError,
        ),
        limit=8192,
        share=8,
    ),
    Target(
        name="set-elements",
        parse=_elements,
        seeds=_element_lists,
        parts=parts.netlink_attributes,
        hostile=_NAMES,
        limit=16_384,
        share=6,
    ),
    Target(
        name="link",
        parse=_link,
        seeds=seeds.of_kind("netlink link"),
        parts=lambda data: parts.netlink_attributes(data, 16),
        hostile=_NAMES,
        limit=8192,
        share=4,
    ),
    Target(
        name="route",
        parse=_route,
        seeds=seeds.of_kind("netlink route"),
        parts=lambda data: parts.netlink_attributes(data, 12),
        documented=(OSError,),
        limit=4096,
        share=6,
    ),
    Target(
        name="socket",
        parse=_socket,
        seeds=seeds.of_kind("netlink socket"),
        parts=lambda data: parts.netlink_attributes(data, 72),
        documented=(OSError,),
        limit=2048,
        share=6,
    ),
    Target(
        name="closed-sockets",
        parse=_closed_sockets,
        seeds=seeds.of_kind("netlink closed socket"),
        parts=parts.netlink_messages,
        limit=4096,
        share=4,
    ),
)
