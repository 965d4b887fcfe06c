"""Conversion of an event to a syslog message of RFC 5424, with the event's JSON as its text.

A message may be longer than 2,048 bytes. Configure each receiver to accept longer messages.
"""

from __future__ import annotations

import re
from typing import Final

from ocsf_nft.delivery.line_fields import LineFields
from ocsf_nft.utc_text import utc_text

#: local0: free for the site's use, and every syslog daemon can select it by its name.
_FACILITY: Final = 16
#: Syslog severity by ``severity_id``. Never 0, "emergency": daemons write that to every terminal.
_SEVERITIES: Final = {1: 6, 2: 5, 3: 4, 4: 3, 5: 2, 6: 1}
_NOTICE: Final = 5
_VERSION: Final = 1
_APP_NAME: Final = "ocsf-nft"
_NIL: Final = "-"
_HOSTNAME_LENGTH: Final = 255

_UNPRINTABLE: Final = re.compile(r"[^\x21-\x7e]")
#: Space in place of white space between JSON tokens, such as a line end. Strings of JSON contain no
#: ASCII control character below DEL.
_LINE_ENDS_AS_SPACES: Final = bytes([0x20] * 0x20) + bytes(range(0x20, 0x100))
_DELETE: Final = b"\x7f"
_ESCAPED: Final = re.compile(r"[^\x20-\x7e]")


def frame(json: bytes) -> bytes:
    """Build the syslog message of one event: one line of printable ASCII, without the line end.

    ``json`` is the event. A header field without a valid value becomes ``-``, RFC 5424's nil value.
    """
    fields = LineFields(json)
    severity = _SEVERITIES.get(fields.integer("severity_id") or 0, _NOTICE)
    head = (
        f"<{_FACILITY * 8 + severity}>{_VERSION}",
        utc_text(fields.integer("time")) or _NIL,
        _UNPRINTABLE.sub("?", fields.hostname()[:_HOSTNAME_LENGTH]) or _NIL,
        _APP_NAME,
        _NIL,
        _message_id(fields.integer("type_uid")),
        # No structured data: the JSON has all values.
        _NIL,
    )
    return f"{' '.join(head)} ".encode("ascii") + _ascii(json)


def _message_id(type_uid: int | None) -> str:
    # An integer of 64 bits has fewer digits than the limit of 32.
    return _NIL if type_uid is None or type_uid < 0 else str(type_uid)


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
