"""Conversion of an NFLOG message to one line of text, and back.

An example, which is one line in reality::

    NFLOG group=5 family=2 protocol=0800 hook=3 received=1764000000123456789 seq=7
    id="nflog:…:7" prefix="ocsf-nft:sb:egress:" out="eth0"#2 uid=1000 gid=1000 packet=4500…

Names, ids and log prefixes are JSON strings in ASCII. The number after ``#`` is the interface's
index. Bytes, such as those of the packet, are hexadecimal. Absent fields are left out. At the end
of the line, ``omitted=37`` means that 37 captured bytes of the packet are not in it (payload.py).
"""

from __future__ import annotations

import json
import re
from functools import partial
from json.encoder import encode_basestring_ascii as json_string
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocsf_nft.log_prefixes import PREFIX_CHARACTERS
from ocsf_nft.sources.nflog.datagram import Datagram, Interface, stamp
from ocsf_nft.sources.nflog.payload import OMITTED
from ocsf_nft.sources.packet_fields import DEVICE_CHARACTERS

if TYPE_CHECKING:
    from collections.abc import Callable

#: First characters of an identity, and a maximum length far above that of ours.
IDENTITY_START: Final = "nflog:"
_IDENTITY_CHARACTERS: Final = 256

#: JSON string in ASCII, so that no byte in a name or prefix can be mistaken for another field.
_STRING: Final = r'"(?:[ !#-\[\]-~]|\\["\\/bfnrt]|\\u[0-9a-f]{4})*"'
_HEX: Final = r"(?:[0-9a-f]{2})*"
_hexadecimal: Final = partial(int, base=16)
_SECONDS_LIMIT: Final = 253_402_300_799  # the end of the year 9999
_PACKET_BYTES: Final = 0xFFFF
#: Half a surrogate pair.
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")


class _Field(NamedTuple):
    """Field of a line: its name, its form, and the conversions to text and back.

    ``from_text`` raises ValueError for a value that is too large, too long or not valid text.
    """

    name: str
    form: str
    to_text: Callable[[Any], str]
    from_text: Callable[[str], Any]


def _decimal(name: str, limit: int) -> _Field:
    digits = len(str(limit))
    return _Field(name, rf"\d{{1,{digits}}}", str, partial(_number_up_to, limit))


def _octets(name: str) -> _Field:
    return _Field(name, _HEX, bytes.hex, bytes.fromhex)


def _device(name: str) -> _Field:
    return _Field(name, rf"(?:{_STRING})?#\d{{1,10}}", _interface_text, _interface)


def _number_up_to(limit: int, text: str) -> int:
    number = int(text)
    if number > limit:
        raise ValueError
    return number


def _microseconds(text: str) -> int:
    seconds, _, fraction = text.partition(".")
    return _number_up_to(_SECONDS_LIMIT, seconds) * 1_000_000 + int(fraction)


def _string_up_to(limit: int, quoted: str) -> str:
    text: str = json.loads(quoted)
    if len(text) > limit or _SURROGATE.search(text):
        raise ValueError
    return text


def _identity(quoted: str) -> str:
    text = _string_up_to(_IDENTITY_CHARACTERS, quoted)
    if not text.startswith(IDENTITY_START):
        raise ValueError
    return text


def _interface_text(device: Interface) -> str:
    return f"{'' if device.name is None else json_string(device.name)}#{device.ifindex}"


def _interface(text: str) -> Interface:
    quoted, _, index = text.rpartition("#")
    return Interface(int(index), _string_up_to(DEVICE_CHARACTERS, quoted) if quoted else None)


#: The id of the record, and the fields of Datagram in their order.
_FIELDS: Final = (
    _decimal("NFLOG group", 0xFFFF),
    _decimal("family", 0xFF),
    _Field("protocol", "[0-9a-f]{4}", "{:04x}".format, _hexadecimal),
    _decimal("hook", 0xFF),
    _decimal("received", (1 << 63) - 1),
    _decimal("seq", 0xFFFFFFFF),
    _decimal("global_seq", 0xFFFFFFFF),
    _Field("time", r"\d{1,12}\.\d{6}", stamp, _microseconds),
    # An event from this line gets the same metadata.uid as an event from the NFLOG message.
    _Field("id", _STRING, json_string, _identity),
    _Field("prefix", _STRING, json_string, partial(_string_up_to, PREFIX_CHARACTERS)),
    *map(_device, ("in", "out", "physin", "physout")),
    _decimal("hwtype", 0xFFFF),
    *map(_octets, ("hwheader", "hwaddr", "l2header")),
    _Field(
        "vlan",
        "[0-9a-f]{4}:[0-9a-f]{4}",
        lambda vlan: f"{vlan[0]:04x}:{vlan[1]:04x}",
        lambda text: (int(text[:4], 16), int(text[5:], 16)),
    ),
    _Field("mark", "0x[0-9a-f]{1,8}", hex, _hexadecimal),
    _decimal("uid", 0xFFFFFFFF),
    _decimal("gid", 0xFFFFFFFF),
    _octets("packet"),
)
_ID: Final = [field.name for field in _FIELDS].index("id")
_REQUIRED: Final = {"NFLOG group", "family", "protocol", "hook", "received", "prefix", "packet"}
_LINE: Final = re.compile(
    "".join(
        f" {field.name}=({field.form})"
        if field.name in _REQUIRED
        else f"(?: {field.name}=({field.form}))?"
        for field in _FIELDS
    ).removeprefix(" ")
    + rf"(?:{OMITTED}(\d{{1,5}}))?",
    re.ASCII,
)


def render(datagram: Datagram, identity: str) -> str:
    """Return a logged packet as one line of text, with the unique ``identity`` of its record."""
    values = (*datagram[:_ID], identity, *datagram[_ID:])
    return " ".join(
        f"{field.name}={field.to_text(value)}"
        for field, value in zip(_FIELDS, values, strict=True)
        if value is not None
    )


def parse(line: str) -> tuple[Datagram, str | None] | None:
    """Parse a line that :func:`render` wrote; return ``None`` if the line has any other format.

    Return the logged packet, and the unique id of its record; ``None`` if the line has no ``id``.
    The packet has zeros in place of omitted bytes.
    """
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    *texts, omitted = match.groups()
    try:
        values: list[Any] = [
            None if text is None else field.from_text(text)
            for field, text in zip(_FIELDS, texts, strict=True)
        ]
        values[-1] += bytes(_number_up_to(_PACKET_BYTES, omitted or "0"))
    except ValueError:
        return None
    identity: str | None = values.pop(_ID)
    return Datagram._make(values), identity
