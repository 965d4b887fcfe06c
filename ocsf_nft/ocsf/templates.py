"""Lines of Network Activity events, written without making the events.

The *shape* of an attempt is all that its event depends on apart from the values that the event
only copies. Attempts of one shape have one template: the JSON with a place for each value. It is
made of the shape alone, as the JSON of a real event: of an attempt of that shape whose values are
marks that nobody can guess, so that where a mark turns up, its value is to stand. So what an event
looks like is said in :mod:`ocsf_nft.ocsf.activity` and in the models, and nowhere else.
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import orjson

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf import packet_outcome, services
from ocsf_nft.ocsf.activity import Derived
from ocsf_nft.ocsf.safe_text import encodable, plain, printable, visible
from ocsf_nft.ocsf.versions import line_at
from ocsf_nft.record import Origin, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ocsf_nft.ocsf.activity import Activities
    from ocsf_nft.ocsf.addresses import Place
    from ocsf_nft.ocsf.enums import Severity
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Detail, LogFormat, Verdict

#: Templates that are kept. Who sends packets can choose among so many shapes as he likes.
KEPT: Final = 512
#: A shape that does not come again is not worth a template, which takes as long as three events.
SIGHTINGS: Final = 3
#: What their lines may take together, and one alone: he can choose how much text there is, too.
KEPT_BYTES: Final = 3 << 20
_LONGEST_BYTES: Final = 1 << 14

#: A port, a user or a group that is only copied. All others may mean something.
_COPIED: Final = -1
_PORTS: Final = services.PORTS | packet_outcome.NAME_PORTS | {None}
#: Details that decide what a packet is, and what became of it.
_DECISIVE: Final = (
    "icmp_type", "icmp_code", "fragment_offset", "more_fragments", "incomplete_bytes"
)  # fmt: skip
#: Details that decide it and are no numbers, and names that other facts have in ``unmapped``.
_SPECIAL: Final = frozenset({
    "arp", "prefix", "sandbox", "mac_source", "mac_destination", "source_port",
    "destination_port", "gid", "ethertype", "unit", "pod_uid", "sha256",
})  # fmt: skip
_NOT_JUST_COPIED: Final = _SPECIAL.union(_DECISIVE)

#: What JSON writes as it is, of texts and numbers; braces would be of an object in the object.
_AS_IT_IS: Final = bytes(code for code in range(0x20, 0x7F) if code not in b"\\{}")

#: Ports can't be unguessable. They are where two events differ that differ in nothing else.
_PORT_MARKS: Final = ((11111, 22222), (33333, 44444))
#: No mark is shorter. What the shape has (a port, a few packets) is shorter than this.
_MARK_CHARACTERS: Final = 18

_Values: TypeAlias = tuple[bytes | int | None, ...]


class Shape(NamedTuple):
    """What the line of an event depends on, apart from what it copies.

    A port is ``_COPIED`` where that is all that becomes of it, as are ``uid`` and ``gid`` where
    they are not those of a process; ``packets`` is 2 where it is more than one. A process that
    tries one thing after another is the same each time, and so it is a part of the shape.
    """

    version: str
    sandbox: str | None
    rule: str
    verdict: Verdict | None
    in_interface: str | None
    out_interface: str | None
    mac_source: str | None
    mac_destination: str | None
    ethertype: int | None
    ip_version: Literal[4, 6] | None
    source: Place | None
    destination: Place | None
    protocol: int | None
    source_port: int | None
    destination_port: int | None
    tcp_flags: int | None
    details: tuple[tuple[str, int], ...]
    log_source: str
    log_format: LogFormat
    severity: Severity | None
    packets: int
    is_moment: bool
    has_bytes: bool
    uid: int | None
    gid: int | None
    has_sequence: bool
    has_original_time: bool
    has_community_uid: bool
    attribution: Attribution | None


class _Template(NamedTuple):
    """The line with a ``%`` place for each value, and which values go there."""

    form: bytes
    pick: Callable[[_Values], tuple[Any, ...]]


class Templates:
    """The templates of one context, as many as are kept."""

    def __init__(self, activities: Activities) -> None:
        self._activities = activities
        self._kept: dict[Shape, _Template] = {}
        self._kept_bytes = 0
        self._seen: Counter[int] = Counter()
        self._lock = threading.Lock()

    def line(
        self, attempt: Attempt, of_it: Derived, *, processed_ns: int, version: str
    ) -> bytes | None:
        """The line of an attempt's event; None when there is no template for it, or not yet."""
        shape = _shape(attempt, of_it, version)
        if shape is None:
            return None
        template = self._kept.get(shape) or self._new(shape)
        if template is None:
            return None
        return template.form % template.pick(_values(attempt, of_it, processed_ns))

    def _new(self, shape: Shape) -> _Template | None:
        sighting = hash(shape)  # the shape itself would have to be kept
        with self._lock:
            if len(self._seen) >= KEPT:
                self._seen.clear()
            self._seen[sighting] += 1
            if self._seen[sighting] != SIGHTINGS:
                return None
            template = _template(self._activities, shape)
            size = len(template.form)
            if size > _LONGEST_BYTES:  # it stays seen, so that it is not made again and again
                return None
            del self._seen[sighting]
            self._kept[shape] = template
            self._kept_bytes += size
            while len(self._kept) > KEPT or self._kept_bytes > KEPT_BYTES:
                self._kept_bytes -= len(self._kept.pop(next(iter(self._kept))).form)
        return template


