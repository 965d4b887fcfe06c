from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given

from ocsf_nft.ocsf.oneline import GAP, plain, shorthand
from ocsf_nft.ocsf.versions import VERSIONS, at_version
from tests.hostile_events import EVENTS, PROCESS, whole_events
from tests.ocsf.mapped import event_of


def line(event: dict[str, Any]) -> str:
    return plain(shorthand(event))


def tcp4(**others: Any) -> dict[str, Any]:
    event: dict[str, Any] = event_of("tcp4") | others
    return event


def by(process: dict[str, Any], **user: Any) -> dict[str, Any]:
    return tcp4(actor={"process": process, "user": {"uid": "1000"} | user})


def styled(event: dict[str, Any], style: str) -> list[str]:
    return [segment.text for segment in shorthand(event) if segment.style == style]


def test_refused_packet_is_one_line_from_time_to_remediation() -> None:
    event = by(PROCESS) | {"time": 1_795_564_066_123, "count": 3, "duration": 2_000}
    assert line(event) == (
        "2026-11-24T23:47:46.123Z  MEDIUM  sb1  uid 1000 curl[4242]  TCP 203.0.113.7:443 "
        "https  blocked  \N{MULTIPLICATION SIGN}3 in 2.0 s  [egress]  Use the proxy: set "
        "HTTPS_PROXY=http://10.200.0.1:3128 and try again."
    )


def test_one_line_form_gives_durations_below_a_second_in_milliseconds() -> None:
    for duration, shown in ((0, "0 ms"), (999, "999 ms"), (1000, "1.0 s"), (100_060, "100.1 s")):
        assert f"3 in {shown}  " in line(by(PROCESS) | {"count": 3, "duration": duration})


def test_each_part_has_its_style() -> None:
    event = by(PROCESS) | {"count": 3}
    assert [segment.style for segment in shorthand(event)] == [
        "time", "medium", "sandbox", "who", "what", "outcome", "count", "rule", "hint",
    ]  # fmt: skip


def test_line_of_a_finding_has_stage_totals_and_remediation() -> None:
    found = next(event for event in whole_events() if event["class_uid"] == 2004)
    assert line(found).startswith(
        "2026-01-01T00:00:03.200Z  HIGH    sb1  uid 1000  "
        "Create: Scan blocked: uid 1000 in sandbox sb1  "
        "\N{MULTIPLICATION SIGN}25000 in 3.2 s, flows 4711, destinations 4711, ports 1  [egress]  "
        "1. Find out what uid 1000 in sandbox sb1 runs, and if it should do this. "
    )


def test_outcome_is_the_first_known_attribute() -> None:
    silent = {"disposition_id": 0, "status_code": None}
    words = {"disposition": "Blocked", "action": "Denied", "activity_name": "Open", "status": "Ok"}
    for taken in range(len(words) + 1):
        unknown = dict.fromkeys(list(words)[:taken], "Unknown")
        expected = [word.lower() for word in list(words.values())[taken:]][:1]
        assert styled(tcp4(**silent | words | unknown), "outcome") == expected


@pytest.mark.parametrize(
    ("class_uid", "shown"),
    [
        (
            5019,
            (
                "2026-01-01T00:00:00.000Z  HIGH    sb1  The fence of sandbox sb1 differs "
                "from the installed one, or can't be read: it may block nothing (before: "
                "active).  the table is not as it was installed"
            ),
        ),
        (
            6002,
            (
                "2026-01-01T00:00:00.000Z  HIGH    host-1  3 records were dropped on the "
                "way from the kernel (kmsg): overrun."
            ),
        ),
    ],
)
def test_line_of_an_operational_event_is_its_message(class_uid: int, shown: str) -> None:
    (event,) = (event for event in whole_events() if event["class_uid"] == class_uid)
    assert line(event) == shown


@pytest.mark.parametrize("version", VERSIONS)
def test_an_event_reads_the_same_in_each_version(version: str) -> None:
    for event in whole_events():
        older = at_version(copy.deepcopy(event), version)
        assert older["metadata"]["version"] == version
        assert line(older) == line(event)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("tcp6", "TCP [2001:db8::7]:443 https"),
        ("udp dns", "UDP 203.0.113.7:53 domain"),
    ],
)
def test_destination_has_the_usual_notation(name: str, what: str) -> None:
    assert styled(event_of(name), "what") == [what]


