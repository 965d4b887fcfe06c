"""Lines of templates, which equal the line of the model's event, byte for byte."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from ipaddress import ip_network
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.attempt import Attempt
from ocsf_nft.log_prefixes import firewall_of
from ocsf_nft.ocsf import actors, dns_queries, endpoints, event_slots, templates
from ocsf_nft.ocsf.activity import derive
from ocsf_nft.ocsf.addresses import address_kind
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.foreign_log import logging_host
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.severity import SeverityRule
from ocsf_nft.ocsf.templates import SIGHTINGS
from ocsf_nft.ocsf.versions import STORED, VERSIONS, line_at
from ocsf_nft.process import Attribution, Container
from tests.conformance.attributed import ATTRIBUTED
from tests.conformance.corpus import (
    ATTEMPTS,
    CONTAINED,
    CONTEXT,
    IDENTIFIED,
    LABELLED,
    NOW_NS,
    OUT,
    RECORDS,
    TCP,
    V4,
    record,
)
from tests.conformance.incidents import GOING_ON
from tests.strategies import (
    ADDRESSES4,
    ADDRESSES6,
    ATTRIBUTIONS,
    DETAILS,
    HOSTILE_TEXT,
    LOG_HOSTS,
    PORTS,
    QUESTIONS,
    TIMESTAMPS,
    UINT16,
    UINT32,
    records,
)

if TYPE_CHECKING:
    from ocsf_nft.process import Process
    from ocsf_nft.record import LogHost, Record

#: Each kind of rule, and several rules in order.
_SEVERITIES: Final = (
    SeverityRule(severity=Severity.CRITICAL, port=443, uid=1000),
    SeverityRule(severity=Severity.LOW, destination=ip_network("203.0.113.0/24"), protocol=6),
    SeverityRule(severity=Severity.LOW, destination=ip_network("2000::/3")),
    SeverityRule(severity=Severity.HIGH, uid=0),
    SeverityRule(severity=Severity.INFORMATIONAL, port=40_000),
    SeverityRule(severity=Severity.HIGH, sandbox="sb1", rule="link"),
)
CONTEXTS: Final = {
    "a host": CONTEXT,
    "a container": CONTAINED,
    "labels": LABELLED,
    "an identity": IDENTIFIED,
    "nothing": Context(),
    "severities": replace(CONTEXT, severities=_SEVERITIES),
}
_EVERY_ATTEMPT: Final = {
    **{name: Attempt.of(each) for name, each in RECORDS.items()},
    **ATTEMPTS,
    **ATTRIBUTED,
    **GOING_ON,
}
#: Texts that a template might mistake for the placeholder of a value.
_IMITATIONS: Final = (
    "%", "%%", "%d", "%b", "%(name)s", "%c%n", "11111", "22222", "33333", "44444", "12121",
    "34343", "1", "3", ':33333 by rule "x"', "1111111111", "333331111", '11111"', "{}",
    '{"x":true,', '"prefix":', "\\", '\\"', "\x7f", "ü",
)  # fmt: skip
_OF_FRAGMENTS: Final = ("fragment_offset", "more_fragments", "incomplete_bytes")
_NAMES_OF_OTHER_FACTS: Final = (
    "arp", "prefix", "mac_source", "mac_destination", "source", "destination", "source_port",
    "destination_port", "gid", "ethertype", "merged",
)  # fmt: skip
DEEP: Final[dict[str, Any]] = functools.reduce(
    lambda inner, _: {"quoted": inner}, range(12), {"ttl": 1}
)

_ODD_DETAILS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {
        "x": (1 << 53) - 1,
        "y": 1 << 53,
        "z": (1 << 63) - 1,
        "over": 1 << 63,
        "under": -(1 << 63),
    },
    {"text": "a\x7fb", "\x7f": 1},
    {"text": '\\ " { } \n ü \udcff'},
    {"flag": True, "no flag": False},
    {"quoted": {"source": "192.0.2.1", "quoted": {"ttl": 1 << 70}}},
    {"quoted": MappingProxyType({"ttl": 1})},
    *({name: 5, "a": 1} for name in _NAMES_OF_OTHER_FACTS),
    {"icmp_type": "8", "icmp_code": 0},
    {"icmp_type": True, "icmp_code": False},
    {"icmp_type": 1 << 70, "icmp_code": -1},
    {"arp": {"operation": 2}},
    {"icmp_type": 3, "icmp_code": 13},
    {"icmp_type": 1, "icmp_code": 1},
    {"fragment_offset": 0, "more_fragments": False, "incomplete_bytes": 0},
    {"more_fragments": True, "z": 1, "fragment_offset": 185},
    *({name: value} for name in _OF_FRAGMENTS for value in (0, True, "x", {"x": 1})),
    DEEP,
)


def line_of_model(mapper: Mapper, attempt: Attempt, version: str, now_ns: int = NOW_NS) -> bytes:
    return line_at(mapper.network_activity(attempt, processed_ns=now_ns).to_json(), version)


def has_template(mapper: Mapper, attempt: Attempt, version: str = STORED) -> bool:
    derived = derive(attempt, mapper._context.severities)
    shape = event_slots.shape_of(attempt, derived, mapper.around(attempt), version)
    return shape in mapper._templates._stored


def assert_rendered(mapper: Mapper, attempt: Attempt, version: str = STORED) -> bool:
    """Render often enough to create a template; return whether there is one."""
    lines = {
        mapper.line(attempt, processed_ns=NOW_NS, version=version) for _ in range(SIGHTINGS + 1)
    }
    assert lines == {line_of_model(mapper, attempt, version)}
    return has_template(mapper, attempt, version)


@st.composite
def attempts(draw: st.DrawFn, logged: Record) -> Attempt:
    """Draw the attempt of a record, or a window that the record represents."""
    by = draw(st.none() | ATTRIBUTIONS)
    if draw(st.booleans()):
        return replace(Attempt.of(logged), attribution=by)
    start = draw(TIMESTAMPS)
    return Attempt(
        record=logged,
        packets=draw(st.sampled_from([0, 1, 2]) | st.integers(1, (1 << 63) - 1)),
        bytes=draw(st.none() | st.integers(0, (1 << 63) - 1)),
        start_ns=start,
        end_ns=draw(st.sampled_from([start, start + 999_999]) | TIMESTAMPS),
        attribution=by,
        questions=draw(st.just(()) | st.lists(QUESTIONS, max_size=3, unique=True).map(tuple)),
    )


@st.composite
def others(draw: st.DrawFn, of: Attempt) -> Attempt:
    """Draw another attempt of the same shape: of another sandbox, and by another process."""
    logged, origin = of.record, of.record.origin
    uid = None if logged.uid is None else draw(UINT32)
    gid = None if logged.gid is None else draw(UINT32)

    def other(value: Any, values: st.SearchStrategy[Any]) -> Any:
        return None if value is None else draw(values)

    def port(value: int | None) -> int | None:
        free = UINT16.filter(lambda port: port not in event_slots.PORTS)
        return draw(free) if value not in event_slots.PORTS else value

    def address(text: str | None) -> str | None:
        drawn = draw(ADDRESSES4 | ADDRESSES6)
        return drawn if address_kind(drawn) is address_kind(text) else text

    def mac(text: str | None) -> str | None:
        return draw(_MACS) if text is not None and endpoints.is_mac(text) else text

    start_ms = draw(st.integers(0, 7_258_118_400_000))
    is_instant = of.start_ns // 1_000_000 == of.end_ns // 1_000_000
    end_ms = start_ms if is_instant else start_ms + draw(st.integers(1, 1 << 40))
    special = {
        name: value for name, value in logged.details.items() if name in event_slots._RELEVANT
    }
    copied = {
        name: value for name, value in draw(DETAILS).items() if name not in event_slots._RELEVANT
    }
    return replace(
        of,
        packets=of.packets if of.packets < 2 else draw(st.integers(2, (1 << 63) - 1)),
        bytes=other(of.bytes, st.integers(0, (1 << 63) - 1)),
        start_ns=start_ms * 1_000_000 + draw(st.integers(0, 999_999)),
        end_ns=end_ms * 1_000_000 + draw(st.integers(0, 999_999)),
        record=replace(
            logged,
            sandbox=draw(other_texts(logged.sandbox)),
            in_interface=draw(other_texts(logged.in_interface)),
            out_interface=draw(other_texts(logged.out_interface)),
            mac_source=mac(logged.mac_source),
            mac_destination=mac(logged.mac_destination),
            prefix=logged.prefix if firewall_of(logged.prefix) else draw(HOSTILE_TEXT),
            source=address(logged.source),
            destination=address(logged.destination),
            source_port=port(logged.source_port),
            destination_port=port(logged.destination_port),
            uid=uid,
            gid=gid,
            details=copied | special if draw(st.booleans()) else special | copied,
            time_ns=draw(TIMESTAMPS),
            received_ns=draw(TIMESTAMPS),
            origin=replace(
                origin,
                identity=draw(HOSTILE_TEXT),
                raw=draw(HOSTILE_TEXT | st.sampled_from(_IMITATIONS)),
                sequence=other(origin.sequence, st.integers(0, (1 << 63) - 1)),
                original_time=other(origin.original_time, HOSTILE_TEXT),
                host=other_host(origin.host, draw(LOG_HOSTS)),
            ),
        ),
        attribution=draw(other_attributions(of.attribution, logged, uid, gid)),
        questions=tuple(
            replace(each, name=draw(_DNS_NAMES.filter(lambda name: len(name) <= 64)))
            for each in of.questions
        )
        if all(map(dns_queries.is_usual, of.questions))
        else of.questions,
    )


_DNS_NAMES: Final = QUESTIONS.map(lambda question: question.name)
_MACS: Final = st.from_regex(r"\A[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")
_FILLED: Final = HOSTILE_TEXT.filter(bool)


def other_host(host: LogHost | None, drawn: LogHost) -> LogHost | None:
    """Return the drawn host, if it has the shape of ``host``."""
    is_alike = host is not None and logging_host(drawn).shape == logging_host(host).shape
    return drawn if is_alike else host


def other_texts(text: str | None) -> st.SearchStrategy[str | None]:
    return _FILLED if text else st.just(text)


@st.composite
def other_attributions(
    draw: st.DrawFn, by: Attribution | None, logged: Record, uid: int | None, gid: int | None
) -> Attribution | None:
    """Draw another attribution of the same shape, for a record with other ids."""
    if by is None or by.seen or by.unnamed:
        return by
    process = by.process
    if process is not None:
        other = draw(other_processes(process))
        container = process.container
        process = replace(
            other,
            ancestors=tuple(draw(other_processes(each)) for each in process.ancestors),
            uid=_other_id(draw, process.uid, logged.uid, uid),
            gid=_other_id(draw, process.gid, logged.gid, gid),
            container=None if container is None else draw(other_containers(container)),
        )
    return replace(
        by,
        process=process,
        user_name=draw(other_texts(by.user_name)),
        group_name=draw(other_texts(by.group_name)),
    )


def _other_id(
    draw: st.DrawFn, of_process: int | None, of_record: int | None, new: int | None
) -> Any:
    if of_process == of_record:
        return new
    return None if of_process is None else draw(UINT32.filter(lambda drawn: drawn != new))


@st.composite
def other_processes(draw: st.DrawFn, process: Process) -> Process:
    numbers = st.integers(1, 1 << 22)
    path = process.path
    if path is not None and actors.program(process):
        drawn = draw(_FILLED).replace("/", "-")
        path = f"memfd:{drawn}" if path.startswith("memfd:") else f"/usr/bin/{drawn}"
    elif path:
        path = f"/{draw(_FILLED)}/"
    found = replace(
        process,
        pid=draw(numbers),
        tid=None if process.tid is None else draw(numbers),
        name=draw(other_texts(process.name)),
        path=path,
        sha256=_other_hash(draw, process.sha256),
        cmd_line=draw(other_texts(process.cmd_line)),
        working_directory=draw(other_texts(process.working_directory)),
        created_ns=None if process.created_ns is None else draw(TIMESTAMPS),
        namespace_pid=None if process.namespace_pid is None else draw(numbers),
        user_name=draw(other_texts(process.user_name)),
        group_name=draw(other_texts(process.group_name)),
        unit=draw(other_texts(process.unit)),
    )
    is_alike = event_slots._process_shape(replace(found, ancestors=())) == (
        event_slots._process_shape(replace(process, ancestors=()))
    )
    return found if is_alike else process  # only one of them has a long name


def _other_hash(draw: st.DrawFn, sha256: str | None) -> str | None:
    if sha256 is None or not actors.is_valid_hash(sha256):
        return sha256
    return draw(st.from_regex(r"\A[0-9a-f]{64}\Z"))


@st.composite
def other_containers(draw: st.DrawFn, container: Container) -> Container:
    pod = container.pod_uid
    has_valid_pod = pod is not None and actors.is_valid_pod_uid(pod)
    return Container(
        uid=draw(other_texts(container.uid)),
        name=draw(other_texts(container.name)),
        runtime=draw(other_texts(container.runtime)),
        image_uid=draw(other_texts(container.image_uid)),
        image_name=draw(other_texts(container.image_name)),
        pod_uid=str(draw(st.uuids())) if has_valid_pod else pod,
        orchestrator=draw(other_texts(container.orchestrator)),
        labels=tuple(draw(other_texts(each)) or "" for each in container.labels),
    )


def _firewall(attempt: Attempt) -> str | None:
    return firewall_of(attempt.record.prefix)


_FRESH: Final = st.sampled_from(list(CONTEXTS.values())).map(Mapper)


@given(data=st.data(), mapper=_FRESH, logged=records(), version=st.sampled_from(VERSIONS))
def test_template_renders_any_record_as_model(
    data: st.DataObject, mapper: Mapper, logged: Record, version: str
) -> None:
    assert_rendered(mapper, data.draw(attempts(logged)), version)


@given(data=st.data(), mapper=_FRESH, logged=records(), version=st.sampled_from(VERSIONS))
def test_template_of_one_attempt_renders_all_of_its_shape(
    data: st.DataObject, mapper: Mapper, logged: Record, version: str
) -> None:
    attempt = data.draw(attempts(logged))
    has_one = assert_rendered(mapper, attempt, version)
    for another in data.draw(st.lists(others(attempt), min_size=1, max_size=4)):
        now_ns = data.draw(TIMESTAMPS)
        rendered = mapper.line(another, processed_ns=now_ns, version=version)
        assert rendered == line_of_model(mapper, another, version, now_ns)
        # A record of another severity, or of another firewall, has another shape.
        if mapper._context.severities or _firewall(another) != _firewall(attempt):
            continue
        assert has_template(mapper, another, version) is has_one


@given(data=st.data(), logged=records(), version=st.sampled_from(VERSIONS))
def test_sandboxes_with_other_proxies_rules_and_containers_share_a_template(
    data: st.DataObject, logged: Record, version: str
) -> None:
    cache = templates.Templates(CONTAINED.host)
    attempt = data.draw(attempts(logged))
    has_one = assert_rendered(Mapper(CONTAINED, cache), attempt, version)
    container = CONTAINED.container
    assert container is not None
    other = replace(
        CONTAINED,
        container=data.draw(other_containers(container)),
        proxies=tuple(
            replace(
                each, address=each.address + data.draw(st.integers(1, 99)), port=data.draw(PORTS)
            )
            for each in CONTAINED.proxies
        ),
        rules={name: f"inet/ocsf_nft/x/{data.draw(UINT16)}" for name in CONTAINED.rules},
    )
    mapper = Mapper(other, cache)
    for another in data.draw(st.lists(others(attempt), min_size=1, max_size=3)):
        rendered = mapper.line(another, processed_ns=NOW_NS, version=version)
        assert rendered == line_of_model(mapper, another, version)
        if _firewall(another) == _firewall(attempt):
            assert has_template(mapper, another, version) is has_one


def is_of_several(attempt: Attempt) -> bool:
    """Return whether the attribution names several candidate processes."""
    by = attempt.attribution
    return by is not None and bool(by.seen or by.unnamed)


def _has_usual_questions(attempt: Attempt) -> bool:
    return len(attempt.questions) < 2 and all(map(dns_queries.is_usual, attempt.questions))


@pytest.mark.parametrize(
    ("context", "version"),
    [
        *(("a container", version) for version in VERSIONS),
        *((context, STORED) for context in CONTEXTS if context != "a container"),
    ],
)
def test_template_renders_every_known_attempt_as_model(context: str, version: str) -> None:
    mapper = Mapper(CONTEXTS[context])
    without = {
        name for name, each in _EVERY_ATTEMPT.items() if not assert_rendered(mapper, each, version)
    }
    assert without == {
        *(
            name
            for name, each in _EVERY_ATTEMPT.items()
            if each.aggregation is not None or is_of_several(each)
        ),
        *(name for name, each in _EVERY_ATTEMPT.items() if not _has_usual_questions(each)),
        "no address",
        "infiniband",
        *(name for name in _EVERY_ATTEMPT if "link arp" in name),
    }


@given(
    logged=st.sampled_from(list(RECORDS.values())),
    texts=st.lists(st.sampled_from(_IMITATIONS) | HOSTILE_TEXT, min_size=12, max_size=12),
    ports=st.tuples(*(st.sampled_from([1, 11, 11111, 22222, 33333, 44444]) | PORTS,) * 2),
    version=st.sampled_from(VERSIONS),
)
def test_no_text_is_mistaken_for_a_placeholder(
    logged: Record, texts: list[str], ports: tuple[int, int], version: str
) -> None:
    logged = replace(
        logged,
        sandbox=None if logged.sandbox is None else texts[0],
        rule=texts[1],
        prefix=texts[2],
        in_interface=None if logged.in_interface is None else texts[3],
        out_interface=None if logged.out_interface is None else texts[4],
        mac_source=None if logged.mac_source is None else texts[5],
        source_port=ports[0],
        destination_port=ports[1],
        details={**logged.details, texts[6]: texts[7]},
        origin=replace(logged.origin, raw=texts[8], log_source=texts[8], identity=texts[6]),
    )
    mapper = Mapper(CONTEXT)
    by = Attribution(method="none", reason=texts[9], user_name=texts[10], group_name=texts[11])
    for each in (logged, replace(logged, source_port=ports[1], destination_port=ports[0])):
        assert_rendered(mapper, replace(Attempt.of(each), attribution=by), version)


def test_template_renders_any_details_as_model(subtests: pytest.Subtests) -> None:
    mapper = Mapper(CONTEXT)
    ends = (
        {**V4, **OUT},
        {"prefix": "x", "source_port": 1, "destination_port": 2, "mac_source": "80:00"},
    )
    others = ({"gid": 9, "ethertype": 0x0800, "mac_destination": "80:00"}, {"uid": 1000})
    for details in _ODD_DETAILS:
        with subtests.test(details=str(details)):
            for held, end, other, protocol in itertools.product(
                (details, MappingProxyType(details)), ends, others, (1, 6, 58)
            ):
                logged = record(**end, **other, protocol=protocol, details=held)
                assert_rendered(mapper, Attempt.of(logged))


@pytest.mark.parametrize("end", ["source", "destination"])
def test_endpoint_without_an_address_is_rendered_as_model(end: str) -> None:
    assert not assert_rendered(Mapper(CONTEXT), Attempt.of(record(**V4 | {end: "nowhere"}, **TCP)))


def test_port_is_found_after_a_value_with_the_same_digit() -> None:
    (slot,) = templates._slots_of_ports(b"x111111y", b"x122222y")
    assert (slot.start, slot.end, slot.number) == (2, 7, 0)
