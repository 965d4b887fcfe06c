r"""One record of /dev/kmsg.

The form is that of Documentation/ABI/testing/dev-kmsg: ``priority,sequence,microseconds,flags;``
and perhaps more comma-separated values before the semicolon, then the message, and on further lines
a dictionary (`` KEY=value``). Unprintable bytes and the backslash are written ``\xNN``
(kernel/printk/printk.c, append_char), so a line break is always the record's own.
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
    """A record taken apart.

    ``facility`` 0 is the kernel; the kernel gives userland's writes another one, whatever they
    ask for. ``stamp_us`` is printk's clock in microseconds; ``message`` the bytes that were
    logged.
    """

    facility: int
    sequence: int
    stamp_us: int
    message: bytes


def identity(line: KmsgLine) -> str:
    """What makes the record this one, live or in a file.

    A sequence number begins anew with each boot; with stamp and text no two records share it.
    """
    digest = hashlib.blake2b(line.message, digest_size=12).hexdigest()
    return f"kmsg:{line.sequence}:{line.stamp_us}:{digest}"


def parse(raw: bytes) -> KmsgLine | None:
    """The record in ``raw``, None when it has not this form."""
    header = _HEADER.match(raw)
    if header is None:
        return None
    priority, sequence, stamp = header.groups()
    message = raw[header.end() :].partition(b"\n")[0]
    if b"\\" in message:
        message = _ESCAPE.sub(lambda found: bytes((int(found[1], 16),)), message)
    return KmsgLine(int(priority) >> _FACILITY_SHIFT, int(sequence), int(stamp), message)
