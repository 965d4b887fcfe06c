"""Attribution method ``user``: only the user id in a log record is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.process import Attribution

if TYPE_CHECKING:
    from ocsf_nft.record import Record

#: The rules that match packets from processes of the sandbox.
_PROCESS_RULES: Final = frozenset({"egress", "link"})
NO_PROCESS: Final = Attribution(
    method="none", reason="no process of the sandbox sent it by a socket"
)


def is_sent(record: Record) -> bool:
    """Return True if a process of the sandbox sent the packet of a log record by a socket."""
    return record.rule in _PROCESS_RULES and record.uid is not None


def user_attribution(record: Record, reason: str) -> Attribution:
    """Return an attribution to the user in ``record``; ``reason`` is why no process is known."""
    if not is_sent(record):
        return NO_PROCESS
    return Attribution(method="user", confidence="high", reason=reason)
