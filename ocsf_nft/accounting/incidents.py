"""What the attempts of one flow come to that follow one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.accounting.flow_counter import MOST
from ocsf_nft.accounting.merge_attribution import together
from ocsf_nft.attempt import Ended, Streak

if TYPE_CHECKING:
    from ocsf_nft.accounting.priority import IsFinding
    from ocsf_nft.attempt import Attempt
    from ocsf_nft.flow import Key

#: Attempts that a streak names.
LATEST: Final = 10


def grown(before: Ended | None, key: Key, attempt: Attempt, is_finding: IsFinding) -> Ended:
    """A streak with one more attempt, as it ends if that is the last; the first one where None.

    What has been a finding once remains one, whatever its later records look like.
    """
    identity = attempt.record.origin.identity
    streak = (
        before.streak if before is not None else _begun(f"{identity}/{key.data.hex()}", attempt)
    )
    packets = min(streak.packets + attempt.packets, MOST)
    found_at = streak.found_at
    if found_at is None and is_finding(attempt.record, packets):
        found_at = streak.windows + 1
    return Ended(
        record=attempt.record,
        streak=Streak(
            identity=streak.identity,
            windows=streak.windows + 1,
            packets=packets,
            found_at=found_at,
            # The clock may be set back.
            start_ns=min(streak.start_ns, attempt.start_ns),
            latest=(*streak.latest, identity)[-LATEST:],
            attribution=(
                attempt.attribution
                if before is None
                else together(streak.attribution, attempt.attribution)
            ),
        ),
        end_ns=attempt.end_ns,
    )


def _begun(identity: str, attempt: Attempt) -> Streak:
    return Streak(
        identity=identity,
        windows=0,
        packets=0,
        found_at=None,
        start_ns=attempt.start_ns,
        latest=(),
    )
