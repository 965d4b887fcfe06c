"""Conversion of an NFLOG message to one line of text, and back.

An example, which is one line in reality::

    NFLOG group=5 family=2 protocol=0800 hook=3 received=1764000000123456789 seq=7
    id="nflog:…:7" prefix="ocsf-nft:sb:egress:" out="eth0"#2 uid=1000 gid=1000 packet=4500…

Names, ids and log prefixes are JSON strings in ASCII. The number after ``#`` is the interface's
index. Bytes, such as those of the packet, are hexadecimal. Absent fields are left out.
"""

from __future__ import annotations

import json
import re
from json.encoder import encode_basestring_ascii as json_string
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.log_prefixes import PREFIX_CHARACTERS
from ocsf_nft.sources.nflog.datagram import Datagram, Interface
from ocsf_nft.sources.packet_fields import DEVICE_CHARACTERS

if TYPE_CHECKING:
    from collections.abc import Mapping

#: First characters of such a line.
START: Final = "NFLOG group="

#: JSON string in ASCII, so that no byte in a name or prefix can be mistaken for another field.
_STRING: Final = r'"(?:[ !#-\[\]-~]|\\["\\/bfnrt]|\\u[0-9a-f]{4})*"'
_DEVICE: Final = rf"(?:{_STRING})?#\d{{1,10}}"
_HEX: Final = r"(?:[0-9a-f]{2})*"
_LINE: Final = re.compile(
    r"NFLOG group=(?P<group>\d{1,5}) family=(?P<family>\d{1,3}) protocol=(?P<protocol>[0-9a-f]{4})"
    r" hook=(?P<hook>\d{1,3}) received=(?P<received>\d{1,19})"
    r"(?: seq=(?P<sequence>\d{1,10}))?"
    r"(?: global_seq=(?P<global_sequence>\d{1,10}))?"
    r"(?: time=(?P<seconds>\d{1,12})\.(?P<microseconds>\d{6}))?"
    rf"(?: id=(?P<identity>{_STRING}))?"
    rf" prefix=(?P<prefix>{_STRING})"
    rf"(?: in=(?P<input>{_DEVICE}))?"
    rf"(?: out=(?P<output>{_DEVICE}))?"
    rf"(?: physin=(?P<physical_input>{_DEVICE}))?"
    rf"(?: physout=(?P<physical_output>{_DEVICE}))?"
    r"(?: hwtype=(?P<hardware_type>\d{1,5}))?"
    rf"(?: hwheader=(?P<hardware_header>{_HEX}))?"
    rf"(?: hwaddr=(?P<hardware_address>{_HEX}))?"
    rf"(?: l2header=(?P<link_header>{_HEX}))?"
    r"(?: vlan=(?P<vlan>[0-9a-f]{4}:[0-9a-f]{4}))?"
    r"(?: mark=0x(?P<mark>[0-9a-f]{1,8}))?"
    r"(?: uid=(?P<uid>\d{1,10}))?"
    r"(?: gid=(?P<gid>\d{1,10}))?"
    rf" packet=(?P<captured>{_HEX})",
    re.ASCII,
)
_LIMITS: Final = {
    "group": 0xFFFF,
    "family": 0xFF,
    "hook": 0xFF,
    "received": (1 << 63) - 1,
    "seconds": 253_402_300_799,  # the end of the year 9999
    "sequence": 0xFFFFFFFF,
    "global_sequence": 0xFFFFFFFF,
    "hardware_type": 0xFFFF,
    "uid": 0xFFFFFFFF,
    "gid": 0xFFFFFFFF,
}
#: First characters of an identity, and a maximum length far above that of ours.
IDENTITY_START: Final = "nflog:"
_IDENTITY_CHARACTERS: Final = 256
#: Half a surrogate pair.
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")


class _InvalidStringError(Exception):
    """Error: a quoted string of an NFLOG line is too long or invalid."""


class Line(NamedTuple):
    """Content of an NFLOG line: an NFLOG message that :func:`render` has written as text.

    ``datagram`` is the logged packet. ``identity`` is the unique id of the packet's log record;
    ``None`` if the line has no field ``id``.
    """

    datagram: Datagram
    identity: str | None