@pytest.mark.parametrize(
    ("facts", "what"),
    [
        ({"connection_info": {"protocol_num": 1}}, "ICMP 10.200.0.2:41254 → 203.0.113.7:443"),
        (
            {"connection_info": {"protocol_num": 253, "direction_id": 2}},
            "IP protocol 253 203.0.113.7:443",
        ),
        ({"connection_info": {}, "dst_endpoint": None}, "from 10.200.0.2:41254"),
        ({"connection_info": {}, "src_endpoint": None}, "203.0.113.7:443"),
        (
            {"connection_info": {"protocol_name": "quic"}, "src_endpoint": None},
            "QUIC 203.0.113.7:443",
        ),
        (
            {
                "connection_info": {"direction_id": 2},
                "dst_endpoint": {"hostname": "db.example", "port": 5432},
            },
            "db.example:5432",
        ),
        (
            {
                "connection_info": {"direction_id": 2},
                "dst_endpoint": {"mac": "02:00:00:00:00:02"},
                "unmapped": {"ethertype": 0x88B5},
            },
            "frame 0x88b5 02:00:00:00:00:02",
        ),
        (
            {
                "connection_info": {"direction_id": 2},
                "dst_endpoint": None,
                "src_endpoint": {"name": "sb1"},
                "unmapped": {"ethertype": 0x0806},
            },
            "ARP",
        ),
        ({"unmapped": {"aggregation": {"reason": "many", "flows": 1}}}, "TCP flows ≥1 https"),
        ({"unmapped": {"aggregation": {"reason": "evicted"}}}, "TCP aggregated flows https"),
    ],
)
def test_line_has_protocol_and_destination(facts: dict[str, Any], what: str) -> None:
    assert styled(tcp4(**facts), "what") == [what]


@pytest.mark.parametrize(
    ("process", "user", "who"),
    [
        ({}, {}, "uid 1000"),
        ({"pid": 7}, {}, "uid 1000 pid 7"),
        ({"name": "curl"}, {}, "uid 1000 curl"),
        ({"pid": 7, "path": "/usr/bin/wget"}, {}, "uid 1000 wget[7]"),
        ({"pid": 7, "file": {"path": "/usr/bin/wget"}}, {}, "uid 1000 wget[7]"),
        ({"pid": 7, "file": {"name": "wget"}}, {}, "uid 1000 wget[7]"),
        ({"pid": 7, "name": "curl"}, {"name": "alice"}, "uid 1000 (alice) curl[7]"),
        ({"name": "curl"}, {"uid": None, "name": "alice"}, "alice curl"),
        ({"name": "curl"}, {"uid": 0}, "uid 0 curl"),
    ],
)
def test_line_names_the_actor_by_the_known_data(
    process: dict[str, Any], user: dict[str, Any], who: str
) -> None:
    assert styled(by(process, **user), "who") == [who]


def _several(pids: list[Any], unnamed: Any = 0, **calls: int) -> list[Any]:
    data = {"processes": [{"pid": pid} | calls for pid in pids], "unnamed": unnamed}
    return [
        {"name": "src_endpoint.ip", "type": "attribution", "data": {"processes": [1, 2]}},
        {"name": "actor.process", "type": "location", "data": {"processes": [1, 2]}},
        {"name": "actor.process", "type": "attribution", "data": data},
    ]


@pytest.mark.parametrize(
    ("enrichments", "who"),
    [
        (_several([1, 2, 3]), "one or more of 3 processes of uid 1000"),
        (_several([1, 2], 2, calls=1), "4 processes of uid 1000"),
        (_several([], 2), "one or more of 2 processes of uid 1000"),
        (_several([1]), "uid 1000"),
        (_several([1, None], True), "one or more of 2 processes of uid 1000"),
        (_several([1, 2], -5), "one or more of 2 processes of uid 1000"),
        (_several([1, 2])[:2], "uid 1000"),
        (["x", None, {"data": []}], "uid 1000"),
        ({"name": "actor.process"}, "uid 1000"),
    ],
)
def test_line_has_the_number_of_candidate_processes(enrichments: Any, who: str) -> None:
    assert styled(tcp4(enrichments=enrichments), "who") == [who]


