"""Merge of the attributions of a flow's successive events into one attribution.

An attribution names the process that sent the packets, or all processes that may have sent them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, get_args

from ocsf_nft.process import Attribution, ConfidenceLevel, Method, Seen

if TYPE_CHECKING:
    from ocsf_nft.process import Process

#: Maximum number of named processes. The others are counted, as a lower bound.
_MAX_NAMED: Final = 16
_METHODS: Final[tuple[Method, ...]] = get_args(Method)
_CONFIDENCES: Final[tuple[ConfidenceLevel | None, ...]] = (*get_args(ConfidenceLevel), None)
#: Start times of a process differ if the clock is set between two reads of /proc. No other process
#: gets the same pid so soon.
_MAX_START_DIFFERENCE_NS: Final = 10 * 1_000_000_000
_REASON: Final = "not all packets were attributed to one process"
_NOT_ATTRIBUTED: Final = Attribution(method="none", reason=_REASON)


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
    confidence = least_confident.confidence if len(naming) == 2 else "low"
    if confidence == "low":  # other processes may have made attempts as well
        seen = [replace(each, calls=None) for each in seen]
    return Attribution(
        method=max((each.method for each in naming), key=_METHODS.index),
        confidence=confidence,
        reason=_REASON,
        seen=tuple(seen),
        unnamed=unnamed,
        user_name=last.user_name or first.user_name,
        group_name=last.group_name or first.group_name,
    )


def _merged(first: Attribution, last: Attribution) -> tuple[list[Seen], int]:
    """Return at most 16 possible senders from both attributions, and the minimum number of others.

    If there are more than 16 possible senders, the processes that started last are selected.
    """
    # `first` is the attribution of the flow's earlier packets, `last` that of its latest packets.
    seen, unnamed, latest = list(_named(first)), first.unnamed, _named(last)
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
    return seen[dropped:], max(unnamed + dropped, len(latest) + last.unnamed - len(seen))


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


def _named(by: Attribution) -> tuple[Seen, ...]:
    if by.process is None or any(_is_same(each.process, by.process) for each in by.seen):
        return by.seen
    return (Seen(process=by.process, calls=1), *by.seen)