def _shape(attempt: Attempt, of_it: Derived, version: str) -> Shape | None:
    """The shape of an attempt; None for one that is so rare that it needs no template."""
    record, origin, by = attempt.record, attempt.record.origin, attempt.attribution
    if attempt.aggregation is not None:
        return None
    if by is not None and (by.seen or by.unnamed):
        return None
    if of_it.source is None and record.source is not None:
        return None
    if of_it.destination is None and record.destination is not None:
        return None
    details: tuple[tuple[str, int], ...] = ()
    if not _NOT_JUST_COPIED.isdisjoint(record.details):
        decisive = _decisive(record.details)
        if decisive is None:
            return None
        details = decisive
    is_known = by is not None and by.process is not None
    return Shape(
        version,
        record.sandbox,
        record.rule,
        record.verdict,
        record.in_interface,
        record.out_interface,
        record.mac_source,
        record.mac_destination,
        record.ethertype,
        record.ip_version,
        of_it.source,
        of_it.destination,
        record.protocol,
        record.source_port if record.source_port in _PORTS else _COPIED,
        record.destination_port if record.destination_port in _PORTS else _COPIED,
        record.tcp_flags,
        details,
        origin.log_source,
        origin.log_format,
        of_it.severity,
        min(attempt.packets, 2),
        attempt.start_ns // 1_000_000 == attempt.end_ns // 1_000_000,
        attempt.bytes is not None,
        record.uid if is_known or record.uid is None else _COPIED,
        record.gid if is_known or record.gid is None else _COPIED,
        origin.sequence is not None,
        origin.original_time is not None,
        of_it.community_uid is not None,
        by,
    )


def _decisive(details: Mapping[str, Detail]) -> tuple[tuple[str, int], ...] | None:
    """Of details those that decide, if all of these are numbers and no name is taken twice."""
    if not _SPECIAL.isdisjoint(details):
        return None
    found = [(name, details[name]) for name in _DECISIVE if name in details]
    numbers = tuple((name, value) for name, value in found if isinstance(value, int))
    return numbers if len(numbers) == len(found) else None


def _values(attempt: Attempt, of_it: Derived, processed_ns: int) -> _Values:
    """What the line of an attempt copies, as it stands there; both ports first."""
    record, origin = attempt.record, attempt.record.origin
    start, end = attempt.start_ns // 1_000_000, attempt.end_ns // 1_000_000
    original = origin.original_time
    return (
        record.source_port,
        record.destination_port,
        None if record.source is None else record.source.encode(),
        None if record.destination is None else record.destination.encode(),
        record.uid,
        record.gid,
        attempt.packets,
        attempt.bytes,
        record.time_ns // 1_000_000,
        start,
        end,
        end - start,
        of_it.uid.encode(),
        of_it.correlation_uid.encode(),
        None if of_it.community_uid is None else of_it.community_uid.encode(),
        of_it.raw_bytes,
        printable(orjson.dumps(encodable(origin.raw))),
        _members(record.details),
        orjson.dumps(visible(record.prefix)),
        None if original is None else orjson.dumps(visible(original)),
        orjson.dumps(visible(origin.identity)),
        origin.sequence,
        record.received_ns // 1_000_000,
        processed_ns // 1_000_000,
    )


def _members(details: Mapping[str, Detail]) -> bytes:
    """The members that ``plain(details)`` has in JSON, with a comma after each."""
    try:
        told = orjson.dumps(details, option=orjson.OPT_STRICT_INTEGER)
    except TypeError:  # a long number, a lone surrogate, a mapping that is no dict
        told = orjson.dumps(plain(details))
    if told[1:-1].translate(None, _AS_IT_IS):
        told = orjson.dumps(plain(details))
    return told[1:-1] + b"," if details else b""