def render(datagram: Datagram, identity: str) -> str:
    """Return a logged packet as one line of text, with the unique ``identity`` of its record."""
    d = datagram
    fields = (
        ("NFLOG group", str(d.group)),
        ("family", str(d.family)),
        ("protocol", f"{d.hardware_protocol:04x}"),
        ("hook", str(d.hook)),
        ("received", str(d.received_ns)),
        ("seq", _decimal(d.sequence)),
        ("global_seq", _decimal(d.global_sequence)),
        ("time", stamp(d)),
        # An event from this line gets the same metadata.uid as an event from the NFLOG message.
        ("id", json_string(identity)),
        ("prefix", json_string(d.prefix)),
        ("in", _quoted(d.input)),
        ("out", _quoted(d.output)),
        ("physin", _quoted(d.physical_input)),
        ("physout", _quoted(d.physical_output)),
        ("hwtype", _decimal(d.hardware_type)),
        ("hwheader", _hexadecimal(d.hardware_header)),
        ("hwaddr", _hexadecimal(d.hardware_address)),
        ("l2header", _hexadecimal(d.link_header)),
        ("vlan", None if d.vlan is None else f"{d.vlan[0]:04x}:{d.vlan[1]:04x}"),
        ("mark", None if d.mark is None else f"0x{d.mark:x}"),
        ("uid", _decimal(d.uid)),
        ("gid", _decimal(d.gid)),
        ("packet", d.captured.hex()),
    )
    return " ".join(f"{name}={value}" for name, value in fields if value is not None)


def _decimal(number: int | None) -> str | None:
    return None if number is None else str(number)


def _hexadecimal(octets: bytes | None) -> str | None:
    return None if octets is None else octets.hex()


def _quoted(device: Interface | None) -> str | None:
    if device is None:
        return None
    return f"{'' if device.name is None else json_string(device.name)}#{device.ifindex}"


def stamp(datagram: Datagram) -> str | None:
    """Return the kernel's timestamp of a packet: seconds since the epoch with six decimals.

    Returns ``None`` if the packet has no timestamp.
    """
    if datagram.time_us is None:
        return None
    return f"{datagram.time_us // 1_000_000}.{datagram.time_us % 1_000_000:06d}"


def parse(line: str) -> Line | None:
    """Parse a line that :func:`render` wrote; return ``None`` if the line has any other format."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    found = match.groupdict()
    numbers = {name: None if found[name] is None else int(found[name]) for name in _LIMITS}
    if any(number is not None and number > _LIMITS[name] for name, number in numbers.items()):
        return None
    try:
        return Line(_datagram(found, numbers), _identity(found["identity"]))
    except _InvalidStringError:
        return None


def _datagram(found: Mapping[str, str], numbers: Mapping[str, int | None]) -> Datagram:
    """Build the NFLOG message from the fields of a line.

    ``found`` maps the fields' names to their texts. ``numbers`` has the decimal fields as integers.
    Raises _InvalidStringError if the log prefix or an interface name is too long or not valid text.
    """
    vlan, seconds = found["vlan"], numbers["seconds"]
    return Datagram(
        group=int(found["group"]),
        family=int(found["family"]),
        hardware_protocol=int(found["protocol"], 16),
        hook=int(found["hook"]),
        received_ns=int(found["received"]),
        prefix=_string(found["prefix"], PREFIX_CHARACTERS),
        captured=bytes.fromhex(found["captured"]),
        sequence=numbers["sequence"],
        global_sequence=numbers["global_sequence"],
        time_us=None if seconds is None else seconds * 1_000_000 + int(found["microseconds"]),
        input=_device(found["input"]),
        output=_device(found["output"]),
        physical_input=_device(found["physical_input"]),
        physical_output=_device(found["physical_output"]),
        hardware_type=numbers["hardware_type"],
        hardware_header=_octets(found["hardware_header"]),
        hardware_address=_octets(found["hardware_address"]),
        link_header=_octets(found["link_header"]),
        vlan=None if vlan is None else (int(vlan[:4], 16), int(vlan[5:], 16)),
        mark=None if found["mark"] is None else int(found["mark"], 16),
        uid=numbers["uid"],
        gid=numbers["gid"],
    )


def _string(quoted: str, limit: int) -> str:
    """Decode a JSON string of at most ``limit`` characters.

    Raises _InvalidStringError if the string is longer or not valid text.
    """
    text: str = json.loads(quoted)
    if len(text) > limit or _SURROGATE.search(text):
        raise _InvalidStringError
    return text


def _identity(quoted: str | None) -> str | None:
    """Decode the JSON string of the field ``id``; return None if the line has no such field.

    Raises _InvalidStringError if the decoded text is too long, is not valid, or does not begin with
    ``nflog:``.
    """
    if quoted is None:
        return None
    text = _string(quoted, _IDENTITY_CHARACTERS)
    if not text.startswith(IDENTITY_START):
        raise _InvalidStringError
    return text


def _device(text: str | None) -> Interface | None:
    if text is None:
        return None
    quoted, _, index = text.rpartition("#")
    return Interface(int(index), _string(quoted, DEVICE_CHARACTERS) if quoted else None)


def _octets(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)
