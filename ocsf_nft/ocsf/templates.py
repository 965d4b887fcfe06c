"""Templates that make the JSON of Network Activity events faster than the pydantic models do.

Events that differ only in copied values, such as times, share a template: JSON with slots for these
values.
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
    from ocsf_nft.ocsf.addresses import AddressKind
    from ocsf_nft.ocsf.enums import Severity
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Detail, LogFormat, Verdict

#: Maximum number of templates. A sender of packets can cause any number of shapes.
MAX_TEMPLATES: Final = 512
#: Occurrences of a shape before it gets a template, which takes as long to make as three events.
SIGHTINGS: Final = 3
#: Maximum size of all templates, and of one: a sender can also choose the length of texts.
MAX_TEMPLATE_BYTES: Final = 3 << 20
_MAX_BYTES_EACH: Final = 1 << 14

#: Shape of a port, a user or a group that is only copied. Other values may affect the event.
_COPIED: Final = -1
_PORTS: Final = services.PORTS | packet_outcome.NAME_PORTS | {None}
#: Details that affect the kind and the outcome of a packet.
_DECISIVE: Final = (
    "icmp_type", "icmp_code", "fragment_offset", "more_fragments", "incomplete_bytes"
)  # fmt: skip
#: Details that affect the packet and are not numbers, and names of other facts in ``unmapped``.
_SPECIAL: Final = frozenset({
    "arp", "prefix", "sandbox", "mac_source", "mac_destination", "source_port",
    "destination_port", "gid", "ethertype", "unit", "pod_uid", "sha256",
})  # fmt: skip
_RELEVANT: Final = _SPECIAL.union(_DECISIVE)

#: Characters that JSON does not escape. Braces are excluded: they would be of a nested object.
_AS_IT_IS: Final = bytes(code for code in range(0x20, 0x7F) if code not in b"\\{}")

#: Placeholders of both ports. Ports are too short for random placeholders, so two events with
#: different ports are made: the ports are where their lines differ.
_PORT_PLACEHOLDERS: Final = ((11111, 22222), (33333, 44444))
#: Minimum length of a placeholder. Numbers of the shape (a port, a few packets) are shorter.
_PLACEHOLDER_CHARACTERS: Final = 18

_Values: TypeAlias = tuple[bytes | int | None, ...]


class Shape(NamedTuple):
    """Key of an event template: the values and properties that all events made from it share.

    Other values, such as times, are filled in for each event.
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
    source: AddressKind | None
    destination: AddressKind | None
    protocol: int | None
    #: Ports, ``uid`` and ``gid`` are ``_COPIED`` if the event only copies them. Otherwise each
    #: value would make a template.
    source_port: int | None
    destination_port: int | None
    tcp_flags: int | None
    details: tuple[tuple[str, int], ...]
    log_source: str
    log_format: LogFormat
    severity: Severity | None
    #: 2 for two or more packets.
    packets: int
    is_instant: bool
    has_bytes: bool
    uid: int | None
    gid: int | None
    has_sequence: bool
    has_original_time: bool
    has_community_uid: bool
    attribution: Attribution | None


class _Template(NamedTuple):
    """Format string of an event's JSON line, and a function that selects the values to insert."""

    form: bytes
    pick: Callable[[_Values], tuple[Any, ...]]


