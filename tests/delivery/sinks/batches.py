"""Batches for sinks."""

from __future__ import annotations

from ocsf_nft.delivery.envelope import Message


def messages(*lines: bytes) -> list[Message]:
    """One message a line, whatever is in it."""
    return [Message(uid=f"uid-{number}", line=line) for number, line in enumerate(lines)]
