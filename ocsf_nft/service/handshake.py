"""Handshake: the JSON line that some sinks get before all events."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import orjson

from ocsf_nft.ocsf.context import product

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.service.sandbox import Sandbox

#: Version of the handshake's format.
_VERSION: Final = 1


def handshake(sandboxes: Iterable[Sandbox]) -> bytes:
    """Return the handshake of this process, with the state of each sandbox's fence."""
    reports = {
        each.name: each.watched.monitor.reports for each in sandboxes if each.watched is not None
    }
    return orjson.dumps(
        {
            "handshake": _VERSION,
            "version": product().version,
            "pid": os.getpid(),
            "sandboxes": [
                {"name": name, "fence": found.verdict, "mode": found.mode}
                for name, found in reports.items()
            ],
        }
    )
