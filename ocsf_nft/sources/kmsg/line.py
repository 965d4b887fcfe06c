r"""Parser of a record of /dev/kmsg (Documentation/ABI/testing/dev-kmsg).

A record begins with ``priority,sequence,microseconds,flags;`` and the message. The next lines are a
dictionary (`` KEY=value``). The kernel writes unprintable bytes and the backslash as ``\xNN``
(kernel/printk/printk.c, append_char). So a line break is never part of the message.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

_HEADER: Final = re.compile(rb"([0-9]{1,10}),([0-9]{1,19}),([0-9]{1,16}),[^;\n]*;")
_ESCAPE: Final = re.compile(rb"\\x([0-9a-f]{2})")
_FACILITY_SHIFT: Final = 3


@dataclass(frozen=True, slots=True)
class KmsgLine:
    """Fields of one record of /dev/kmsg, the kernel log.

    ``facility`` is 0 only if the kernel wrote the message. If a program writes a message with
    facility 0, the kernel changes the facility. ``stamp_us`` is the kernel's (printk) timestamp in
    microseconds since boot. ``message`` has the logged bytes, without the escapes of /dev/kmsg.
    """

    facility: int
    sequence: int
    stamp_us: int
    message: bytes


def identity(line: KmsgLine) -> str:
    """Return a text that identifies a /dev/kmsg record: ``kmsg:SEQUENCE:TIMESTAMP:HASH``.

    A record has the same identity each time it is read, from the kernel or from a file. The
    sequence number alone is not enough, because it restarts with each boot.
    """
    digest = hashlib.blake2b(line.message, digest_size=12).hexdigest()
    return f"kmsg:{line.sequence}:{line.stamp_us}:{digest}"


def parse(raw: bytes) -> KmsgLine | None:
    """Parse one record of /dev/kmsg; return None if ``raw`` is not such a record."""
    header = _HEADER.match(raw)
    if header is None:
        return None
    priority, sequence, stamp = header.groups()
    message = raw[header.end() :].partition(b"\n")[0]
    if b"\\" in message:
        message = _ESCAPE.sub(lambda found: bytes((int(found[1], 16),)), message)
    return KmsgLine(int(priority) >> _FACILITY_SHIFT, int(sequence), int(stamp), message)
