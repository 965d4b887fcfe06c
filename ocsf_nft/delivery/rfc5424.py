"""Conversion of an event to a syslog message of RFC 5424, with the event's JSON as its text.

A message may be longer than 2,048 bytes. Configure each receiver to accept longer messages.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

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
#: White space between JSON tokens. Strings of JSON contain no ASCII control character below DEL.
_LINE_ENDS: Final = re.compile(rb"[\x00-\x1f]")
_ESCAPED: Final = re.compile(r"[^\x20-\x7e]")


def frame(event: Mapping[str, Any], json: bytes) -> bytes:
    """Build the syslog message of one event: one line of printable ASCII, without the line end.

    ``event`` is the parsed form of ``json``. A header field without a valid value becomes ``-``
    (RFC 5424's nil value).
    """
    severity = _SEVERITIES.get(integer(event, "severity_id") or 0, _NOTICE)
    head = (
        f"<{_FACILITY * 8 + severity}>{_VERSION}",
        utc_text(event.get("time")) or _NIL,
        _hostname(event),
        _APP_NAME,
        _NIL,
        _message_id(integer(event, "type_uid")),
        # No structured data: the JSON has all values.
        _NIL,
    )
    return f"{' '.join(head)} ".encode("ascii") + _ascii(json)


def _hostname(event: Mapping[str, Any]) -> str:
    name = text(event, "device", "hostname")
    return _UNPRINTABLE.sub("?", name[:_HOSTNAME_LENGTH]) or _NIL


def _message_id(type_uid: int | None) -> str:
    is_valid = type_uid is not None and 0 <= type_uid < _MSGID_END
    return str(type_uid) if is_valid else _NIL


def _ascii(json: bytes) -> bytes:
    # ASCII needs no byte order mark: RFC 5424 requires one before UTF-8, RFC 8259 forbids one
    # before JSON.
    line = _LINE_ENDS.sub(b" ", json)
    return _ESCAPED.sub(_escape, line.decode()).encode("ascii")


def _escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{unit.hex()}" for unit in (units[:2], units[2:]) if unit)
