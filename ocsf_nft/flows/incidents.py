"""Incidents: attempts that belong together, and the events about them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, get_args

from ocsf_nft.attempt import FanOut, Incident, IncidentEnd
from ocsf_nft.flows.dns_questions import MAX_OF_FLOW
from ocsf_nft.flows.flow_counter import MAX_COUNT
from ocsf_nft.process import Attribution, ConfidenceLevel, Method, Seen, shortened

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.attempt import Attempt
    from ocsf_nft.flow import Key
    from ocsf_nft.process import Process
    from ocsf_nft.record import DnsQuestion, Record

#: Function that takes a flow's latest log record, and the number of packets and the DNS questions
#: in its incident so far; it returns True if the incident becomes an OCSF finding.
IsFinding: TypeAlias = "Callable[[Record, int, tuple[DnsQuestion, ...]], bool]"
#: Maximum number of attempts that an incident or a scan lists.
LATEST: Final = 10
#: Maximum number of processes that a merged attribution names. The others are counted, as a lower
#: bound.
_MAX_NAMED: Final = 16
#: Maximum number of ancestors of the process of an incident.
_MAX_ANCESTORS: Final = 16
_METHODS: Final[tuple[Method, ...]] = get_args(Method)
_CONFIDENCES: Final[tuple[ConfidenceLevel | None, ...]] = (*get_args(ConfidenceLevel), None)
#: Start times of a process differ if the clock is set between two reads of /proc. No other process
#: gets the same pid so soon.
_MAX_START_DIFFERENCE_NS: Final = 10 * 1_000_000_000
_REASON: Final = "not all packets were attributed to one process"
_SOLE: Final = "it sent some of the packets, and no other process was seen to send"
_NOT_ATTRIBUTED: Final = Attribution(method="none", reason=_REASON)


class OpenIncident(NamedTuple):
    """Incident of the flow ``key`` with a Create event and no last event yet.

    ``end`` is the content of the last event, unless more packets follow. ``questions`` are the DNS
    questions that no attempt has yet.
    """

    key: Key
    end: IncidentEnd
    questions: tuple[DnsQuestion, ...] = ()


#: Changes of a rule's open incidents and scans since the last commit, by identity. An open scan has
#: the content of its last event; None marks an end.
Opened: TypeAlias = dict[str, OpenIncident | FanOut | None]


def extend_incident(
    before: IncidentEnd | None, key: Key, attempt: Attempt, is_finding: IsFinding
) -> IncidentEnd:
    """Extend a flow's incident (its repeated refused packets) by ``attempt``, the latest packets.

    ``before`` is None for a new incident. The returned end is valid until more packets follow.
    """
    identity = attempt.record.origin.identity
    if before is not None:
        incident = before.incident
    else:
        incident = Incident(
            identity=f"{identity}/{key.data.hex()}", windows=0, packets=0, found_at=None,
            start_ns=attempt.start_ns, latest=(),
        )  # fmt: skip
    packets = min(incident.packets + attempt.packets, MAX_COUNT)
    latest = _shortened(attempt.attribution)  # as that of the incident, so that both can be equal
    questions = incident.questions
    if attempt.questions:
        questions = tuple(dict.fromkeys((*questions, *attempt.questions)))[:MAX_OF_FLOW]
    found_at = incident.found_at
    # After ``is_finding`` has returned true, it is not called again for the incident.
    if found_at is None and is_finding(attempt.record, packets, questions):
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
                latest if before is None else _shortened(merge(incident.attribution, latest))
            ),
            questions=questions,
        ),
        end_ns=attempt.end_ns,
    )


def _shortened(by: Attribution | None) -> Attribution | None:
    """Return an attribution of limited size: an incident is stored again with each attempt.

    Of several possible senders, no event has the ancestors.
    """
    if by is None:
        return None
    seen = sorted(by.seen, key=_began)[-_MAX_NAMED:] if len(by.seen) > _MAX_NAMED else by.seen
    ancestors = _MAX_ANCESTORS if len(by.seen) == 1 else 0
    return replace(
        by,
        process=None if by.process is None else shortened(by.process, ancestors=_MAX_ANCESTORS),
        seen=tuple(
            replace(each, process=shortened(each.process, ancestors=ancestors)) for each in seen
        ),
        unnamed=by.unnamed + len(by.seen) - len(seen),
    )


def merge(before: Attribution | None, latest: Attribution | None) -> Attribution | None:
    """Merge the attributions of a flow's earlier packets and of its latest packets.

    An attribution names the process that sent the packets, or all possible senders. Return None if
    both arguments are None.
    """
    first, last = before or _NOT_ATTRIBUTED, latest or _NOT_ATTRIBUTED
    if first.names_no_process and last.names_no_process:
        return latest or before
    least_confident = max(last, first, key=lambda each: _CONFIDENCES.index(each.confidence))
    if _is_by_one_program(first, last):
        return least_confident
    # A process that sent only some of the packets is not named as the only sender.
    seen, unnamed = _merged(first, last)
    naming = [each for each in (first, last) if not each.names_no_process]
    merged = Attribution(
        method=max((each.method for each in naming), key=_METHODS.index),
        confidence=least_confident.confidence if len(naming) == 2 else "low",
        reason=_REASON,
        unnamed=unnamed,
        user_name=last.user_name or first.user_name,
        group_name=last.group_name or first.group_name,
    )
    was_seen_to_send = first.process is not None or last.process is not None
    programs = {each.process.path for each in (*named(first), *named(last))}
    if was_seen_to_send and len(seen) == len(programs) == 1 and not unnamed:
        return replace(merged, confidence="medium", reason=_SOLE, process=seen[0].process)
    if merged.confidence == "low":  # other processes may have made attempts as well
        seen = [replace(each, calls=None) for each in seen]
    return replace(merged, seen=tuple(seen))


def _merged(first: Attribution, last: Attribution) -> tuple[list[Seen], int]:
    """Return at most 16 processes that may have sent packets, and the minimum number of others.

    The processes that started last are selected.
    """
    # `first` is the attribution of the flow's earlier packets, `last` that of its latest packets.
    seen, unnamed, latest = list(named(first)), first.unnamed, named(last)
    for one in latest:
        same = next((each for each in seen if _is_same(each.process, one.process)), None)
        if same is not None:
            calls = (same.calls or 0) + (one.calls or 0) or None
            seen[seen.index(same)] = replace(one, calls=calls)
        # An attribution names its youngest processes, and only counts the older ones. So a younger
        # process is certainly none of those that `first` has only counted.
        elif not unnamed or _began(one) > max(map(_began, seen), default=0):
            seen.append(one)
    seen.sort(key=_began)
    # The numbers are not added: both attributions may have counted the same unnamed processes.
    dropped = max(0, len(seen) - _MAX_NAMED)
    kept = seen[dropped:]
    return kept, max(unnamed + dropped, len(latest) + last.unnamed - len(kept))


def _began(seen: Seen) -> int:
    return seen.process.created_ns or 0


def _is_by_one_program(first: Attribution, last: Attribution) -> bool:
    one, other = first.process, last.process
    if one is None or other is None or first.seen or first.unnamed or last.seen or last.unnamed:
        return False
    return _is_same(one, other) and one.path == other.path


def _is_same(one: Process, other: Process) -> bool:
    if one.pid != other.pid or one.created_ns is None or other.created_ns is None:
        return one.pid == other.pid
    return abs(one.created_ns - other.created_ns) < _MAX_START_DIFFERENCE_NS


def named(by: Attribution) -> tuple[Seen, ...]:
    """Return the processes that an attribution names: as the sender, or as possible senders."""
    if by.process is None or any(_is_same(each.process, by.process) for each in by.seen):
        return by.seen
    # Below high confidence, the number of its packets is unknown.
    return (Seen(process=by.process, calls=1 if by.confidence == "high" else None), *by.seen)
