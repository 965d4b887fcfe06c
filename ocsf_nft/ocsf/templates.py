"""Templates that make the JSON of Network Activity events faster than the pydantic models do.

Events that differ only in copied values, such as times, share a template: JSON with slots for these
values.
"""

from __future__ import annotations

import secrets
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self

import orjson

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf import endpoints, packet_outcome, process_slots, services
from ocsf_nft.ocsf.activity import Activities, Derived
from ocsf_nft.ocsf.context import Context, Proxy, RuleFacts
from ocsf_nft.ocsf.enums import Direction
from ocsf_nft.ocsf.process_slots import (
    name_value,
    number_placeholder,
    placeholder,
    text_shape,
)
from ocsf_nft.ocsf.safe_text import encodable, plain, printable, visible
from ocsf_nft.ocsf.versions import line_at
from ocsf_nft.record import Origin, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ocsf_nft.ocsf.addresses import AddressKind
    from ocsf_nft.ocsf.context import Host
    from ocsf_nft.ocsf.enums import Severity
    from ocsf_nft.ocsf.process_slots import AttributionShape, ContainerShape, TextShape, Values
    from ocsf_nft.process import Container
    from ocsf_nft.record import Detail, LogFormat, Verdict

#: Maximum number of templates. A sender of packets can cause any number of shapes.
MAX_TEMPLATES: Final = 512
#: First templates of one sandbox in a service, and new ones in a second after these: a sandbox that
#: causes many shapes must not replace the templates of the others, nor use much time.
OF_SANDBOX: Final = 128
_NEW_PER_SECOND: Final = 1.0
#: Shapes whose occurrences are counted.
_MAX_SEEN: Final = 1 << 13
#: Occurrences of a shape before it gets a template, which takes as long to make as three events.
SIGHTINGS: Final = 3
#: Maximum size of all templates, and of one: a sender can also choose the length of texts.
MAX_TEMPLATE_BYTES: Final = 3 << 20
_MAX_BYTES_EACH: Final = 1 << 14

#: Shape of a port, a user or a group that is only copied. Other values may affect the event.
_COPIED: Final = -1
_PORTS: Final = services.PORTS | packet_outcome.NAME_PORTS | {None}
#: Details that affect the kind and the outcome of a packet: of the first ones the value does, of
#: the others whether it is zero.
_NUMBERS: Final = ("icmp_type", "icmp_code")
_FLAGS: Final = ("fragment_offset", "more_fragments", "incomplete_bytes")
_DECISIVE: Final = _NUMBERS + _FLAGS
#: TCP flags that affect the kind of a packet: SYN, RST and ACK (RFC 9293).
_TCP_FLAGS: Final = 0b10110
#: Details that affect the packet and are not numbers, and names of other facts in ``unmapped``.
_SPECIAL: Final = frozenset({
    "arp", "prefix", "sandbox", "mac_source", "mac_destination", "source_port",
    "destination_port", "gid", "ethertype", "unit", "pod_uid", "sha256",
})  # fmt: skip
_RELEVANT: Final = _SPECIAL.union(_DECISIVE)

#: Characters that JSON does not escape. Braces are excluded: they would be of a nested object.
_AS_IT_IS: Final = bytes(code for code in range(0x20, 0x7F) if code not in b"\\{}")

#: Placeholders of both ports, and of the proxy's port. Ports are too short for random placeholders,
#: so two events with different ports are made: the ports are where their lines differ.
_PORT_PLACEHOLDERS: Final = ((11111, 22222), (33333, 44444), (12121, 34343))
#: Minimum length of a placeholder: that of a MAC address. Numbers of the shape (a port, a few
#: packets) are shorter.
_PLACEHOLDER_CHARACTERS: Final = 17


