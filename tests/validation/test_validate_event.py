"""What is an error, what a warning, and that no event is too hostile to be judged."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocsf_nft.errors import UsageError
from ocsf_nft.validation import Fault, Judge
from ocsf_nft.validation.fault import LIMIT
from ocsf_nft.validation.schema_walk import DEPTH
from tests.conformance.spoiling import GOOD
from tests.strategies import HOSTILE_TEXT
from tests.validation.events import good

JUDGE = Judge()


def told(event: Any, version: str | None = None) -> list[str]:
    return [str(fault) for fault in Judge(version).faults(event)]


def without(event: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in names}


def test_an_event_is_judged_at_its_own_version_or_at_the_one_that_is_asked_for() -> None:
    old = GOOD[4001, "1.1.0"]
    assert told(old) == told(old, "1.1") == []
    assert 'error: metadata.version: "1.1.0" is not 1.8.0' in told(old, "1.8.0")
    assert "error: observation_point: is no attribute of network_activity in 1.1.0" in told(
        good(), "1.1.0"
    )
    with pytest.raises(UsageError):
        Judge("2.0.0")


@pytest.mark.parametrize(
    ("version", "what"),
    [("9.9.9", '"9.9.9" is not known'), ("1.8", '"1.8" is not known'), (1, "1 is not known")],
)
def test_an_event_of_a_version_that_is_not_known_is_one_error_that_names_the_known_ones(
    version: Any, what: str
) -> None:
    event = good()
    event["metadata"]["version"] = version
    (fault,) = JUDGE.faults(event)
    assert (fault.severity, fault.path) == ("error", "metadata.version")
    assert fault.message.startswith(f"{what}: one of 1.1.0, 1.2.0, 1.3.0, ")


@pytest.mark.parametrize("metadata", [None, [], "1.8.0", 1, {}, {"version": None}])
def test_an_event_without_a_version_is_one_error(metadata: Any) -> None:
    (fault,) = JUDGE.faults(good(metadata=metadata))
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
def test_what_is_no_object_is_no_event(event: Any, what: str) -> None:
    for judge in (JUDGE, Judge("1.8.0")):
        assert judge.faults(event) == [
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
def test_without_a_class_nothing_else_is_judged(uid: Any, what: str) -> None:
    assert JUDGE.faults(good(class_uid=uid)) == [Fault("error", "class_uid", what)]


def test_a_fault_says_what_is_wrong_and_what_would_be_right() -> None:
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
    found = told(event)
    for expected in (
        "error: category_uid: 2 is not 4",
        'error: severity: is "medium", but severity_id 3 is "Medium"',
        "error: type_uid: 400106 is not class_uid * 100 + activity_id, 400105",
        "error: start_time: 1767225600000 is after end_time, 1767225599999",
        "error: engine: is no attribute of network_activity in 1.8.0",
        "error: dst_endpoint.port: 70000 is more than 65535",
        "error: action_id: its profile (security_control) isn't in metadata.profiles",
        "warning: metadata.profiles[3]: host is there twice",
        'error: metadata.profiles[4]: there is no profile "firewall" in 1.8.0',
        "error: actor.process.file.type_id: is required and missing",
        "warning: actor.process.file.type: is there without type_id",
    ):
        assert expected in found
    assert any(
        each.startswith("error: dst_endpoint: has none of ") and "ip" in each for each in found
    )


def test_a_profile_that_its_class_does_not_have_is_listed_in_vain() -> None:
    event = deepcopy(GOOD[6002, "1.8.0"])
    event["metadata"]["profiles"] += ["load_balancer"]
    (warning,) = told(event)
    assert warning == (
        "warning: metadata.profiles[1]: nothing that load_balancer brings could be there: "
        "not in application_lifecycle"
    )


def test_the_caption_of_id_99_is_required_and_free_but_for_those_that_have_an_id() -> None:
    silent = without(good(status_id=99), "status")
    assert told(silent) == ["error: status: is missing: status_id 99 says to look there"]
    assert told(good(status_id=99, status="")) == told(silent)
    assert told(good(status_id=99, status="It depends")) == []
    assert told(good(status_id=99, status="Other")) == []
    assert told(good(status_id=99, status="Success")) == [
        "warning: status: status_id 99 has a caption that has an id of its own"
    ]


def test_a_caption_that_is_missing_is_a_warning_that_tells_it() -> None:
    assert sorted(told(without(good(), "status", "severity"))) == [
        'warning: severity: is missing: severity_id 3 is "Medium"',
        'warning: status: is missing: status_id 2 is "Failure"',
    ]


def test_each_item_of_an_array_of_ids_has_its_caption() -> None:
    url = {
        "url_string": "http://example.com",
        "category_ids": [3, 99, 3, 1000, 4],
        "categories": [],
    }
    url["categories"] = ["Pornography", "odd", "pornography", "?"]
    event = good(url=url)
    assert told(event) == [
        "error: url.category_ids[3]: 1000 is no value of category_ids",
        'error: url.categories[2]: is "pornography", but category_ids 3 is "Pornography"',
        'warning: url.categories[4]: is missing: category_ids 4 is "Sex Education"',
    ]
    url["categories"] = "Pornography"
    assert 'error: url.categories: "Pornography" is no array' in told(event)


def test_what_is_deprecated_is_a_warning_that_says_what_to_use() -> None:
    found = told({"class_uid": 2001, "metadata": {"version": "1.8.0"}})
    assert any(
        each.startswith("warning: class_uid: class security_finding is deprecated: Use the new")
        for each in found
    )
    found = told({"class_uid": 2001, "metadata": {"version": "1.8.0"}, "finding": {}})
    assert any(
        each.startswith("warning: finding: object finding is deprecated: Use the new")
        for each in found
    )
    found = told(
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
        for each in told(event)
    )


def test_just_one_is_not_two_and_not_none() -> None:
    event = deepcopy(GOOD[2004, "1.8.0"])
    for held, what in (
        ({"title": "x"}, "has none of advisory, cve, cwe"),
        (
            {"cve": {"uid": "CVE-1"}, "cwe": {"uid": "CWE-1"}},
            "has cve and cwe, of which only one may be there",
        ),
    ):
        event["vulnerabilities"] = [held]
        assert f"error: vulnerabilities[0]: {what}" in told(event)
    event["vulnerabilities"] = [{"cve": {"uid": "CVE-1"}, "cwe": None}]
    assert not any("only one" in each or "none of" in each for each in told(event))


def test_a_constraint_may_name_what_is_further_down() -> None:
    """As of Operating System Patch State."""
    event: dict[str, Any] = {
        "class_uid": 5004,
        "metadata": {"version": "1.8.0"},
        "device": {"os": {"name": "Linux", "type_id": 200}},
    }
    of = "has none of device.os.sp_name, device.os.sp_ver, device.os.version"
    assert f"error: event: {of}" in told(event)
    event["device"]["os"]["version"] = "13"
    assert f"error: event: {of}" not in told(event)
    event["device"]["os"] = "Linux 13"
    assert f"error: event: {of}" in told(event)


def test_what_the_schema_leaves_open_may_hold_anything_that_json_can_hold() -> None:
    unmapped = {"a b": [1, [2.5, {"c": True}], "d"], "ttl": 64, "é": {}}
    assert told(good(unmapped=unmapped)) == []
    assert told(good(unmapped={"a": [None, {"b": 1 << 64}], "c d": float("nan"), "\udc80": 1})) == [
        "warning: unmapped.a[0]: is null; what isn't known is left out",
        "error: unmapped.a[1].b: doesn't fit 64 bits",
        'error: unmapped."c d": is a number that JSON doesn\'t have',
        r'error: unmapped."\udc80": its name is no UTF-8: it holds a broken character',
    ]


def test_what_is_recommended_and_missing_is_a_warning_when_that_is_asked_for() -> None:
    judge = Judge(recommended=True)
    event = without(good(), "message", "observables")
    found = {fault.path for fault in judge.faults(event) if fault.severity == "warning"}
    assert {"message", "observables", "src_endpoint.hostname"} <= found
    # What is optional, and what was recommended until something else was.
    assert not {"risk_score", "proxy"} & found
    assert not any(fault.severity == "error" for fault in judge.faults(event))
    assert JUDGE.faults(event) == []
    # Of a profile that isn't listed nothing is missing.
    event = deepcopy(GOOD[6002, "1.8.0"])
    assert "action_id" not in {fault.path for fault in judge.faults(event)}


def test_nesting_ends_somewhere_whoever_made_the_event() -> None:
    deep: Any = {"pid": 1}
    open_end: Any = []
    for _ in range(10_000):
        deep = {"pid": 1, "parent_process": deep}
        open_end = [open_end]
    found = JUDGE.faults(good(actor={"process": deep}, unmapped={"a": open_end}))
    too_deep = [each for each in found if "levels deep" in each.message]
    assert [each.severity for each in too_deep] == ["error"] * 2
    assert [each.path.count(".") + each.path.count("[") for each in too_deep] == [DEPTH - 1] * 2


def test_an_event_of_nothing_but_faults_ends_with_the_one_that_says_so() -> None:
    found = JUDGE.faults(good(unmapped={"a": [1 << 64] * 1_000_000}))
    assert len(found) == LIMIT + 1
    assert str(found[-1]) == "error: event: has more than 1000 faults: the rest is not told"


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.sampled_from([99, 4001, "4001", "1.8.0", "host", b"", ()])
    | HOSTILE_TEXT
)
#: Names that the schema knows, so that what is hostile gets far.
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


def places(value: Any) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [(value, key) for key in keys] + [
        place for key in keys if isinstance(value[key], dict | list) for place in places(value[key])
    ]


def check_told_safely(event: Any, version: str | None) -> None:
    for judge in (Judge(version), Judge(version, recommended=True)):
        for fault in judge.faults(event):
            assert str(fault).replace("…", "").isascii()
            assert str(fault).isprintable()
            json.dumps([fault.path, fault.message], ensure_ascii=False).encode()


@settings(max_examples=200)
@given(event=ANYTHING, version=st.sampled_from([None, "1.1.0", "1.8.0"]))
def test_anything_is_judged_and_told_safely(event: Any, version: str | None) -> None:
    check_told_safely(event, version)


@pytest.mark.parametrize("which", GOOD)
def test_an_integer_that_python_does_not_write_may_be_anywhere(which: tuple[int, str]) -> None:
    for number in range(len(places(GOOD[which]))):
        event = deepcopy(GOOD[which])
        where, key = places(event)[number]
        where[key] = 10**5000
        check_told_safely(event, None)


@settings(max_examples=300)
@given(which=st.sampled_from(sorted(GOOD)), data=st.data())
def test_a_good_event_with_anything_in_any_place_is_judged_and_told_safely(
    which: tuple[int, str], data: st.DataObject
) -> None:
    event = deepcopy(GOOD[which])
    for _ in range(data.draw(st.integers(1, 3))):
        where, key = data.draw(st.sampled_from(places(event)))
        where[key] = data.draw(ANYTHING)
    check_told_safely(event, data.draw(st.sampled_from([None, which[1]])))


def test_profile_that_is_no_text_hides_no_other_fault() -> None:
    event = good()
    event["metadata"]["profiles"] = [7, "firewall"]
    faults = [str(fault) for fault in Judge().faults(event)]
    assert "error: metadata.profiles[0]: 7 is no string" in faults
    assert 'error: metadata.profiles[1]: there is no profile "firewall" in 1.8.0' in faults


def test_event_may_end_when_it_starts_but_not_before() -> None:
    for end, faults in ((6, []), (5, []), (4, ["error: start_time: 5 is after end_time, 4"])):
        event = good(start_time=5, end_time=end, duration=end - 5)
        assert [str(fault) for fault in Judge().faults(event)] == faults
