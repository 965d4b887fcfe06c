"""Status of a sandbox as JSON objects, one for each rule."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ocsf_nft.service.status import Status


def rows(status: Status) -> list[dict[str, Any]]:
    """Return a JSON object for each rule of a sandbox, as `ocsf-nft status --json` prints them."""
    return [
        dataclasses.asdict(balance)
        | {
            "fence": status.mode,
            "counter_mismatch": balance.counter_mismatch,
            "is_watched": status.is_watched,
            "verdict": status.verdict,
        }
        for balance in status.balances
    ]
