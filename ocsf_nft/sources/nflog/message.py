"""Decoder of an NFLOG message from the kernel (NFULNL_MSG_PACKET) to a Record.

The payload of the message is a ``nfgenmsg`` header, followed by attributes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from ocsf_nft import netlink
from ocsf_nft.record import Origin, Reject
from ocsf_nft.sources.nflog import line as nflog_line
from ocsf_nft.sources.nflog.datagram import Datagram, Interface, record
from ocsf_nft.sources.packet_fields import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ocsf_nft.record import Record

# Attributes (include/uapi/linux/netfilter/nfnetlink_log.h); all numbers in them are in network byte
# order. net/netfilter/nfnetlink_log.c decides which attributes the kernel sends.
NFULA_PACKET_HDR: Final = 1
NFULA_MARK: Final = 2
NFULA_TIMESTAMP: Final = 3
NFULA_IFINDEX_INDEV: Final = 4
NFULA_IFINDEX_OUTDEV: Final = 5
NFULA_IFINDEX_PHYSINDEV: Final = 6
NFULA_IFINDEX_PHYSOUTDEV: Final = 7
NFULA_HWADDR: Final = 8
NFULA_PAYLOAD: Final = 9
NFULA_PREFIX: Final = 10
NFULA_UID: Final = 11
NFULA_SEQ: Final = 12
NFULA_SEQ_GLOBAL: Final = 13
NFULA_GID: Final = 14
NFULA_HWTYPE: Final = 15
NFULA_HWHEADER: Final = 16
NFULA_VLAN: Final = 20
NFULA_L2HDR: Final = 21
NFULA_VLAN_PROTO: Final = 1
NFULA_VLAN_TCI: Final = 2

_NFGENMSG_BYTES: Final = 4
_PACKET_HDR: Final = struct.Struct("!HBx")
_TIMESTAMP: Final = struct.Struct("!QQ")
#: First second of the year 10000: a stamp from then on is invalid.
_SECONDS_LIMIT: Final = 253_402_300_800


class _MalformedError(Exception):
    """Failure to decode an NFLOG message; the error's text is the reason."""


def sequence(payload: memoryview) -> int | None:
    """Return the sequence number of an NFLOG message (NFULA_SEQ); None if the message has none.

    ``payload`` is the message without its netlink header.
    """
    for kind, value in netlink.attributes(payload[_NFGENMSG_BYTES:]):
        if kind == NFULA_SEQ and len(value) == 4:
            return int.from_bytes(value, "big")
    return None


def read(  # noqa: PLR0913 - a message and the state of its socket
    payload: memoryview,
    *,
    group: int,
    interface_name: Callable[[int], str | None],
    identity: Callable[[int | None], str],
    received_ns: int,
    log_source: str,
) -> Record | Reject:
    """Decode one NFLOG message to a Record; return a Reject if it can't be decoded.

    ``payload`` is the message without its netlink header. ``received_ns`` is the time of receipt,
    since the epoch. ``interface_name`` maps an interface's index to its name. ``identity`` maps a
    sequence number to a unique id for the record.
    """
    try:
        datagram = _datagram(payload, group, interface_name, received_ns)
    except _MalformedError as error:
        return Reject(kind="malformed", reason=str(error), line=f"NFLOG payload={payload.hex()}")
    itself = identity(datagram.sequence)
    origin = Origin(
        transport="nflog",
        identity=itself,
        log_source=log_source,
        log_format="nfnetlink_log",
        raw=nflog_line.render(datagram, itself),
        sequence=datagram.sequence,
        original_time=nflog_line.stamp(datagram),
    )
    return record(datagram, origin)


