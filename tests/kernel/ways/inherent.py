"""Ways that no fence can close, each with its reason."""

from __future__ import annotations

from typing import Final

_DATA: Final = "The proxy needs data. It decides what leaves."
_FIELDS: Final = "A packet has fields that its sender chooses. They end at the proxy."

#: The attacks of this family race the removal of a chain. If it is removed first, the packet goes
#: to the proxy as it was, which the policy allows.
RACING_FAMILY: Final = "rewriting after the verdict"

#: Reasons by variant. They hold for each form of a fence in a namespace.
INHERENT: Final[dict[str, str]] = {
    "unprivileged: payload to the proxy": _DATA,
    "raw: data in a syn": _DATA,
    "raw: data in a syn6": _DATA,
    "raw: reset with data": _DATA,
    "raw: header fields": _FIELDS,
    "raw: sequence number": _FIELDS,
    "raw: tcp option": _FIELDS,
    "raw: tcp timestamps": _FIELDS,
    "raw: reset to the proxy": "The kernel resets a connection, to the proxy and to no other host.",
}
