"""Who wrote a message in the kernel log: not only the kernel can."""

from __future__ import annotations

from ocsf_nft.record import Reject


def author_of_facility(facility: int | str, *, kernel: int | str) -> str | None:
    """Who writes under a syslog facility (RFC 5424, 6.2.1), None for the kernel.

    ``kernel`` is the kernel's own one in the form of the log: 0 where it is a number.
    """
    return None if facility == kernel else f"a program of facility {facility}"


def forged(author: str, line: str) -> Reject:
    """What becomes of a line that claims to be a record and is of another author."""
    return Reject(kind="forged", reason=f"{author} wrote it, not the kernel", line=line)
