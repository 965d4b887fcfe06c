"""Detection of kernel log messages that a user-space program wrote, not the kernel."""

from __future__ import annotations

from ocsf_nft.record import Reject


def author_of_facility(facility: int | str, *, kernel: int | str) -> str | None:
    """Return None if the kernel wrote a log message; otherwise, return a text about the writer.

    The text has only the facility, for example ``a program of facility 1``. ``facility`` is the
    message's syslog facility (RFC 5424, 6.2.1), as a number or a name. ``kernel`` is the facility
    of kernel messages: 0 if ``facility`` is a number, ``kern`` if ``facility`` is a name.
    """
    return None if facility == kernel else f"a program of facility {facility}"


def reject_forged(author: str, line: str) -> Reject:
    """Return a Reject (description of a log line that is not accepted) for a forged line.

    A program wrote the line, and it looks like the kernel's log record of a packet. ``author``
    describes the program, for example "a program of facility 1".
    """
    return Reject(kind="forged", reason=f"{author} wrote it, not the kernel", line=line)