def test_line_names_one_process_and_counts_the_others() -> None:
    event = by({"pid": 7, "name": "curl"}) | {"enrichments": _several([7, 8], 3, calls=1)}
    assert styled(event, "who") == ["uid 1000 curl[7] and 4 more"]
    alone = by({"pid": 7, "name": "curl"}) | {"enrichments": _several([7])}
    assert styled(alone, "who") == ["uid 1000 curl[7]"]
    unattributed = tcp4(actor=None, enrichments=_several([7, 8]))
    assert styled(unattributed, "who") == ["one or more of 2 processes"]


def test_line_of_a_finding_of_one_attempt_has_its_evidence() -> None:
    one = tcp4()
    evidence = {key: one[key] for key in ("src_endpoint", "dst_endpoint", "connection_info")}
    event = tcp4(
        class_uid=2004,
        activity_name="Update",
        finding_info={"title": "Refused", "related_events_count": 4},
        actor=None,
        evidences=[evidence | {"process": PROCESS}],
    )
    assert styled(event, "who") == ["curl[4242]"]
    assert styled(event, "what") == ["Update: Refused", "TCP 203.0.113.7:443 https"]
    assert styled(event, "count") == ["events 4"]


@pytest.mark.parametrize(
    ("facts", "outcome"),
    [
        ({"disposition_id": 2}, "blocked"),
        ({"disposition_id": 6, "disposition": "Dropped"}, "dropped"),
        ({"disposition_id": 17, "disposition": "Logged"}, "logged"),
        ({"disposition_id": None, "disposition": None, "action": "Observed"}, "observed"),
        ({"disposition_id": None, "disposition": "Unknown", "action": "Unknown"}, "refuse"),
    ],
)
def test_line_has_the_outcome(facts: dict[str, Any], outcome: str) -> None:
    assert styled(tcp4(**facts), "outcome") == [outcome]


@pytest.mark.parametrize(
    ("detail", "hint"),
    [
        ("It was dropped. This is a database's port. Ask.", ["This is a database's port. Ask."]),
        ("Nobody knows", ["Nobody knows"]),
        (None, []),
        ("So. " + "a" * 320, ["a" * 320]),
        ("So. " + "a" * 321, ["a" * 319 + "…"]),
        ("It was dropped. " + "Ask. " * 1000, [("Ask. " * 64)[:319] + "…"]),
    ],
)
def test_hint_does_not_repeat_the_rest_of_the_line(detail: str | None, hint: list[str]) -> None:
    assert styled(tcp4(status_detail=detail), "hint") == hint


@pytest.mark.parametrize(
    ("facts", "label", "style"),
    [
        ({"severity_id": 1}, "INFO  ", "informational"),
        ({"severity_id": 2}, "LOW   ", "low"),
        ({"severity_id": 4}, "HIGH  ", "high"),
        ({"severity_id": 5}, "CRIT  ", "critical"),
        ({"severity_id": 6}, "FATAL ", "critical"),
        ({"severity_id": 99, "severity": "page me"}, '"PAGE ME"', "informational"),
        ({"severity_id": 0, "severity": "Unknown"}, "UNKNOWN", "informational"),
        ({"severity_id": True, "severity": None}, "-     ", "informational"),
    ],
)
def test_line_has_the_severity(facts: dict[str, Any], label: str, style: str) -> None:
    segment = shorthand(tcp4(**facts))[1]
    assert (segment.text, segment.style) == (label, style)


