"""Codes of the situations that events report, and the reference page about them."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf.addresses import address_kind
from ocsf_nft.ocsf.event_codes import EventCode
from ocsf_nft.ocsf.events import CLASSES
from ocsf_nft.ocsf.fence_state_events import (
    FenceState,
    PolicyChange,
    SandboxEnd,
    Tampering,
)
from ocsf_nft.ocsf.packet_outcome import code, direction
from tests.conformance.corpus import ALLOWED_RECORDS, CONTEXT, RECORDS
from tests.conformance.test_conformance import attempt_events, fence_events, service_events
from tests.docs.commands import ROOT
from tests.ocsf.test_fence_state_events import state_event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.ocsf.event_base import Event

_PAGE: Final = ROOT / "docs/reference/event-codes.md"
_ROW: Final = re.compile(r"\| `([a-z-]+)` \| (.+?) \| (.+?) \| (.+?) \|")
_END: Final[dict[str, Any]] = {"description": "has ended", "refused": 1, "allowed": 0}
_CHANGE: Final = PolicyChange(changes=("allow: added x",), before={}, after={})


def _state_events() -> Iterator[Event]:
    active, absent = FenceState.ACTIVE, FenceState.ABSENT
    for change in (_CHANGE, PolicyChange(after={}), PolicyChange(before={}, is_resolved=True)):
        for after in FenceState:
            yield state_event(absent, after, change=change)
    for is_requested in (True, False):
        yield state_event(active, absent, end=SandboxEnd(**_END, is_requested=is_requested))


@cache
def severities() -> dict[EventCode, frozenset[str]]:
    """Return the severities of the events of each code, over all situations of the tests."""
    found: defaultdict[EventCode, set[str]] = defaultdict(set)
    every = chain(attempt_events(CONTEXT), fence_events(CONTEXT), service_events(CONTEXT))
    for event in (*(event for _, event in every), *_state_events()):
        class_uid = next(uid for uid, model in CLASSES.items() if isinstance(event, model))
        at = event.__dict__["metadata"].event_code
        assert at.class_uid == class_uid
        found[at].add(event.__dict__["severity"])
    return {each: frozenset(names) for each, names in found.items()}


def test_every_code_is_emitted_in_some_situation() -> None:
    assert set(EventCode) == severities().keys()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tcp4", EventCode.EGRESS_BLOCKED),
        ("tcp4, allowed", EventCode.EGRESS_ALLOWED),
        ("guard", EventCode.EGRESS_BLOCKED),
        ("a later rule", EventCode.EGRESS_BLOCKED),
        ("vm input", EventCode.EGRESS_BLOCKED),
        ("vm link arp", EventCode.LINK_BLOCKED),
        ("vm ingress", EventCode.INGRESS_BLOCKED),
        ("ingress", EventCode.INGRESS_BLOCKED),
        ("ingress, allowed", EventCode.INGRESS_ALLOWED),
        ("forward", EventCode.FORWARD_BLOCKED),
        ("forward from outside, allowed", EventCode.FORWARD_ALLOWED),
        ("link 88b5", EventCode.LINK_BLOCKED),
        ("metadata4", EventCode.CLOUD_METADATA_BLOCKED),
        ("metadata6, allowed", EventCode.CLOUD_METADATA_ALLOWED),
        ("udp dns", EventCode.DNS_BLOCKED),
        ("udp dns, allowed", EventCode.DNS_ALLOWED),
        ("vm link solicitation", EventCode.KERNEL_TRAFFIC),
        ("foreign", EventCode.FIREWALL_REJECTED),
        ("foreign, passing", EventCode.FIREWALL_DROPPED),
        ("foreign, allowed", EventCode.FIREWALL_ALLOWED),
        ("foreign, no prefix", EventCode.FIREWALL_REJECTED),
        ("nothing but a prefix", EventCode.FIREWALL_LOGGED),
    ],
)
def test_code_of_a_packet_follows_from_rule_destination_and_verdict(
    name: str, expected: EventCode
) -> None:
    record = (RECORDS | ALLOWED_RECORDS)[name]
    way = direction(record, CONTEXT.uplinks)
    assert code(Attempt.of(record), way, address_kind(record.destination)) is expected


@pytest.mark.parametrize(
    ("before", "after", "facts", "expected"),
    [
        (FenceState.ABSENT, FenceState.ACTIVE, {}, EventCode.FENCE_ACTIVE),
        (FenceState.ABSENT, FenceState.ACTIVE, {"change": PolicyChange()}, EventCode.SANDBOX_ADDED),
        (FenceState.ACTIVE, FenceState.PERMISSIVE, {}, EventCode.FENCE_PERMISSIVE),
        (FenceState.ACTIVE, FenceState.PERMISSIVE, {"change": _CHANGE}, EventCode.POLICY_CHANGED),
        # A request does not hide a fault.
        (FenceState.ACTIVE, FenceState.DEGRADED, {"change": _CHANGE}, EventCode.FENCE_DEGRADED),
        (FenceState.ACTIVE, FenceState.ABSENT, {}, EventCode.FENCE_REMOVED),
        (
            FenceState.ACTIVE,
            FenceState.ABSENT,
            {"reason": "removed by `ocsf-nft remove`", "is_regular": True},
            EventCode.FENCE_REMOVED,
        ),
        (
            FenceState.ACTIVE,
            FenceState.ABSENT,
            {"reason": "flushed"},
            EventCode.FENCE_REMOVED_BY_OTHER,
        ),
        (FenceState.ACTIVE, FenceState.ALTERED, {"reason": "x"}, EventCode.FENCE_ALTERED),
        (
            FenceState.DEGRADED,
            FenceState.DEGRADED,
            {"tampering": Tampering(changes="x")},
            EventCode.FENCE_RESTORED,
        ),
        (
            FenceState.ACTIVE,
            FenceState.ABSENT,
            {"tampering": Tampering(changes="x", given_up=True), "reason": "x"},
            EventCode.RESTORE_STOPPED,
        ),
    ],
)
def test_code_of_a_state_is_that_of_its_cause(
    before: FenceState, after: FenceState, facts: dict[str, object], expected: EventCode
) -> None:
    assert state_event(before, after, **facts).metadata.event_code is expected


def test_page_describes_every_code_in_the_section_of_its_class() -> None:
    sections = re.split(r"^## ", _PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]
    codes = {each.value: each for each in EventCode}
    found = {}
    for section in sections:
        name, _, body = section.partition("\n")
        for value, description, severity, remedy in _ROW.findall(body):
            each = codes[value]
            assert f"({each.class_uid})" in name
            assert description == each.description
            emitted = severities().get(each, frozenset())
            assert emitted <= set(severity.split(", ")), (each, emitted)
            found[each] = remedy
    assert list(found) == list(EventCode)
    for remedy in found.values():
        for link in re.findall(r"\]\((.+?)\)", remedy):
            assert (_PAGE.parent / link).is_file(), link
