"""Ways that no fence can close, each with its reason."""

from __future__ import annotations

from typing import Final

_DATA: Final = "The proxy needs data. It decides what leaves."
_FIELDS: Final = "A packet has fields that its sender chooses. They end at the proxy."

_UNDONE: Final = "The chain is removed at once, and the packet goes to the proxy as it was."

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
    "admin: egress chain: ethertype": _UNDONE,
    "admin: egress chain: link source": _UNDONE,
    "admin: egress chain: next header": _UNDONE,
    "admin: egress chain: source": _UNDONE,
    "admin: egress chain: destination at an equal priority": _UNDONE,
}