def test_invalid_time_does_not_move_the_columns() -> None:
    for time in (None, 1 << 62, "soon", 1.5):
        assert line(tcp4(time=time)).startswith("-                         MEDIUM  sb1")


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        ({}, "an event of no class"),
        ({"class_uid": 1007}, "an event of class 1007"),
        ({"class_uid": 1007, "type_name": "Process Activity: Launch"}, "Process Activity: Launch"),
        ({"class_uid": 4001, "message": "who knows"}, "who knows"),
        ({"class_uid": 1007, "message": "it ran: so.", "status_detail": "so"}, "it ran: so."),
        ({"class_uid": 1007, "message": "it ran", "status_detail": "see"}, "it ran  see"),
    ],
)
def test_foreign_event_is_shown_by_its_attributes(event: dict[str, Any], shown: str) -> None:
    assert line(event) == f"{'-'.ljust(24)}  {'-'.ljust(6)}  {shown}"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a b", '"a b"'),
        ("x[1]  TCP 9.9.9.9:1", '"x[1]  TCP 9.9.9.9:1"'),
        ('a" [egress]', r'"a\x22 [egress]"'),
        ("\x1b[2J", r'"\x1b[2J"'),
        ("a\nb\u2028\u202e\udcff", r"a\x0ab\u2028\u202e\xff"),
        ("x" * 64, "x" * 64),
        ("x" * 65, "x" * 63 + "…"),
        ("x" * 4096, "x" * 63 + "…"),
        ("\x1b" * 4096, r"\x1b" * 15 + r"\x1" + "…"),
    ],
)
def test_name_can_not_imitate_another_part(name: str, shown: str) -> None:
    event = by({"name": name, "pid": 7}) | {
        "device": {"hostname": name},
        "firewall_rule": {"name": name},
        "src_endpoint": {"ip": name},
        "connection_info": {},
        "unmapped": {},
    }
    rule = shown if shown.startswith('"') else f"[{shown}]"
    assert styled(event, "who") == [f"uid 1000 {shown}[7]"]
    assert styled(event, "sandbox") == [shown]
    assert styled(event, "rule") == [rule]
    assert styled(event, "what") == [f"{shown} → 203.0.113.7:443"]


@given(EVENTS)
def test_any_event_is_one_printable_line(event: dict[str, Any]) -> None:
    segments = shorthand(event)
    shown = plain(segments)
    assert shown.isprintable()
    shown.encode()
    assert len(shown) < 1500
    assert shown == GAP.join(segment.text for segment in segments)
    assert all(segment.text for segment in segments)


def test_number_that_ocsf_cannot_hold_is_left_out() -> None:
    least, most = -(1 << 63), (1 << 63) - 1
    for pid, who in ((least, f"pid {least}"), (least - 1, ""), (most, f"pid {most}")):
        assert styled(by({"pid": pid}), "who") == [f"uid 1000 {who}".strip()]
    assert styled(by({"pid": most + 1}), "who") == ["uid 1000"]


def test_count_is_shown_from_two_packets_on() -> None:
    for count, shown in ((None, []), (0, []), (1, []), (2, ["\N{MULTIPLICATION SIGN}2"])):
        assert styled(tcp4(count=count, duration=None), "count") == shown


def test_protocol_has_the_name_that_people_use() -> None:
    for number, name in ((4, "IP in IP"), (5, "ST"), (41, "IPv6 in IP"), (58, "ICMPv6")):
        event = tcp4(connection_info={"protocol_num": number}, src_endpoint=None, dst_endpoint=None)
        assert styled(event, "what") == [name]
    for ethertype, name in ((0x0805, "frame 0x0805"), (0x0806, "ARP"), (0x0807, "frame 0x0807")):
        frame = tcp4(connection_info={}, src_endpoint=None, dst_endpoint=None)
        assert styled(frame | {"unmapped": {"ethertype": ethertype}}, "what") == [name]


def test_scope_is_the_first_known_name() -> None:
    end = {"name": "end", "container": {"name": "container"}}
    device = {"hostname": "host", "name": "device"}
    event = tcp4(
        connection_info={"direction_id": 2},
        unmapped={"prefix": "ocsf-nft:prefix:egress:", "sandbox": "sandbox"},
        resources=[{"name": "resource"}, {"name": "other"}],
        src_endpoint=end,
        dst_endpoint={"name": "far-end"},
        device=device,
    )
    inbound = event | {"connection_info": {"direction_id": 1}}
    named = [("prefix", event["unmapped"]), ("sandbox", event["unmapped"])]
    named += [("name", event["resources"][0]), ("name", end), ("name", end["container"])]
    named += [("hostname", device), ("name", device)]
    for key, holder in named:
        (scope,) = styled(event, "sandbox")
        assert scope == ("prefix" if key == "prefix" else holder[key])
        del holder[key]
    assert styled(event | {"resources": []}, "sandbox") == []
    assert styled(inbound, "sandbox") == ["far-end"]
