"""Tests of errors and warnings of the validator, also with hostile events."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocsf_nft.errors import UsageError
from ocsf_nft.validation import EventValidator, Fault
from ocsf_nft.validation.fault import LIMIT
from ocsf_nft.validation.validate_event import DEPTH
from tests.conformance.spoiling import GOOD
from tests.strategies import HOSTILE_TEXT
from tests.validation.events import good

VALIDATOR = EventValidator()


def faults_of(event: Any, version: str | None = None) -> list[str]:
    return [str(fault) for fault in EventValidator(version).faults(event)]


def without(event: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in names}


def test_validator_uses_the_events_version_or_the_requested_one() -> None:
    old = GOOD[4001, "1.1.0"]
    assert faults_of(old) == faults_of(old, "1.1") == []
    assert 'error: metadata.version: "1.1.0" is not 1.8.0' in faults_of(old, "1.8.0")
    assert "error: observation_point: is no attribute of network_activity in 1.1.0" in faults_of(
        good(), "1.1.0"
    )
    with pytest.raises(UsageError):
        EventValidator("2.0.0")


@pytest.mark.parametrize(
    ("version", "what"),
    [("9.9.9", '"9.9.9" is not known'), ("1.8", '"1.8" is not known'), (1, "1 is not known")],
)
def test_validator_reports_an_unknown_version_with_the_known_ones(version: Any, what: str) -> None:
    event = good()
    event["metadata"]["version"] = version
    (fault,) = VALIDATOR.faults(event)
    assert (fault.severity, fault.path) == ("error", "metadata.version")
    assert fault.message.startswith(f"{what}: one of 1.1.0, 1.2.0, 1.3.0, ")


@pytest.mark.parametrize("metadata", [None, [], "1.8.0", 1, {}, {"version": None}])
def test_validator_reports_only_a_missing_version(metadata: Any) -> None:
    (fault,) = VALIDATOR.faults(good(metadata=metadata))
    assert (fault.severity, fault.path) == ("error", "metadata.version")
    assert fault.message.startswith("is missing: one of 1.1.0, ")


@pytest.mark.parametrize(
    ("event", "what"),
    [
        (None, "null"),
        ([], "an array"),
        ("event", '"event"'),
        (1, "1"),
        (True, "true"),
    ],
)
def test_validator_reports_a_value_that_is_not_an_object(event: Any, what: str) -> None:
    for validator in (VALIDATOR, EventValidator("1.8.0")):
        assert validator.faults(event) == [
            Fault("error", "event", f"{what} is no event: an event is an object")
        ]


@pytest.mark.parametrize(
    ("uid", "what"),
    [
        (True, "true is no integer"),
        (4001.0, "4001.0 is no integer"),
        (1.5, "1.5 is no integer"),
        ("4001", '"4001" is no integer'),
        ([4001], "an array is no integer"),
        ({}, "an object is no integer"),
        (-1, "-1 is no class in 1.8.0"),
        (1 << 70, "an integer past 64 bits is no class in 1.8.0"),
        (None, "is required and missing"),
    ],
)
def test_validator_reports_only_a_missing_or_wrong_class(uid: Any, what: str) -> None:
    assert VALIDATOR.faults(good(class_uid=uid)) == [Fault("error", "class_uid", what)]


def test_validator_faults_have_the_wrong_and_the_right_value() -> None:
    event = good(
        category_uid=2,
        severity="medium",
        type_uid=400106,
        type_name="Network Activity: Traffic",
        end_time=1767225599999,
        engine="nftables",
        dst_endpoint={"port": 70000},
    )
    event["metadata"]["profiles"] = ["host", "network_proxy", "container", "host", "firewall"]
    event["actor"]["process"]["file"].pop("type_id")
    found = faults_of(event)
    for expected in (
        "error: category_uid: 2 is not 4",
        'error: severity: is "medium", but severity_id 3 is "Medium"',
        "error: type_uid: 400106 is not class_uid * 100 + activity_id, 400105",
        "error: start_time: 1767225600000 is after end_time, 1767225599999",
        "error: engine: is no attribute of network_activity in 1.8.0",
        "error: dst_endpoint.port: 70000 is more than 65535",
        "error: action_id: its profile (security_control) isn't in metadata.profiles",
        "warning: metadata.profiles[3]: host is listed twice",
        'error: metadata.profiles[4]: there is no profile "firewall" in 1.8.0',
        "error: actor.process.file.type_id: is required and missing",
        "warning: actor.process.file.type: is there without type_id",
    ):
        assert expected in found
    assert any(
        each.startswith("error: dst_endpoint: has none of ") and "ip" in each for each in found
    )


def test_validator_warns_of_a_profile_that_the_class_does_not_have() -> None:
    event = deepcopy(GOOD[6002, "1.8.0"])
    event["metadata"]["profiles"] += ["load_balancer"]
    (warning,) = faults_of(event)
    assert warning == (
        "warning: metadata.profiles[1]: no attribute of this profile (load_balancer) can be "
        "in application_lifecycle"
    )


def test_validator_requires_a_caption_of_id_99_that_no_other_id_has() -> None:
    without_caption = without(good(status_id=99), "status")
    assert faults_of(without_caption) == ["error: status: is missing: status_id 99 requires a text"]
    assert faults_of(good(status_id=99, status="")) == faults_of(without_caption)
    assert faults_of(good(status_id=99, status="It depends")) == []
    assert faults_of(good(status_id=99, status="Other")) == []
    assert faults_of(good(status_id=99, status="Success")) == [
        "warning: status: status_id 99 has the caption of another id"
    ]


def test_validator_warns_of_a_missing_caption_with_its_text() -> None:
    assert sorted(faults_of(without(good(), "status", "severity"))) == [
        'warning: severity: is missing: severity_id 3 is "Medium"',
        'warning: status: is missing: status_id 2 is "Failure"',
    ]


def test_validator_checks_the_caption_of_each_item_of_an_array() -> None:
    url = {
        "url_string": "http://example.com",
        "category_ids": [3, 99, 3, 1000, 4],
        "categories": [],
    }
    url["categories"] = ["Pornography", "odd", "pornography", "?"]
    event = good(url=url)
    assert faults_of(event) == [
        "error: url.category_ids[3]: 1000 is no value of category_ids",
        'error: url.categories[2]: is "pornography", but category_ids 3 is "Pornography"',
        'warning: url.categories[4]: is missing: category_ids 4 is "Sex Education"',
    ]
    url["categories"] = "Pornography"
    assert 'error: url.categories: "Pornography" is no array' in faults_of(event)


def test_validator_warns_of_deprecated_items_with_their_replacement() -> None:
    found = faults_of({"class_uid": 2001, "metadata": {"version": "1.8.0"}})
    assert any(
        each.startswith("warning: class_uid: class security_finding is deprecated: Use the new")
        for each in found
    )
    found = faults_of({"class_uid": 2001, "metadata": {"version": "1.8.0"}, "finding": {}})
    assert any(
        each.startswith("warning: finding: object finding is deprecated: Use the new")
        for each in found
    )
    found = faults_of(
        good(actor={"user": {"uid": "1000", "account": {"type_id": 3, "type": "AD Account"}}})
    )
    assert any(
        each.startswith("warning: actor.user.account.type_id: the value 3 is deprecated: ")
        for each in found
    )
    event = deepcopy(GOOD[2004, "1.8.0"])
    event["vulnerabilities"] = [{"cve": {"uid": "CVE-1", "cwe_uid": "CWE-1"}}]
    assert any(
        each.startswith("warning: vulnerabilities[0].cve.cwe_uid: is deprecated: Use")
        for each in faults_of(event)
    )


def test_validator_requires_exactly_one_of_just_one() -> None:
    event = deepcopy(GOOD[2004, "1.8.0"])
    for vulnerability, what in (
        ({"title": "x"}, "has none of advisory, cve, cwe"),
        (
            {"cve": {"uid": "CVE-1"}, "cwe": {"uid": "CWE-1"}},
            "has cve and cwe, of which only one may be there",
        ),
    ):
        event["vulnerabilities"] = [vulnerability]
        assert f"error: vulnerabilities[0]: {what}" in faults_of(event)
    event["vulnerabilities"] = [{"cve": {"uid": "CVE-1"}, "cwe": None}]
    assert not any("only one" in each or "none of" in each for each in faults_of(event))


def test_validator_constraint_may_name_a_nested_attribute() -> None:
    """Check the constraint of the class Operating System Patch State."""
    event: dict[str, Any] = {
        "class_uid": 5004,
        "metadata": {"version": "1.8.0"},
        "device": {"os": {"name": "Linux", "type_id": 200}},
    }
    of = "has none of device.os.sp_name, device.os.sp_ver, device.os.version"
    assert f"error: event: {of}" in faults_of(event)
    event["device"]["os"]["version"] = "13"
    assert f"error: event: {of}" not in faults_of(event)
    event["device"]["os"] = "Linux 13"
    assert f"error: event: {of}" in faults_of(event)


def test_validator_accepts_all_json_values_in_undefined_objects() -> None:
    unmapped = {"a b": [1, [2.5, {"c": True}], "d"], "ttl": 64, "é": {}}
    assert faults_of(good(unmapped=unmapped)) == []
    assert faults_of(
        good(unmapped={"a": [None, {"b": 1 << 64}], "c d": float("nan"), "\udc80": 1})
    ) == [
        "warning: unmapped.a[0]: is null; what isn't known is left out",
        "error: unmapped.a[1].b: doesn't fit 64 bits",
        'error: unmapped."c d": is a number that JSON doesn\'t have',
        r'error: unmapped."\udc80": its name is no UTF-8: it holds a broken character',
    ]


def test_validator_warns_of_missing_recommended_attributes_on_request() -> None:
    validator = EventValidator(recommended=True)
    event = without(good(), "message", "observables")
    found = {fault.path for fault in validator.faults(event) if fault.severity == "warning"}
    assert {"message", "observables", "src_endpoint.hostname"} <= found
    # One attribute is optional; the other was recommended until another replaced it.
    assert not {"risk_score", "proxy"} & found
    assert not any(fault.severity == "error" for fault in validator.faults(event))
    assert VALIDATOR.faults(event) == []
    # Attributes of a profile that isn't listed are not missing.
    event = deepcopy(GOOD[6002, "1.8.0"])
    assert "action_id" not in {fault.path for fault in validator.faults(event)}


def test_validator_limits_the_depth_of_nesting() -> None:
    deep: Any = {"pid": 1}
    open_end: Any = []
    for _ in range(10_000):
        deep = {"pid": 1, "parent_process": deep}
        open_end = [open_end]
    found = VALIDATOR.faults(good(actor={"process": deep}, unmapped={"a": open_end}))
    too_deep = [each for each in found if "levels deep" in each.message]
    assert [each.severity for each in too_deep] == ["error"] * 2
    assert [each.path.count(".") + each.path.count("[") for each in too_deep] == [DEPTH - 1] * 2


def test_validator_ends_more_faults_than_the_limit_with_a_note() -> None:
    found = VALIDATOR.faults(good(unmapped={"a": [1 << 64] * 1_000_000}))
    assert len(found) == LIMIT + 1
    assert str(found[-1]) == "error: event: has more than 1000 faults: the rest is not reported"


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.sampled_from([99, 4001, "4001", "1.8.0", "host", b"", ()])
    | HOSTILE_TEXT
)
#: Names in the schema, so that hostile values reach many checks.
NAMES = (
    st.sampled_from(
        [
            "metadata", "version", "profiles", "class_uid", "activity_id", "type_uid", "value",
            "observables", "name", "type_id", "type", "actor", "process", "parent_process", "user",
            "pid", "dst_endpoint", "ip", "port", "device", "os", "container", "unmapped",
            "start_time", "end_time", "duration", "status_id", "status", "url", "category_ids",
            "categories",
        ]
    )
    | HOSTILE_TEXT
)  # fmt: skip
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=20,
)


def positions(value: Any) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [(value, key) for key in keys] + [
        position
        for key in keys
        if isinstance(value[key], dict | list)
        for position in positions(value[key])
    ]


def assert_faults_are_safe(event: Any, version: str | None) -> None:
    for validator in (EventValidator(version), EventValidator(version, recommended=True)):
        for fault in validator.faults(event):
            assert str(fault).replace("…", "").isascii()
            assert str(fault).isprintable()
            json.dumps([fault.path, fault.message], ensure_ascii=False).encode()


@settings(max_examples=200)
@given(event=ANYTHING, version=st.sampled_from([None, "1.1.0", "1.8.0"]))
def test_validator_reports_safely_on_any_value(event: Any, version: str | None) -> None:
    assert_faults_are_safe(event, version)


@pytest.mark.parametrize("which", GOOD)
def test_validator_reports_safely_on_huge_integers_anywhere(which: tuple[int, str]) -> None:
    for number in range(len(positions(GOOD[which]))):
        event = deepcopy(GOOD[which])
        where, key = positions(event)[number]
        where[key] = 10**5000
        assert_faults_are_safe(event, None)


@settings(max_examples=300)
@given(which=st.sampled_from(sorted(GOOD)), data=st.data())
def test_validator_reports_safely_on_any_value_at_any_position(
    which: tuple[int, str], data: st.DataObject
) -> None:
    event = deepcopy(GOOD[which])
    for _ in range(data.draw(st.integers(1, 3))):
        where, key = data.draw(st.sampled_from(positions(event)))
        where[key] = data.draw(ANYTHING)
    assert_faults_are_safe(event, data.draw(st.sampled_from([None, which[1]])))


def test_validator_reports_other_profiles_next_to_one_that_is_no_text() -> None:
    event = good()
    event["metadata"]["profiles"] = [7, "firewall"]
    faults = [str(fault) for fault in EventValidator().faults(event)]
    assert "error: metadata.profiles[0]: 7 is no string" in faults
    assert 'error: metadata.profiles[1]: there is no profile "firewall" in 1.8.0' in faults


def test_validator_accepts_an_event_that_ends_when_it_starts_but_not_before() -> None:
    for end, faults in ((6, []), (5, []), (4, ["error: start_time: 5 is after end_time, 4"])):
        event = good(start_time=5, end_time=end, duration=end - 5)
        assert [str(fault) for fault in EventValidator().faults(event)] == faults
