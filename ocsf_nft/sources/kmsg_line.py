"""Parser of the records of /dev/kmsg, the kernel log, as the device and as files have them.

Documentation/ABI/testing/dev-kmsg describes the format.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, NamedTuple

#: ``priority,sequence,microseconds,flags;`` and then the message. The next lines of a record are a
#: dictionary (`` KEY=value``).
_HEADER: Final = re.compile(rb"([0-9]{1,10}),([0-9]{1,19}),([0-9]{1,16}),[^;\n]*;")
#: The kernel writes unprintable bytes and the backslash as ``\xNN`` (kernel/printk/printk.c,
#: append_char). So a line break is never part of the message.
_ESCAPE: Final = re.compile(rb"\\x([0-9a-f]{2})")
_FACILITY_SHIFT: Final = 3
_INT64_MAX: Final = (1 << 63) - 1


class KmsgLine(NamedTuple):
    """Fields of one record of /dev/kmsg, the kernel log."""

    #: 0 only if the kernel wrote the message: the kernel changes the facility 0 of a program.
    facility: int
    sequence: int
    #: Kernel's (printk) timestamp, in microseconds since boot.
    stamp_us: int
    #: Logged bytes, without the escapes of /dev/kmsg.
    message: bytes

    @property
    def identity(self) -> str:
        """Return a text that identifies the record: ``kmsg:SEQUENCE:TIMESTAMP:HASH``.

        A record has the same identity each time it is read, from the kernel or from a file. The
        sequence number alone is not enough, because it restarts with each boot.
        """
        digest = hashlib.blake2b(self.message, digest_size=12).hexdigest()
        return f"kmsg:{self.sequence}:{self.stamp_us}:{digest}"


def parse(raw: bytes) -> KmsgLine | None:
    """Parse one record of /dev/kmsg; return None if ``raw`` is not such a record."""
    header = _HEADER.match(raw)
    if header is None:
        return None
    priority, sequence, stamp = header.groups()
    if int(sequence) > _INT64_MAX:  # the kernel's number has 64 bits, but no log is so long
        return None
    message = raw[header.end() :].partition(b"\n")[0]
    if b"\\" in message:
        message = _ESCAPE.sub(lambda found: bytes((int(found[1], 16),)), message)
    return KmsgLine(int(priority) >> _FACILITY_SHIFT, int(sequence), int(stamp), message)