def _datagram(
    payload: memoryview,
    group: int,
    interface_name: Callable[[int], str | None],
    received_ns: int,
) -> Datagram:
    if len(payload) < _NFGENMSG_BYTES:
        raise _MalformedError("the NFLOG message is shorter than its header")
    found = dict(netlink.attributes(payload[_NFGENMSG_BYTES:]))
    header = found.get(NFULA_PACKET_HDR)
    if header is None or len(header) != _PACKET_HDR.size:
        raise _MalformedError("the NFLOG message has no packet header attribute")
    protocol, hook = _PACKET_HDR.unpack(header)

    return Datagram(
        group=group,
        family=payload[0],
        hardware_protocol=protocol,
        hook=hook,
        received_ns=received_ns,
        prefix=_text(found.get(NFULA_PREFIX)),
        captured=bytes(found.get(NFULA_PAYLOAD, b"")),
        sequence=_number(found, NFULA_SEQ),
        global_sequence=_number(found, NFULA_SEQ_GLOBAL),
        time_us=_time_us(found.get(NFULA_TIMESTAMP)),
        input=_device(found, NFULA_IFINDEX_INDEV, interface_name),
        output=_device(found, NFULA_IFINDEX_OUTDEV, interface_name),
        physical_input=_device(found, NFULA_IFINDEX_PHYSINDEV, interface_name),
        physical_output=_device(found, NFULA_IFINDEX_PHYSOUTDEV, interface_name),
        hardware_type=_number(found, NFULA_HWTYPE, 2),
        hardware_header=_octets(found.get(NFULA_HWHEADER)),
        hardware_address=_hardware_address(found.get(NFULA_HWADDR)),
        link_header=_octets(found.get(NFULA_L2HDR)),
        vlan=_vlan(found.get(NFULA_VLAN)),
        mark=_number(found, NFULA_MARK),
        uid=_number(found, NFULA_UID),
        gid=_number(found, NFULA_GID),
    )


def _number(found: Mapping[int, memoryview], kind: int, size: int = 4) -> int | None:
    value = found.get(kind)
    if value is None:
        return None
    if len(value) != size:
        raise _MalformedError(f"NFLOG attribute {kind} has {len(value)} bytes, not {size}")
    return int.from_bytes(value, "big")


def _device(
    found: Mapping[int, memoryview], kind: int, interface_name: Callable[[int], str | None]
) -> Interface | None:
    index = _number(found, kind)
    if index is None:
        return None
    name = interface_name(index)
    if name is not None and not name.isascii():
        name = readable(name.encode("utf-8", "surrogateescape"))
    return Interface(index, name)


def _octets(value: memoryview | None) -> bytes | None:
    return None if value is None else bytes(value)


def _text(value: memoryview | None) -> str:
    return "" if value is None else readable(bytes(value).partition(b"\0")[0])


def _time_us(value: memoryview | None) -> int | None:
    if value is None:
        return None
    if len(value) != _TIMESTAMP.size:
        raise _MalformedError(f"the NFLOG timestamp has {len(value)} bytes, not {_TIMESTAMP.size}")
    seconds, microseconds = _TIMESTAMP.unpack(value)
    if seconds >= _SECONDS_LIMIT or microseconds >= 1_000_000:
        raise _MalformedError(f"the NFLOG timestamp {seconds}.{microseconds} is not a valid time")
    return int(seconds) * 1_000_000 + int(microseconds)


def _hardware_address(value: memoryview | None) -> bytes | None:
    if value is None:
        return None
    if len(value) != 12:
        raise _MalformedError(f"the NFLOG hardware address has {len(value)} bytes, not 12")
    # struct nfulnl_msg_packet_hw: length (2 bytes), padding (2 bytes), address (8 bytes).
    return bytes(value[4 : 4 + min(int.from_bytes(value[:2], "big"), 8)])


def _vlan(value: memoryview | None) -> tuple[int, int] | None:
    if value is None:
        return None
    nested = dict(netlink.attributes(value))
    protocol = _number(nested, NFULA_VLAN_PROTO, 2)
    tag = _number(nested, NFULA_VLAN_TCI, 2)
    return None if protocol is None or tag is None else (protocol, tag)
