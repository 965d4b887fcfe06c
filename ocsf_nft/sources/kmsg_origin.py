"""Author of a message in the kernel log: user-space programs can write to it too."""

from __future__ import annotations

from ocsf_nft.record import Reject


def author_of_facility(facility: int | str, *, kernel: int | str) -> str | None:
    """Return a description of the author by syslog facility (RFC 5424, 6.2.1); None for the kernel.

    ``kernel`` is the kernel's facility in the log's notation, for example the number 0.
    """
    return None if facility == kernel else f"a program of facility {facility}"


def reject_forged(author: str, line: str) -> Reject:
    """Return the Reject for a line that has the form of a record but another author."""
    return Reject(kind="forged", reason=f"{author} wrote it, not the kernel", line=line)
