"""Netlink connection to nf_tables: queries, transactions and notifications of changes.

The message format is described in ``include/uapi/linux/netfilter/nfnetlink.h``. All functions need
CAP_NET_ADMIN over the network namespace in which the socket was opened.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from ocsf_nft import netlink

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NFPROTO_INET: Final = 1
NFPROTO_NETDEV: Final = 5
#: Families of a fence's tables.
FAMILIES: Final = {"inet": NFPROTO_INET, "netdev": NFPROTO_NETDEV}

SUBSYSTEM: Final = 10 << 8
NFNL_MSG_BATCH_BEGIN: Final = 16
NFNL_MSG_BATCH_END: Final = 17
_NFNL_BATCH_GENID: Final = 1
_NFT_MSG_GETTABLE: Final = 1
_NFTA_TABLE_NAME: Final = 1
_NFTA_TABLE_FLAGS: Final = 2
_NFTA_TABLE_USERDATA: Final = 6
NFT_TABLE_F_DORMANT: Final = 0x1
NFT_TABLE_F_OWNER: Final = 0x2
NFT_TABLE_F_PERSIST: Final = 0x4
_NFT_MSG_GETGEN: Final = 16
_NFTA_GEN_ID: Final = 1
_NFNLGRP_NFTABLES: Final = 7
#: A transaction is one message to the kernel: up to some tens of thousands of rules, or exceptions.
_BATCH_BYTES: Final = 32 << 20
#: Not more: the notices of a transaction of a million rules need not be read completely.
_NOTICE_BYTES: Final = 1 << 20
_BATCH: Final = struct.pack("!BBH", 0, 0, 10)  # the resource id is the subsystem
_HEADER: Final = struct.Struct("!BBH")  # family, version, resource id
#: The kernel fills at most 32 KiB at once, and only if the receive buffer is that large.
_RECEIVE_BYTES: Final = 1 << 16
#: Maximum time for an answer of the kernel.
_TIMEOUT_SECONDS: Final = 5.0


class InterruptedDumpError(Exception):
    """Error: a list of nf_tables objects changed while the kernel sent the list."""


_MAX_SEQUENCE: Final = 0xFFFFFFFF


class Statement(NamedTuple):
    """One message of an nf_tables transaction; ``kind`` is the message type.

    ``payload`` has the nfnetlink header and the attributes.
    """

    kind: int
    flags: int
    payload: bytes


class Query(NamedTuple):
    """Request for one nf_tables object.

    ``kind`` is the type of the request (``NFT_MSG_GET…``). ``family`` is the family of the object's
    table (``NFPROTO_…``). ``attributes`` identify the object.
    """

    kind: int
    family: int
    attributes: bytes


class Table(NamedTuple):
    """Flags and comment of an nftables table."""

    #: True if the table gets no packets.
    is_dormant: bool
    #: True if only the netlink socket that owns the table can change the table.
    is_exclusive: bool
    #: True if the table remains after its owner socket is closed (Linux 6.9).
    is_persistent: bool
    #: Comment of the table, as nft encodes it.
    userdata: bytes


class Generation(NamedTuple):
    """State of the ruleset in a network namespace; ``number`` grows with each transaction.

    ``cookie`` identifies the namespace: the kernel never uses it again before a reboot.
    """

    cookie: int
    number: int

    def after_one(self) -> Generation:
        """Return the generation after one transaction more."""
        return self._replace(number=self.number + 1)


class Nftables:
    """Netlink socket to nf_tables, in the network namespace of the thread that creates it.

    Not thread-safe. If the kernel refuses a request, OSError is raised, and the socket remains
    usable. Close the socket after any other exception, such as TimeoutError, and after an
    unfinished :meth:`dump`. In these cases, the answer may still arrive.
    """

    def __init__(self) -> None:
        #: Time of ``time.monotonic()`` after which all requests raise TimeoutError.
        self.deadline = float("inf")
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER)
        try:
            # Connected to the kernel's port, so that no other process can send to this socket or
            # fill its buffer. Otherwise a process with CAP_NET_ADMIN in the namespace could
            # (af_netlink.c).
            self._socket.connect((0, 0))
            netlink.set_buffer_size(self._socket, socket.SO_SNDBUF, _BATCH_BYTES)
            # The kernel answers each rejected statement, and no answer may be dropped.
            netlink.set_buffer_size(self._socket, socket.SO_RCVBUF, _BATCH_BYTES)
            self._socket.settimeout(_TIMEOUT_SECONDS)
            #: Cookie of the network namespace.
            self.cookie = netlink.namespace_cookie(self._socket)
            #: Port of this socket in the notices about its own changes.
            self.port: int = self._socket.getsockname()[0]
            # Detect a missing nf_tables, or a missing privilege, at once.
            self.query(_NFT_MSG_GETGEN, 0, b"")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        """Return this object: its socket is already open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the socket."""
        self.close()

    def close(self) -> None:
        """Close the socket; may be called several times."""
        self._socket.close()

    def query(self, kind: int, family: int, attributes: bytes) -> dict[int, bytes]:
        """Request one nf_tables object; return its netlink attributes by type.

        The arguments are those of a :class:`Query`. Raises FileNotFoundError if the object does not
        exist.
        """
        (found,) = self.queries([Query(kind, family, attributes)])
        return found

    def queries(self, requests: Sequence[Query]) -> list[dict[int, bytes]]:
        """Request some nf_tables objects in one send; return the netlink attributes of each.

        The kernel handles the requests in their order. Raises FileNotFoundError if an object does
        not exist.
        """
        first = self._take_numbers(len(requests))
        self._socket.send(
            b"".join(
                netlink.message(
                    SUBSYSTEM | each.kind,
                    netlink.NLM_F_REQUEST,
                    _HEADER.pack(each.family, 0, 0) + each.attributes,
                    number,
                )
                for number, each in enumerate(requests, first)
            )
        )
        found: dict[int, dict[int, bytes]] = {}
        refusal: OSError | None = None
        for answer in self._answers(first, len(requests)):
            number = answer.sequence - first
            found[number] = {}
            if answer.kind != netlink.NLMSG_ERROR:
                attributes = netlink.attributes(answer.payload[_HEADER.size :])
                found[number] = {kind: bytes(value) for kind, value in attributes}
            else:
                refusal = refusal or netlink.error_of(answer.payload)
            if len(found) == len(requests):
                break
        if refusal is not None:
            raise refusal
        return [found[number] for number in range(len(requests))]

    def dump(self, kind: int, family: int, attributes: bytes) -> Iterator[memoryview]:
        """Request a list of nf_tables objects; yield each message's netlink attributes.

        The arguments are those of :meth:`query`. Raises InterruptedDumpError at the end if the list
        changed while the kernel sent it.
        """
        flags = netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP
        # If the caller does not read to the end, the rest of the answer could arrive after the next
        # request. The same applies after a timeout.
        number = self._take_numbers(1)
        payload = _HEADER.pack(family, 0, 0) + attributes
        self._socket.send(netlink.message(SUBSYSTEM | kind, flags, payload, number))
        seen = 0
        for answer in self._answers(number, 1):
            seen |= answer.flags
            if answer.kind in {netlink.NLMSG_DONE, netlink.NLMSG_ERROR}:
                netlink.raise_for_error(answer.payload)
                if seen & netlink.NLM_F_DUMP_INTR:  # objects may be missing or repeated
                    raise InterruptedDumpError
                return
            yield answer.payload[_HEADER.size :]

    def generation(self) -> int:
        """Return the ruleset's generation: a number that each transaction increments."""
        found = self.query(_NFT_MSG_GETGEN, 0, b"").get(_NFTA_GEN_ID)
        if found is None:
            raise OSError(errno.EBADMSG, "the kernel's answer has no generation of the ruleset")
        return int.from_bytes(found, "big")

    def table(self, family: str, name: str) -> Table | None:
        """Return the properties of an nftables table; None if there is no table with that name."""
        named = netlink.attribute(_NFTA_TABLE_NAME, name.encode() + b"\0")
        try:
            found = self.query(_NFT_MSG_GETTABLE, FAMILIES[family], named)
        except FileNotFoundError:
            return None
        flags = int.from_bytes(found.get(_NFTA_TABLE_FLAGS, b""), "big")
        return Table(
            is_dormant=bool(flags & NFT_TABLE_F_DORMANT),
            is_exclusive=bool(flags & NFT_TABLE_F_OWNER),
            is_persistent=bool(flags & NFT_TABLE_F_PERSIST),
            userdata=found.get(_NFTA_TABLE_USERDATA, b""),
        )

    def commit(self, statements: Sequence[Statement], generation: int | None = None) -> None:
        """Execute all statements in one transaction of nf_tables: all of them or none.

        ``generation`` is the required generation number of the ruleset; None allows any. Raises
        OSError with ERESTART if the ruleset has another generation. For rejected statements, raises
        OSError with the kernel's error for the first of them.
        """
        first = self._take_numbers(len(statements) + 2)
        last = first + len(statements)
        head = _BATCH
        if generation is not None:
            head += netlink.attribute(_NFNL_BATCH_GENID, struct.pack("!I", generation))
        messages = [netlink.message(NFNL_MSG_BATCH_BEGIN, netlink.NLM_F_REQUEST, head, first)]
        for number, (kind, flags, payload) in enumerate(statements, first + 1):
            # The kernel reports each rejected statement anyway, in order; an ACK is requested only
            # for the last.
            acknowledge = netlink.NLM_F_ACK if number == last else 0
            message_flags = flags | netlink.NLM_F_REQUEST | acknowledge
            messages.append(netlink.message(SUBSYSTEM | kind, message_flags, payload, number))
        end = netlink.message(NFNL_MSG_BATCH_END, netlink.NLM_F_REQUEST, _BATCH, last + 1)
        self._socket.send(b"".join((*messages, end)))
        refusal: OSError | None = None
        for answer in self._answers(first, len(statements) + 1):
            if answer.kind == netlink.NLMSG_ERROR:
                refusal = refusal or netlink.error_of(answer.payload)
            if answer.sequence == last or (refusal and answer.sequence == first):
                break
        if refusal is not None:
            raise refusal

    def _take_numbers(self, count: int) -> int:
        """Return the first of the numbers of ``count`` new requests."""
        if self._sequence + count > _MAX_SEQUENCE:
            self._sequence = 0
        self._sequence += count
        return self._sequence - count + 1

    def _answers(self, first: int, count: int) -> Iterator[netlink.Message]:
        """Yield the kernel's answers to ``count`` requests from the number ``first`` on."""
        while True:
            if time.monotonic() > self.deadline:
                raise TimeoutError("timed out")
            datagram = memoryview(self._socket.recv(_RECEIVE_BYTES))
            for message in netlink.messages_with_headers(datagram):
                if first <= message.sequence < first + count:
                    yield message


def subscribe() -> socket.socket:
    """Return a socket that receives a notice for each change of nftables.

    The changes are those in the calling thread's network namespace: see :func:`netlink.subscribe`.
    """
    group = 1 << _NFNLGRP_NFTABLES - 1
    return netlink.subscribe(netlink.NETLINK_NETFILTER, group, _NOTICE_BYTES)