class Shape(NamedTuple):
    """Key of an event template: the values and properties that all events made from it share.

    Other values, such as times, are filled in for each event.
    """

    version: str
    sandbox: TextShape
    rule: str
    verdict: Verdict | None
    in_interface: TextShape
    out_interface: TextShape
    #: Both are valid addresses, if there are any.
    mac_source: TextShape
    mac_destination: TextShape
    ethertype: int | None
    ip_version: Literal[4, 6] | None
    source: AddressKind | None
    destination: AddressKind | None
    protocol: int | None
    #: ``_COPIED`` if the event only copies the port. Otherwise each value would make a template.
    source_port: int | None
    destination_port: int | None
    #: Only the flags that affect the kind of the packet.
    tcp_flags: int | None
    details: tuple[tuple[str, int], ...]
    log_source: str
    log_format: LogFormat
    severity: Severity | None
    #: 2 for two or more packets.
    packets: int
    is_instant: bool
    has_bytes: bool
    has_uid: bool
    has_gid: bool
    has_sequence: bool
    has_original_time: bool
    has_community_uid: bool
    attribution: AttributionShape | None
    direction: Direction
    #: Family of the proxy's address.
    proxy: Literal[4, 6] | None
    has_rule_facts: bool
    container: ContainerShape | None


class Surroundings(NamedTuple):
    """Facts about the sandbox of an attempt, as its event has them."""

    direction: Direction
    #: Proxy that the sender should have used.
    proxy: Proxy | None
    #: Rule of a fence of ours.
    rule: RuleFacts | None
    container: Container | None
    #: The end of a shape, and copied values: the same for many events.
    shape: tuple[Any, ...]
    values: Values

    @classmethod
    def of(
        cls,
        direction: Direction,
        proxy: Proxy | None,
        rule: RuleFacts | None,
        container: Container | None,
    ) -> Self:
        """Create the surroundings, with their part of a shape and of an event's values."""
        shape = (
            direction,
            None if proxy is None else proxy.address.version,
            rule is not None,
            process_slots.container_shape(container),
        )
        values = (
            None if proxy is None else str(proxy.address).encode(),
            None if rule is None else printable(orjson.dumps(rule.uid))[1:-1],
            None if rule is None else printable(orjson.dumps(rule.condition))[1:-1],
            *process_slots.container_values(container),
        )
        return cls(direction, proxy, rule, container, shape, values)


class _PlaceholderAddress:
    """Random text in place of an IP address."""

    def __init__(self, version: Literal[4, 6]) -> None:
        self.version = version
        self._text = placeholder()

    def __str__(self) -> str:
        return self._text


class _Template:
    """Format string of an event's JSON line, and a function that selects the values to insert."""

    __slots__ = ("form", "is_used", "pick")

    def __init__(self, form: bytes, pick: Callable[[Values], tuple[Any, ...]]) -> None:
        self.form = form
        self.pick = pick
        #: Whether a later event was made from it since the last search for a template to remove.
        self.is_used = False