class Templates:
    """Cache of templates for the JSON lines of Network Activity events, limited in size."""

    def __init__(self, activities: Activities) -> None:
        self._activities = activities
        self._stored: dict[Shape, _Template] = {}
        self._stored_bytes = 0
        self._seen: Counter[int] = Counter()
        self._lock = threading.Lock()

    def line(
        self, attempt: Attempt, derived: Derived, *, processed_ns: int, version: str
    ) -> bytes | None:
        """Return the JSON line of an event about refused packets, made from a cached template.

        Return None if no template fits. ``attempt`` describes the packets. ``derived`` has values
        computed from ``attempt``. ``version`` is the OCSF version. ``processed_ns`` is the present
        time (ns since the epoch).
        """
        shape = _shape(attempt, derived, version)
        if shape is None:
            return None
        template = self._stored.get(shape) or self._new(shape)
        if template is None:
            return None
        return template.form % template.pick(_values(attempt, derived, processed_ns))

    def _new(self, shape: Shape) -> _Template | None:
        sighting = hash(shape)  # the shape itself would take more memory
        with self._lock:
            if len(self._seen) >= MAX_TEMPLATES:
                self._seen.clear()
            self._seen[sighting] += 1
            if self._seen[sighting] != SIGHTINGS:
                return None
            template = _template(self._activities, shape)
            size = len(template.form)
            if size > _MAX_BYTES_EACH:  # it stays in _seen, so that it is not made again
                return None
            del self._seen[sighting]
            self._stored[shape] = template
            self._stored_bytes += size
            while len(self._stored) > MAX_TEMPLATES or self._stored_bytes > MAX_TEMPLATE_BYTES:
                self._stored_bytes -= len(self._stored.pop(next(iter(self._stored))).form)
        return template


def _shape(attempt: Attempt, derived: Derived, version: str) -> Shape | None:
    """Return the shape of an attempt: attempts with the same shape share an event template.

    Return None if the attempt can't have a template, for example because it is aggregated.
    ``derived`` has values computed from the attempt. ``version`` is the OCSF version.
    """
    record, origin, by = attempt.record, attempt.record.origin, attempt.attribution
    if attempt.aggregation is not None:
        return None
    if by is not None and (by.seen or by.unnamed):
        return None
    if derived.source is None and record.source is not None:
        return None
    if derived.destination is None and record.destination is not None:
        return None
    details: tuple[tuple[str, int], ...] = ()
    if not _RELEVANT.isdisjoint(record.details):
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
        derived.source,
        derived.destination,
        record.protocol,
        record.source_port if record.source_port in _PORTS else _COPIED,
        record.destination_port if record.destination_port in _PORTS else _COPIED,
        record.tcp_flags,
        details,
        origin.log_source,
        origin.log_format,
        derived.severity,
        min(attempt.packets, 2),
        attempt.start_ns // 1_000_000 == attempt.end_ns // 1_000_000,
        attempt.bytes is not None,
        record.uid if is_known or record.uid is None else _COPIED,
        record.gid if is_known or record.gid is None else _COPIED,
        origin.sequence is not None,
        origin.original_time is not None,
        derived.community_uid is not None,
        by,
    )


def _decisive(details: Mapping[str, Detail]) -> tuple[tuple[str, int], ...] | None:
    """Return the header details that affect the event's content, such as ``icmp_type``.

    Return None if the details include one for which no template can be made, such as ``arp``.
    """
    if not _SPECIAL.isdisjoint(details):
        return None
    found = [(name, details[name]) for name in _DECISIVE if name in details]
    numbers = tuple((name, value) for name, value in found if isinstance(value, int))
    return numbers if len(numbers) == len(found) else None


def _values(attempt: Attempt, derived: Derived, processed_ns: int) -> _Values:
    """Return the values for the slots of an event's template: numbers, and texts as JSON bytes.

    A value that the attempt lacks is None, and has no slot.
    """
    record, origin = attempt.record, attempt.record.origin
    start, end = attempt.start_ns // 1_000_000, attempt.end_ns // 1_000_000
    original = origin.original_time
    # The order is always the same. The ports are first, because _slots_of_ports gives them the
    # indexes 0 and 1.
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
        derived.uid.encode(),
        derived.correlation_uid.encode(),
        None if derived.community_uid is None else derived.community_uid.encode(),
        derived.raw_bytes,
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
    """Encode header details as JSON members, each followed by a comma: ``"ttl":64,"tos":0,``."""
    try:
        encoded = orjson.dumps(details, option=orjson.OPT_STRICT_INTEGER)
    except TypeError:  # a long number, a lone surrogate, a mapping that is no dict
        encoded = orjson.dumps(plain(details))
    if encoded[1:-1].translate(None, _AS_IT_IS):
        encoded = orjson.dumps(plain(details))
    return encoded[1:-1] + b"," if details else b""


