"""Detection of kernel log messages that a user-space program wrote, not the kernel."""

from __future__ import annotations

from ocsf_nft.record import Reject


def author_of_facility(facility: int | str, *, kernel: int | str) -> str | None:
    """Return None if the kernel wrote a log message, otherwise a description of the program.

    The description is ``a program of facility N``. ``facility`` is the message's syslog facility.
    ``kernel`` is the kernel's facility in the same form: 0, or ``kern`` if ``facility`` is a name.
    """
    # RFC 5424, 6.2.1 has the numbers of the facilities.
    return None if facility == kernel else f"a program of facility {facility}"


def reject_forged(author: str, line: str) -> Reject:
    """Return a Reject (a refused log line) for a line that a program wrote, not the kernel.

    ``author`` describes the program, for example ``a program of facility 1``.
    """
    return Reject(kind="forged", reason=f"{author} wrote it, not the kernel", line=line)
