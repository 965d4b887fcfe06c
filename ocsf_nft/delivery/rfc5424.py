"""Conversion of an event to a syslog message of RFC 5424, with the event's JSON as its text.

A message may be longer than 2,048 bytes. Configure each receiver to accept longer messages.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.delivery.line_fields import LineFields
from ocsf_nft.delivery.sinks.json_access import integer, text
from ocsf_nft.utc_text import utc_text

if TYPE_CHECKING:
    from collections.abc import Mapping

#: local0: free for the site's use, and every syslog daemon can select it by its name.
_FACILITY: Final = 16
#: Syslog severity by ``severity_id``. Never 0, "emergency": daemons write that to every terminal.
_SEVERITIES: Final = {1: 6, 2: 5, 3: 4, 4: 3, 5: 2, 6: 1}
_NOTICE: Final = 5
_VERSION: Final = 1
_APP_NAME: Final = "ocsf-nft"
_NIL: Final = "-"
_HOSTNAME_LENGTH: Final = 255
_MSGID_END: Final = 10**32

_UNPRINTABLE: Final = re.compile(r"[^\x21-\x7e]")
#: Space in place of white space between JSON tokens, such as a line end. Strings of JSON contain no
#: ASCII control character below DEL.
_LINE_ENDS_AS_SPACES: Final = bytes([0x20] * 0x20) + bytes(range(0x20, 0x100))
_DELETE: Final = b"\x7f"
_ESCAPED: Final = re.compile(r"[^\x20-\x7e]")


def frame_line(json: bytes) -> bytes:
    """Build the syslog message of one event: one line of printable ASCII, without the line end.

    ``json`` is the event. A header field without a valid value becomes ``-``, RFC 5424's nil value.
    """
    fields = LineFields(json)
    return _message(
        fields.integer("severity_id"),
        fields.integer("time"),
        fields.hostname(),
        fields.integer("type_uid"),
        json,
    )


def frame(event: Mapping[str, Any], json: bytes) -> bytes:
    """Build the syslog message of one event as :func:`frame_line` does.

    ``event`` is the parsed form of ``json``, and has the values of the header.
    """
    return _message(
        integer(event, "severity_id"),
        integer(event, "time"),
        text(event, "device", "hostname"),
        integer(event, "type_uid"),
        json,
    )


def _message(
    severity_id: int | None, time: int | None, host: str, type_uid: int | None, json: bytes
) -> bytes:
    head = (
        f"<{_FACILITY * 8 + _SEVERITIES.get(severity_id or 0, _NOTICE)}>{_VERSION}",
        utc_text(time) or _NIL,
        _UNPRINTABLE.sub("?", host[:_HOSTNAME_LENGTH]) or _NIL,
        _APP_NAME,
        _NIL,
        _message_id(type_uid),
        # No structured data: the JSON has all values.
        _NIL,
    )
    return f"{' '.join(head)} ".encode("ascii") + _ascii(json)


def _message_id(type_uid: int | None) -> str:
    is_valid = type_uid is not None and 0 <= type_uid < _MSGID_END
    return str(type_uid) if is_valid else _NIL


def _ascii(json: bytes) -> bytes:
    # ASCII needs no byte order mark: RFC 5424 requires one before UTF-8, RFC 8259 forbids one
    # before JSON.
    line = json.translate(_LINE_ENDS_AS_SPACES)
    if line.isascii() and _DELETE not in line:
        return line
    return _ESCAPED.sub(_escape, line.decode()).encode("ascii")


def _escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{unit.hex()}" for unit in (units[:2], units[2:]) if unit)
