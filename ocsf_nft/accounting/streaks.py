"""What the attempts of one flow come to that follow one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.accounting.counted import MOST
from ocsf_nft.attempt import Ended, Streak

if TYPE_CHECKING:
    from ocsf_nft.attempt import Attempt
    from ocsf_nft.flow import Key

#: Attempts that a streak names.
LATEST: Final = 10


def grown(before: Ended | None, key: Key, attempt: Attempt) -> Ended:
    """A streak with one more attempt, as it ends if that is the last; the first one where None."""
    identity = attempt.record.origin.identity
    streak = (
        before.streak if before is not None else _begun(f"{identity}/{key.data.hex()}", attempt)
    )
    return Ended(
        record=attempt.record,
        streak=Streak(
            identity=streak.identity,
            windows=streak.windows + 1,
            packets=min(streak.packets + attempt.packets, MOST),
            packets_before=streak.packets,
            # The clock may be set back.
            start_ns=min(streak.start_ns, attempt.start_ns),
            latest=(*streak.latest, identity)[-LATEST:],
        ),
        end_ns=attempt.end_ns,
        process=attempt.process,
    )


def _begun(identity: str, attempt: Attempt) -> Streak:
    return Streak(
        identity=identity,
        windows=0,
        packets=0,
        packets_before=0,
        start_ns=attempt.start_ns,
        latest=(),
    )
