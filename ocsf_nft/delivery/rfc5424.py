"""One event as a syslog message of RFC 5424, with its JSON as the message's text.

The text is ASCII: what is not, JSON writes as an escape, so it is the same JSON. RFC 5424 wants a
byte order mark before UTF-8, RFC 8259 forbids one before JSON, and receivers hand it on as a part
of the text, which then no JSON parser takes. ASCII needs none, and is read the same by a receiver
that takes it for UTF-8, Latin-1 or anything else.

There are no structured data: all that they could say is in the JSON. A message may be longer than
the 2,048 bytes that every receiver should take; JSON can't be cut, so let them take more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.utc_text import utc_text

if TYPE_CHECKING:
    from typing import TypeGuard

#: local0: for whatever a site makes of it, and every syslog daemon can select by its name.
_FACILITY: Final = 16
#: From ``severity_id`` to syslog's. Not 0, "emergency": daemons write that on every terminal.
_SEVERITIES: Final = {1: 6, 2: 5, 3: 4, 4: 3, 5: 2, 6: 1}
_NOTICE: Final = 5
_VERSION: Final = 1
_APP_NAME: Final = "ocsf-nft"
_NIL: Final = "-"
_HOSTNAME_LENGTH: Final = 255
_MSGID_END: Final = 10**32

_UNPRINTABLE: Final = re.compile(r"[^\x21-\x7e]")
#: White space between JSON's tokens: no string of it has a control character of ASCII below DEL.
_LINE_ENDS: Final = re.compile(rb"[\x00-\x1f]")
_ESCAPED: Final = re.compile(r"[^\x20-\x7e]")


def frame(event: Mapping[str, Any], json: bytes) -> bytes:
    """The message of one event: one line of printable ASCII, without the line end.

    ``json`` is the event as JSON; ``event`` the same as JSON reads it. What the header has no
    value for in it, or a wrong one, is told as RFC 5424's nil.
    """
    head = (
        f"<{_FACILITY * 8 + _severity(event.get('severity_id'))}>{_VERSION}",
        utc_text(event.get("time")) or _NIL,
        _hostname(event.get("device")),
        _APP_NAME,
        _NIL,
        _message_id(event.get("type_uid")),
        _NIL,
    )
    return f"{' '.join(head)} ".encode("ascii") + _ascii(json)


def _severity(number: object) -> int:
    return _SEVERITIES.get(number, _NOTICE) if _is_whole(number) else _NOTICE


def _hostname(device: object) -> str:
    name = device.get("hostname") if isinstance(device, Mapping) else None
    if not isinstance(name, str):
        return _NIL
    return _UNPRINTABLE.sub("?", name[:_HOSTNAME_LENGTH]) or _NIL


def _message_id(type_uid: object) -> str:
    """What kind of event it is: class and activity, such as 400105."""
    is_one = _is_whole(type_uid) and 0 <= type_uid < _MSGID_END
    return str(type_uid) if is_one else _NIL


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _ascii(json: bytes) -> bytes:
    """The same JSON on one line, in printable ASCII."""
    line = _LINE_ENDS.sub(b" ", json)
    return _ESCAPED.sub(_escape, line.decode()).encode("ascii")


def _escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{unit.hex()}" for unit in (units[:2], units[2:]) if unit)
