"""Conversion to versions after the stored one, of which no published schema is installed."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf.ai_agents import agent_of
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.versions import STORED, UNTIL, VERSIONS, at_version, is_before
from ocsf_nft.validation import EventValidator
from tests.conformance.corpus import CONTEXT, IDENTIFIED, NOW_NS, RECORDS
from tests.conformance.incidents import GOING_ON
from tests.conformance.test_conformance import (
    as_json,
    attempt_events,
    fence_events,
    service_events,
)
from tests.published_versions import UNPUBLISHED
from tests.strategies import HOSTILE_TEXT

if TYPE_CHECKING:
    from ocsf_nft.ocsf.context import Context

NEWEST = VERSIONS[-1]
#: Attributes that only the newest version has, in a class or in an evidence.
_NEW = ("initiator_id", "initiator", "ai_agent")
_LABELS = (
    "gen_ai.agent.name=helper",
    "gen_ai.agent.id=asst-7",
    "gen_ai.agent.version=1.4.2",
    "gen_ai.conversation.id=conv-5",
    "gen_ai.request.model=a-model",
    "gen_ai.provider.name=a-provider",
)
_AGENT = {
    "name": "helper",
    "uid": "asst-7",
    "version": "1.4.2",
    "instance_uid": "conv-5",
    "ai_model": {"name": "a-model", "ai_provider": "a-provider"},
}


def converted(event: Any, version: str = NEWEST) -> Any:
    return at_version(copy.deepcopy(event), version)


def event_of(name: str, context: Context = CONTEXT) -> Any:
    attempt = Attempt.of(RECORDS[name])
    return as_json(Mapper(context).network_activity(attempt, processed_ns=NOW_NS))


def test_stored_version_is_not_the_newest() -> None:
    assert is_before(STORED, NEWEST)
    assert UNPUBLISHED == ("1.9.0",)


def test_newer_event_is_the_stored_one_but_for_documented_attributes() -> None:
    """The remainder is the stored event, which the judges of the stored version check."""
    (deprecated,) = UNTIL.values()
    seen = set()
    for context in (CONTEXT, IDENTIFIED):
        every = itertools.chain(
            attempt_events(context), fence_events(context), service_events(context)
        )
        for name, made in every:
            stored = as_json(made)
            event = converted(stored)
            assert event["metadata"].pop("version") == NEWEST
            assert stored["metadata"].pop("version") == STORED
            assert not deprecated.keys() & event.keys()
            for each in deprecated:
                stored.pop(each, None)
            profiles = set(event["metadata"].pop("profiles", ()))
            has_agent = "ai_agent" in event
            assert profiles - set(stored["metadata"].pop("profiles", ())) == (
                {"ai_operation"} if has_agent else set()
            )
            if stored["class_uid"] == 4001:
                assert (event["initiator_id"], event["initiator"]) in {
                    (0, "Unknown"),
                    (1, "Source Endpoint"),
                }
            for holder in (event, *event.get("evidences", ())):
                seen |= holder.keys() & set(_NEW)
                for each in _NEW:
                    holder.pop(each, None)
            assert event == stored, name
    assert seen == set(_NEW)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("tcp4", (1, "Source Endpoint")), ("udp6 quic", (0, "Unknown"))],
)
def test_initiator_is_the_source_if_the_packet_proves_it(
    name: str, expected: tuple[int, str]
) -> None:
    event = converted(event_of(name))
    assert (event["initiator_id"], event["initiator"]) == expected
    assert event["metadata"]["profiles"] == ["host", "network_proxy", "security_control"]


def test_agent_of_the_labels_is_in_outbound_events() -> None:
    context = replace(CONTEXT, labels=(*_LABELS, "team=search"))
    event = converted(event_of("tcp4", context))
    assert event["ai_agent"] == _AGENT
    assert "ai_operation" in event["metadata"]["profiles"]
    inbound = converted(event_of("ingress", context))
    assert "ai_agent" not in inbound
    assert "ai_operation" not in inbound["metadata"]["profiles"]
    assert "ai_agent" not in converted(event_of("tcp4", context), STORED)


def test_agent_of_the_labels_is_in_evidences_of_a_finding() -> None:
    """The class itself has neither the attribute nor its profile."""
    mapper = Mapper(replace(CONTEXT, labels=_LABELS))
    finding = mapper.finding(GOING_ON["tcp4, first"], processed_ns=NOW_NS)
    assert finding is not None
    event = converted(as_json(finding))
    assert [each["ai_agent"] for each in event["evidences"]] == [_AGENT]
    assert "ai_agent" not in event
    assert "ai_operation" not in event["metadata"]["profiles"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ((), None),
        (_LABELS[2:], None),
        (("gen_ai.agent.name=", "gen_ai.agent.id"), None),
        (_LABELS[:1], {"name": "helper"}),
        (("gen_ai.agent.id=a=b",), {"uid": "a=b"}),
        (_LABELS[1:2] + _LABELS[4:5], {"uid": "asst-7"}),
        (_LABELS[1:2] + _LABELS[5:], {"uid": "asst-7"}),
    ],
)
def test_agent_needs_a_name_or_an_id_and_a_model_its_provider(
    labels: tuple[str, ...], expected: dict[str, str] | None
) -> None:
    assert agent_of(labels) == expected


@given(
    labels=st.lists(
        HOSTILE_TEXT
        | st.sampled_from([each.partition("=")[0] for each in _LABELS]).flatmap(
            lambda key: HOSTILE_TEXT.map(lambda value: f"{key}={value}")
        )
    )
)
def test_line_of_a_template_has_the_agent_of_any_labels(labels: list[str]) -> None:
    mapper, attempt = Mapper(replace(CONTEXT, labels=tuple(labels))), Attempt.of(RECORDS["tcp4"])
    model = converted(as_json(mapper.network_activity(attempt, processed_ns=NOW_NS)))
    for _ in range(5):
        line = mapper.line(attempt, processed_ns=NOW_NS, version=NEWEST)
        assert line.decode().isprintable()
        assert json.loads(line) == model


def test_events_without_labels_have_templates_in_a_newer_version() -> None:
    mapper, attempt = Mapper(CONTEXT), Attempt.of(RECORDS["tcp4"])
    for _ in range(4):
        mapper.line(attempt, processed_ns=NOW_NS, version=NEWEST)
    assert mapper._templates._stored


def test_validator_without_the_schema_of_a_version_says_so() -> None:
    (fault,) = EventValidator().faults(converted(event_of("tcp4")))
    assert "'1.9.0' is not known" in str(fault) or '"1.9.0" is not known' in str(fault)