def _template(activities: Activities, shape: Shape) -> _Template:
    # The models make an event with a random placeholder for each copied value. Each placeholder in
    # the event's JSON becomes a slot.
    attempt, derived, processed_ns = _specimen(shape)
    one, other = (
        line_at(activities.event(each, derived, processed_ns=processed_ns).to_json(), shape.version)
        for each in (_with_ports(attempt, 0), _with_ports(attempt, 1))
    )
    values = _values(attempt, derived, processed_ns)
    slots = sorted([*_slots_of_ports(one, other), *_slots(one, values)])
    numbers = [slot.number for slot in slots]
    formats = [b"%d" if isinstance(values[number], int) else b"%b" for number in numbers] + [b""]
    starts, ends = [0, *(slot.end for slot in slots)], [*(slot.start for slot in slots), len(one)]
    literals = [
        one[start:end].replace(b"%", b"%%") for start, end in zip(starts, ends, strict=True)
    ]
    form = b"".join(literal + spec for literal, spec in zip(literals, formats, strict=True))
    return _Template(form, itemgetter(*numbers))


def _specimen(shape: Shape) -> tuple[Attempt, Derived, int]:
    """Return made-up data for an event, from which the caller makes an event template.

    The data are refused packets, values computed from them, and the time of processing. Values not
    in ``shape`` are random placeholders, which become slots of the template.
    """
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
        # _with_ports replaces a copied port (-1) by its placeholder later.
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
        end_ns=(start if shape.is_instant else start + _number()) * 1_000_000,
        attribution=shape.attribution,
    )
    derived = Derived(
        source=shape.source,
        destination=shape.destination,
        severity=shape.severity,
        uid=_text(),
        correlation_uid=_text(),
        community_uid=_text() if shape.has_community_uid else None,
        raw_bytes=_number(),
    )
    return attempt, derived, _number() * 1_000_000


def _number() -> int:
    """Return a random number of 18 or 19 digits, as the placeholder for a number in an event."""
    # The end of an attempt is the sum of two such numbers, which must fit into 64 bits.
    return (1 << 59) + secrets.randbits(59)


def _text() -> str:
    return secrets.token_hex(16)


def _address(kind: AddressKind) -> str:
    # The colon makes the event show the placeholder in brackets, as an IPv6 address.
    return f"{_text()}:" if kind.version == 6 else _text()


def _with_ports(attempt: Attempt, which: int) -> Attempt:
    source, destination = (placeholders[which] for placeholders in _PORT_PLACEHOLDERS)
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


class _Slot(NamedTuple):
    """Position in an event's JSON at which a copied value is inserted.

    ``number`` is the index of the value in the result of :func:`_values`.
    """

    start: int
    end: int
    number: int


def _slots_of_ports(one: bytes, other: bytes) -> Iterator[_Slot]:
    for number, (here, there) in enumerate(_PORT_PLACEHOLDERS):
        placeholder, other_placeholder = b"%d" % here, b"%d" % there
        for start in _positions(placeholder, one):
            if other.startswith(other_placeholder, start):
                yield _Slot(start, start + len(placeholder), number)


def _slots(line: bytes, values: _Values) -> Iterator[_Slot]:
    placeholders: dict[bytes, int] = {}
    for number, value in enumerate(values):
        text = b"%d" % value if isinstance(value, int) else value or b""
        if len(text) >= _PLACEHOLDER_CHARACTERS:
            placeholders[text] = number
    for placeholder, number in placeholders.items():
        for start in _positions(placeholder, line):
            yield _Slot(start, start + len(placeholder), number)


def _positions(placeholder: bytes, line: bytes) -> Iterator[int]:
    position = line.find(placeholder)
    while position >= 0:
        yield position
        position = line.find(placeholder, position + 1)