def _template(activities: Activities, shape: Shape) -> _Template:
    attempt, of_it, processed_ns = _specimen(shape)
    one, other = (
        line_at(activities.event(each, of_it, processed_ns=processed_ns).to_json(), shape.version)
        for each in (_with_ports(attempt, 0), _with_ports(attempt, 1))
    )
    values = _values(attempt, of_it, processed_ns)
    holes = sorted([*_holes_of_ports(one, other), *_holes(one, values)])
    numbers = [hole.number for hole in holes]
    places = [b"%d" if isinstance(values[number], int) else b"%b" for number in numbers] + [b""]
    starts, ends = [0, *(hole.end for hole in holes)], [*(hole.start for hole in holes), len(one)]
    literals = [
        one[start:end].replace(b"%", b"%%") for start, end in zip(starts, ends, strict=True)
    ]
    form = b"".join(literal + place for literal, place in zip(literals, places, strict=True))
    return _Template(form, itemgetter(*numbers))


def _specimen(shape: Shape) -> tuple[Attempt, Derived, int]:
    """An attempt of a shape, all of whose values but ports are marks, and when it is processed."""
    start = _number()
    record = Record(
        prefix=_text(),
        sandbox=shape.sandbox,
        rule=shape.rule,
        verdict=shape.verdict,
        in_interface=shape.in_interface,
        out_interface=shape.out_interface,
        mac_source=shape.mac_source,
        mac_destination=shape.mac_destination,
        ethertype=shape.ethertype,
        ip_version=shape.ip_version,
        source=None if shape.source is None else _address(shape.source),
        destination=None if shape.destination is None else _address(shape.destination),
        protocol=shape.protocol,
        source_port=shape.source_port,
        destination_port=shape.destination_port,
        tcp_flags=shape.tcp_flags,
        uid=_number() if shape.uid == _COPIED else shape.uid,
        gid=_number() if shape.gid == _COPIED else shape.gid,
        details={**dict(shape.details), _text(): True},
        time_ns=_number() * 1_000_000,
        received_ns=_number() * 1_000_000,
        origin=Origin(
            transport="replay",
            identity=_text(),
            log_source=shape.log_source,
            log_format=shape.log_format,
            raw=_text(),
            sequence=_number() if shape.has_sequence else None,
            original_time=_text() if shape.has_original_time else None,
        ),
    )
    attempt = Attempt(
        record=record,
        packets=_number() if shape.packets == 2 else shape.packets,
        bytes=_number() if shape.has_bytes else None,
        start_ns=start * 1_000_000,
        end_ns=(start if shape.is_moment else start + _number()) * 1_000_000,
        attribution=shape.attribution,
    )
    of_it = Derived(
        source=shape.source,
        destination=shape.destination,
        severity=shape.severity,
        uid=_text(),
        correlation_uid=_text(),
        community_uid=_text() if shape.has_community_uid else None,
        raw_bytes=_number(),
    )
    return attempt, of_it, _number() * 1_000_000


def _number() -> int:
    """A mark: 18 or 19 digits, twice which OCSF's numbers still hold."""
    return (1 << 59) + secrets.randbits(59)


def _text() -> str:
    return secrets.token_hex(16)


def _address(where: Place) -> str:
    """A mark in place of an address; what is written with colons is told in brackets."""
    return f"{_text()}:" if where.version == 6 else _text()


def _with_ports(attempt: Attempt, which: int) -> Attempt:
    source, destination = (marks[which] for marks in _PORT_MARKS)
    record = attempt.record
    return replace(
        attempt,
        record=replace(
            record,
            source_port=source if record.source_port == _COPIED else record.source_port,
            destination_port=(
                destination if record.destination_port == _COPIED else record.destination_port
            ),
        ),
    )


class _Hole(NamedTuple):
    """From where to where a value stands in a line, and its number in ``_Values``."""

    start: int
    end: int
    number: int


def _holes_of_ports(one: bytes, other: bytes) -> Iterator[_Hole]:
    for number, (here, there) in enumerate(_PORT_MARKS):
        mark, other_mark = b"%d" % here, b"%d" % there
        for start in _places(mark, one):
            if other.startswith(other_mark, start):
                yield _Hole(start, start + len(mark), number)


def _holes(line: bytes, values: _Values) -> Iterator[_Hole]:
    marks: dict[bytes, int] = {}
    for number, value in enumerate(values):
        text = b"%d" % value if isinstance(value, int) else value or b""
        if len(text) >= _MARK_CHARACTERS:
            marks[text] = number
    for mark, number in marks.items():
        for start in _places(mark, line):
            yield _Hole(start, start + len(mark), number)


def _places(mark: bytes, line: bytes) -> Iterator[int]:
    place = line.find(mark)
    while place >= 0:
        yield place
        place = line.find(mark, place + 1)