class Templates:
    """Cache of templates for the JSON lines of Network Activity events, limited in size.

    All sandboxes of a ``host`` share the templates. With ``is_limited``, the number of templates
    for the events of one sandbox is limited too.
    """

    def __init__(self, host: Host | None, *, is_limited: bool = False) -> None:
        self.host = host
        self._is_limited = is_limited
        self._stored: dict[Shape, _Template] = {}
        self._stored_bytes = 0
        self._seen: Counter[int] = Counter()
        #: Templates that may be made now for each sandbox, and the time of the last one.
        self._budgets: dict[str | None, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def line(
        self,
        attempt: Attempt,
        derived: Derived,
        around: Surroundings,
        *,
        processed_ns: int,
        version: str,
    ) -> bytes | None:
        """Return the JSON line of an event about refused packets, made from a cached template.

        Return None if no template fits. ``attempt`` describes the packets, ``derived`` has values
        computed from ``attempt``, ``around`` has facts about the sandbox. ``version`` is the OCSF
        version, ``processed_ns`` the present time.
        """
        shape = _shape(attempt, derived, around, version)
        if shape is None:
            return None
        template = self._stored.get(shape)
        if template is not None:
            template.is_used = True
        else:
            # Another firewall's record may contain any name.
            is_ours = packet_outcome.is_ours(attempt.record)
            template = self._new(shape, attempt.record.sandbox if is_ours else None)
            if template is None:
                return None
        return template.form % template.pick(_values(attempt, derived, around, processed_ns))

    def _new(self, shape: Shape, sandbox: str | None) -> _Template | None:
        sighting = hash(shape)  # the shape itself would take more memory
        with self._lock:
            if (found := self._stored.get(shape)) is not None:  # by another thread meanwhile
                return found
            if len(self._seen) >= _MAX_SEEN:
                self._seen.clear()
            self._seen[sighting] += 1
            if self._seen[sighting] < SIGHTINGS or not self._may_make(sandbox):
                return None
            template = _template(self.host, shape)
            size = len(template.form)
            if size > _MAX_BYTES_EACH:
                self._seen[sighting] = -sys.maxsize  # it is not made again
                return None
            del self._seen[sighting]
            self._stored[shape] = template
            self._stored_bytes += size
            while len(self._stored) > MAX_TEMPLATES or self._stored_bytes > MAX_TEMPLATE_BYTES:
                self._remove_one()
        return template

    def _may_make(self, sandbox: str | None) -> bool:
        if not self._is_limited:
            return True
        now = time.monotonic()
        budget, made_at = self._budgets.get(sandbox, (OF_SANDBOX, now))
        budget = min(budget + (now - made_at) * _NEW_PER_SECOND, OF_SANDBOX)
        is_allowed = budget >= 1
        self._budgets[sandbox] = budget - is_allowed, now
        return is_allowed

    def _remove_one(self) -> None:
        """Remove the oldest template that no later event was made from since the last call.

        If all others are in use, that is the newest one.
        """
        while True:
            shape = next(iter(self._stored))
            template = self._stored.pop(shape)
            if not template.is_used:
                self._stored_bytes -= len(template.form)
                return
            template.is_used = False
            self._stored[shape] = template


def _shape(attempt: Attempt, derived: Derived, around: Surroundings, version: str) -> Shape | None:
    """Return the shape of an attempt: attempts with the same shape share an event template.

    Return None if the attempt can't have a template, for example because it is aggregated.
    ``derived`` has values computed from the attempt. ``version`` is the OCSF version.
    """
    record, origin, by = attempt.record, attempt.record.origin, attempt.attribution
    if attempt.aggregation is not None:
        return None
    attribution = None if by is None else process_slots.shape(by, record)
    if attribution is None and by is not None:
        return None
    if derived.source is None and record.source is not None:
        return None
    if derived.destination is None and record.destination is not None:
        return None
    if not (_is_mac(record.mac_source) and _is_mac(record.mac_destination)):
        return None
    details: tuple[tuple[str, int], ...] = ()
    if not _RELEVANT.isdisjoint(record.details):
        decisive = _decisive(record.details)
        if decisive is None:
            return None
        details = decisive
    return Shape(
        version,
        text_shape(record.sandbox),
        record.rule,
        record.verdict,
        text_shape(record.in_interface),
        text_shape(record.out_interface),
        text_shape(record.mac_source),
        text_shape(record.mac_destination),
        record.ethertype,
        record.ip_version,
        derived.source,
        derived.destination,
        record.protocol,
        record.source_port if record.source_port in _PORTS else _COPIED,
        record.destination_port if record.destination_port in _PORTS else _COPIED,
        None if record.tcp_flags is None else record.tcp_flags & _TCP_FLAGS,
        details,
        origin.log_source,
        origin.log_format,
        derived.severity,
        min(attempt.packets, 2),
        attempt.start_ns // 1_000_000 == attempt.end_ns // 1_000_000,
        attempt.bytes is not None,
        record.uid is not None,
        record.gid is not None,
        origin.sequence is not None,
        origin.original_time is not None,
        derived.community_uid is not None,
        attribution,
        *around.shape,
    )


def _is_mac(text: str | None) -> bool:
    return text is None or endpoints.is_mac(text)


def _decisive(details: Mapping[str, Detail]) -> tuple[tuple[str, int], ...] | None:
    """Return the header details that affect the event's content, such as ``icmp_type``.

    Return None if the details include one for which no template can be made, such as ``arp``.
    """
    if not _SPECIAL.isdisjoint(details):
        return None
    numbers = []
    for name in _DECISIVE:
        value = details.get(name, 0)
        if not isinstance(value, int):
            return None
        if name in details:
            numbers.append((name, bool(value) if name in _FLAGS else value))
    return tuple(numbers)


def _values(attempt: Attempt, derived: Derived, around: Surroundings, processed_ns: int) -> Values:
    """Return the values for the slots of an event's template: numbers, and texts as JSON bytes.

    A value that the attempt lacks is None, and has no slot.
    """
    record, origin = attempt.record, attempt.record.origin
    start, end = attempt.start_ns // 1_000_000, attempt.end_ns // 1_000_000
    original = origin.original_time
    # The order is always the same. The ports are first, because _slots_of_ports gives them the
    # indexes 0 to 2.
    return (
        record.source_port,
        record.destination_port,
        None if around.proxy is None else around.proxy.port,
        None if record.source is None else record.source.encode(),
        None if record.destination is None else record.destination.encode(),
        record.uid,
        record.gid,
        record.tcp_flags,
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
        name_value(record.sandbox),
        name_value(record.in_interface),
        name_value(record.out_interface),
        None if record.mac_source is None else record.mac_source.encode(),
        None if record.mac_destination is None else record.mac_destination.encode(),
        *around.values,
        *process_slots.values(attempt.attribution),
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


def _template(host: Host | None, shape: Shape) -> _Template:
    # The models make an event with a random placeholder for each copied value. Each placeholder in
    # the event's JSON becomes a slot.
    attempt, derived, processed_ns = _specimen(shape)
    around = _surroundings(shape)
    one, other = (
        line_at(
            Activities(_context(host, around, attempt.record, which))
            .event(_with_ports(attempt, which), derived, processed_ns=processed_ns)
            .to_json(),
            shape.version,
        )
        for which in range(2)
    )
    values = _values(attempt, derived, around, processed_ns)
    slots = _outer([*_slots_of_ports(one, other), *_slots(one, values)])
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
    start = number_placeholder()
    record = Record(
        prefix=placeholder(),
        sandbox=_text(shape.sandbox),
        rule=shape.rule,
        verdict=shape.verdict,
        in_interface=_text(shape.in_interface),
        out_interface=_text(shape.out_interface),
        mac_source=None if shape.mac_source is None else _mac(),
        mac_destination=None if shape.mac_destination is None else _mac(),
        ethertype=shape.ethertype,
        ip_version=shape.ip_version,
        source=None if shape.source is None else _address(shape.source),
        destination=None if shape.destination is None else _address(shape.destination),
        protocol=shape.protocol,
        # _with_ports replaces a copied port (-1) by its placeholder later.
        source_port=shape.source_port,
        destination_port=shape.destination_port,
        tcp_flags=None if shape.tcp_flags is None else _flags(shape.tcp_flags),
        uid=number_placeholder() if shape.has_uid else None,
        gid=number_placeholder() if shape.has_gid else None,
        details={**dict(shape.details), placeholder(): True},
        time_ns=number_placeholder() * 1_000_000,
        received_ns=number_placeholder() * 1_000_000,
        origin=Origin(
            transport="replay",
            identity=placeholder(),
            log_source=shape.log_source,
            log_format=shape.log_format,
            raw=placeholder(),
            sequence=number_placeholder() if shape.has_sequence else None,
            original_time=placeholder() if shape.has_original_time else None,
        ),
    )
    attempt = Attempt(
        record=record,
        packets=number_placeholder() if shape.packets == 2 else shape.packets,
        bytes=number_placeholder() if shape.has_bytes else None,
        start_ns=start * 1_000_000,
        end_ns=(start if shape.is_instant else start + number_placeholder()) * 1_000_000,
        attribution=(
            None
            if shape.attribution is None
            else process_slots.specimen(shape.attribution, record.uid, record.gid)
        ),
    )
    derived = Derived(
        source=shape.source,
        destination=shape.destination,
        severity=shape.severity,
        uid=placeholder(),
        correlation_uid=placeholder(),
        community_uid=placeholder() if shape.has_community_uid else None,
        raw_bytes=number_placeholder(),
    )
    return attempt, derived, number_placeholder() * 1_000_000


def _surroundings(shape: Shape) -> Surroundings:
    """Return made-up facts about a sandbox, with a random placeholder for each copied value."""
    rule = proxy = None
    if shape.has_rule_facts:
        rule = RuleFacts(
            family=placeholder(),
            table=placeholder(),
            chain=placeholder(),
            handle=number_placeholder(),
            condition=placeholder(),
        )
    if shape.proxy is not None:
        address: Any = _PlaceholderAddress(shape.proxy)
        proxy = Proxy(address=address, port=_COPIED)
    return Surroundings.of(
        shape.direction, proxy, rule, process_slots.container_specimen(shape.container)
    )


def _context(host: Host | None, around: Surroundings, record: Record, which: int) -> Context:
    # A forwarded packet has its direction from the uplinks.
    uplinks = {Direction.INBOUND: record.in_interface, Direction.OUTBOUND: placeholder()}
    uplink = uplinks.get(around.direction)
    _, _, ports = _PORT_PLACEHOLDERS
    return Context(
        host=host,
        proxies=() if around.proxy is None else (replace(around.proxy, port=ports[which]),),
        uplinks=frozenset(() if uplink is None else (uplink,)),
        rules={} if around.rule is None else {record.rule: around.rule},
        container=around.container,
    )


def _text(form: TextShape) -> str | None:
    return placeholder() if form is True else form


def _flags(decisive: int) -> int:
    return number_placeholder() & ~_TCP_FLAGS | decisive


def _mac() -> str:
    # Locally administered, and not the address of a real interface.
    return ":".join(f"{byte:02x}" for byte in (0x02, *secrets.token_bytes(5)))


def _address(kind: AddressKind) -> str:
    # The colon makes the event show the placeholder in brackets, as an IPv6 address.
    return f"{placeholder()}:" if kind.version == 6 else placeholder()


def _with_ports(attempt: Attempt, which: int) -> Attempt:
    source, destination, _ = (placeholders[which] for placeholders in _PORT_PLACEHOLDERS)
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


def _slots(line: bytes, values: Values) -> Iterator[_Slot]:
    placeholders: dict[bytes, int] = {}
    for number, value in enumerate(values):
        text = b"%d" % value if isinstance(value, int) else value or b""
        if len(text) >= _PLACEHOLDER_CHARACTERS:
            placeholders[text] = number
    for text, number in placeholders.items():
        for start in _positions(text, line):
            yield _Slot(start, start + len(text), number)


def _outer(slots: list[_Slot]) -> list[_Slot]:
    """Return the slots that are not inside another one, such as a file name inside its path."""
    found: list[_Slot] = []
    for slot in sorted(slots, key=lambda each: (each.start, -each.end)):
        if not found or slot.start >= found[-1].end:
            found.append(slot)
    return found


def _positions(placeholder: bytes, line: bytes) -> Iterator[int]:
    position = line.find(placeholder)
    while position >= 0:
        yield position
        position = line.find(placeholder, position + 1)
