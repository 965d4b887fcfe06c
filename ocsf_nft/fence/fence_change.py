"""Change that another process made to a fence, as a tamper guard reports it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ocsf_nft import clocks
from ocsf_nft.fence.tamper_attribution import attribute_change

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.fence.ruleset_changes import Transaction
    from ocsf_nft.process import Process


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceChange:
    """Change that another process made to a fence, and the reaction of the monitoring thread."""

    #: Text about the change.
    changes: str
    #: None if unknown.
    process: Process | None
    #: Name that the process gave itself.
    comm: str | None
    #: Time when the guard noticed the change (ns since the epoch, UTC).
    arrived_ns: int
    #: Duration from ``arrived_ns`` until the fence was restored. 0 if the service's periodic check
    #: restored it first. None if the guard did not restore it, for example because of an error.
    restored_after_ns: int | None = None
    #: True if the guard pauses after too many restores.
    given_up: bool = False
    #: True if the other process is `ocsf-nft` too, for example because it installs the fence again.
    is_regular: bool = False

    @classmethod
    def of(cls, transactions: Sequence[Transaction], arrived_ns: int) -> Self:
        """Return the change that ``transactions`` made, and the process of the first one.

        The notices of the transactions were read at ``arrived_ns`` (CLOCK_BOOTTIME). Blocks while
        it reads the process from procfs.
        """
        first, more = transactions[0], len(transactions) - 1
        followed = f"; {more} more change{'' if more == 1 else 's'} followed" if more else ""
        return cls(
            changes=f"{first.changes}{followed}",
            process=attribute_change(first.pid, first.comm, arrived_ns),
            comm=first.comm,
            arrived_ns=arrived_ns + clocks.epoch_of(time.CLOCK_BOOTTIME),
        )
