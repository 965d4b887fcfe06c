"""Batches for sinks."""

from __future__ import annotations

from ocsf_nft.delivery.sinks.base import Message


def messages(*lines: bytes) -> list[Message]:
    """Return one message for each line, of any content."""
    return [Message(uid=f"uid-{number}", line=line) for number, line in enumerate(lines)]
