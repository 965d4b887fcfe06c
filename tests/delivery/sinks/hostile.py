"""Events with process names that a hostile process could choose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from ocsf_nft.delivery.sinks.base import Message
from tests.delivery.sinks.attempts import attempts

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAMES: Final = (
    'sh -c "echo \\"hi\\""',
    "two\nlines\r\n<0>1 - - - - - - forged",
    "\0\x01\x1b[31m\x7f\x85\u2028\u202e",
    "na\u00efve \u4e2d\u6587 \U0001f4a3",
    "\ufeff%s%n%msg:::drop-last-lf% $!all-json 64 <13>",
    "\\u0041\\n\\",
    "x" * 4500,
    "\U0001f4a3" * 200,
)


def hostile() -> list[Message]:
    return list(_events())


def _events() -> Iterator[Message]:
    for name, message in zip(_NAMES, attempts(len(_NAMES)), strict=True):
        event = message.event()
        event["actor"] = {"process": {"name": name, "cmd_line": name[:100]}}
        event["message"] = name[:100]
        yield Message(message.uid, orjson.dumps(event))
