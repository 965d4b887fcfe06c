"""Incidents: an incident combines successive attempts of one flow, and counts their packets.

An attempt is the packets of the flow in one time window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.accounting.flow_counter import MAX_COUNT
from ocsf_nft.accounting.merge_attribution import merge
from ocsf_nft.attempt import Incident, IncidentEnd

if TYPE_CHECKING:
    from ocsf_nft.accounting.priority import IsFinding
    from ocsf_nft.attempt import Attempt
    from ocsf_nft.flow import Key

#: Maximum number of attempts that an incident lists.
LATEST: Final = 10


def extend_incident(
    before: IncidentEnd | None, key: Key, attempt: Attempt, is_finding: IsFinding
) -> IncidentEnd:
    """Extend a flow's incident (its repeated refused packets) by ``attempt``, the latest packets.

    ``before`` is the incident so far; None for a new incident. The result describes the end of the
    incident, unless more packets follow. ``is_finding`` decides whether the incident gets a
    Detection Finding event.
    """
    identity = attempt.record.origin.identity
    incident = (
        before.incident
        if before is not None
        else _new_incident(f"{identity}/{key.data.hex()}", attempt)
    )
    packets = min(incident.packets + attempt.packets, MAX_COUNT)
    found_at = incident.found_at
    # After ``is_finding`` has returned true, it is not called again for the incident.
    if found_at is None and is_finding(attempt.record, packets):
        found_at = incident.windows + 1
    return IncidentEnd(
        record=attempt.record,
        incident=Incident(
            identity=incident.identity,
            windows=incident.windows + 1,
            packets=packets,
            found_at=found_at,
            # The clock may be set back.
            start_ns=min(incident.start_ns, attempt.start_ns),
            latest=(*incident.latest, identity)[-LATEST:],
            attribution=(
                attempt.attribution
                if before is None
                else merge(incident.attribution, attempt.attribution)
            ),
        ),
        end_ns=attempt.end_ns,
    )


def _new_incident(identity: str, attempt: Attempt) -> Incident:
    return Incident(
        identity=identity,
        windows=0,
        packets=0,
        found_at=None,
        start_ns=attempt.start_ns,
        latest=(),
    )
