"""Removal of secrets from the texts of records, in logs that this program did not write."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft import redaction
from ocsf_nft.ocsf.model import CACHED
from ocsf_nft.ocsf.safe_text import byte_size

if TYPE_CHECKING:
    from ocsf_nft.record import Origin, Record, Reject
    from ocsf_nft.redaction import Redactor

#: Detail of a record with the words of its line that are no field of a packet.
_UNPARSED: Final = "unparsed"
#: Start of a line of `journalctl -o json`, which has other fields of the journal.
_JSON: Final = "{"
#: First field of the kernel's text about a packet.
_FIRST_FIELD: Final = "IN="


def redacted_record(record: Record) -> Record:
    """Return a record without secrets in its log prefix, its other words and its raw data.

    All else in a line is numbers, addresses and names of interfaces, and costs no time here.
    """
    redactor = redaction.current()
    prefix = _prefix(record.prefix, redactor)
    origin = record.origin
    if _UNPARSED not in record.details and prefix == record.prefix and not _has_more(origin):
        return record
    raw = redactor.text(origin.raw)
    size = byte_size(origin.raw) if origin.raw_bytes is None else origin.raw_bytes
    details: dict[str, Any] = dict(record.details)
    if isinstance(words := details.get(_UNPARSED), str):
        details[_UNPARSED] = redactor.text(words)
    return replace(
        record,
        prefix=prefix,
        rule=redactor.text(record.rule),
        details=details,
        origin=replace(origin, raw=raw, raw_bytes=size),
    )


def redacted_reject(reject: Reject) -> Reject:
    """Return a line that is no valid record, without secrets."""
    redactor = redaction.current()
    return replace(reject, reason=redactor.text(reject.reason), line=redactor.text(reject.line))


def _has_more(origin: Origin) -> bool:
    """Return True if a line has other values before the packet, such as RFC 5424's parameters."""
    if origin.log_format != "nf_log_syslog":
        return False
    return origin.raw.startswith(_JSON) or "=" in origin.raw.partition(_FIRST_FIELD)[0]


@lru_cache(maxsize=CACHED)
def _prefix(prefix: str, redactor: Redactor) -> str:
    return redactor.text(prefix)
