"""Templates that make the JSON of Network Activity events faster than the pydantic models do.

Events that differ only in copied values, such as times, share a template: JSON with slots for these
values.
"""

from __future__ import annotations

import secrets
import sys
import threading
import time
import uuid
from collections import Counter
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf import actors, packet_outcome
from ocsf_nft.ocsf.activity import Activities
from ocsf_nft.ocsf.context import Context, Proxy, RuleFacts
from ocsf_nft.ocsf.enums import Direction
from ocsf_nft.ocsf.event_slots import (
    COPIED,
    DECISIVE,
    PORTS,
    TCP_FLAGS,
    Surroundings,
    program_of,
    shape_of,
    values_of,
)
from ocsf_nft.ocsf.versions import line_at
from ocsf_nft.process import Attribution, Container, Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocsf_nft.ocsf.activity import Derived
    from ocsf_nft.ocsf.addresses import AddressKind
    from ocsf_nft.ocsf.context import Host
    from ocsf_nft.ocsf.event_slots import Shape, Values
    from ocsf_nft.record import Record

#: Maximum number of templates. A sender of packets can cause any number of shapes.
MAX_TEMPLATES: Final = 512
#: First templates of one sandbox in a service, and new ones in a second after these: a sandbox that
#: causes many shapes must not replace the templates of the others, nor use much time.
OF_SANDBOX: Final = 128
_NEW_PER_SECOND: Final = 1.0
#: Number of shapes that are counted.
_MAX_SEEN: Final = 1 << 13
#: Occurrences of a shape before it gets a template, which takes as long to make as three events.
SIGHTINGS: Final = 3
#: Maximum size of all templates, and of one: a sender can also choose the length of texts.
MAX_TEMPLATE_BYTES: Final = 3 << 20
_MAX_BYTES_EACH: Final = 1 << 14

#: Placeholders of both ports, and of the proxy's port. Ports are too short for random placeholders,
#: so two events with different ports are made: the ports are where their lines differ.
_PORT_PLACEHOLDERS: Final = ((11111, 22222), (33333, 44444), (12121, 34343))
#: Minimum length of a placeholder: that of a MAC address. Numbers of the shape (a port, a few
#: packets) are shorter.
_PLACEHOLDER_CHARACTERS: Final = 17
#: Half of the characters of a name that is too long for a sentence.
_LONG: Final = 48


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
        shape = shape_of(attempt, derived, around, version)
        if shape is None:
            return None
        template = self._stored.get(shape)
        if template is not None:
            template.is_used = True
        else:
            template = self._new(shape, attempt, derived, around, version)
            if template is None:
                return None
        return template.form % template.pick(values_of(attempt, derived, around, processed_ns))

    def _new(
        self,
        shape: Shape,
        attempt: Attempt,
        derived: Derived,
        around: Surroundings,
        version: str,
    ) -> _Template | None:
        # Another firewall's record may contain any name.
        is_ours = packet_outcome.is_ours(attempt.record)
        sandbox = attempt.record.sandbox if is_ours else None
        sighting = hash(shape)  # the shape itself would take more memory
        with self._lock:
            if (found := self._stored.get(shape)) is not None:  # by another thread meanwhile
                return found
            if len(self._seen) >= _MAX_SEEN:
                self._seen.clear()
            self._seen[sighting] += 1
            if self._seen[sighting] < SIGHTINGS or not self._may_make(sandbox):
                return None
            template = _template(self.host, attempt, derived, around, version)
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


def _template(
    host: Host | None, attempt: Attempt, derived: Derived, around: Surroundings, version: str
) -> _Template:
    # The models make an event with a random placeholder for each copied value. Each placeholder in
    # the event's JSON becomes a slot.
    attempt, derived = _specimen(attempt, derived)
    around = _surroundings_specimen(around)
    processed_ns = _number() * 1_000_000
    one, other = (
        line_at(
            Activities(_context(host, around, attempt.record, which))
            .event(_with_ports(attempt, which), derived, processed_ns=processed_ns)
            .to_json(),
            version,
        )
        for which in range(2)
    )
    values = values_of(attempt, derived, around, processed_ns)
    slots = _outer([*_slots_of_ports(one, other), *_slots(one, values)])
    numbers = [slot.number for slot in slots]
    formats = [b"%d" if isinstance(values[number], int) else b"%b" for number in numbers] + [b""]
    starts, ends = [0, *(slot.end for slot in slots)], [*(slot.start for slot in slots), len(one)]
    literals = [
        one[start:end].replace(b"%", b"%%") for start, end in zip(starts, ends, strict=True)
    ]
    form = b"".join(literal + spec for literal, spec in zip(literals, formats, strict=True))
    return _Template(form, itemgetter(*numbers))


def _specimen(attempt: Attempt, derived: Derived) -> tuple[Attempt, Derived]:
    """Return an attempt of the same shape, with a random placeholder for each copied value."""
    record, origin, by = attempt.record, attempt.record.origin, attempt.attribution
    start = end = _number()
    if attempt.start_ns // 1_000_000 != attempt.end_ns // 1_000_000:
        end += _number()
    flags = record.tcp_flags
    if flags is not None:
        flags = _number() & ~TCP_FLAGS | flags & TCP_FLAGS
    made = replace(
        record,
        prefix=_text(),
        sandbox=_text_like(record.sandbox),
        in_interface=_text_like(record.in_interface),
        out_interface=_text_like(record.out_interface),
        mac_source=None if record.mac_source is None else _mac(),
        mac_destination=None if record.mac_destination is None else _mac(),
        source=None if derived.source is None else _address(derived.source),
        destination=None if derived.destination is None else _address(derived.destination),
        # _with_ports replaces a copied port by its placeholder later.
        source_port=record.source_port if record.source_port in PORTS else COPIED,
        destination_port=record.destination_port if record.destination_port in PORTS else COPIED,
        tcp_flags=flags,
        uid=_number_like(record.uid),
        gid=_number_like(record.gid),
        details={
            **{name: record.details[name] for name in DECISIVE if name in record.details},
            _text(): True,
        },
        time_ns=_number() * 1_000_000,
        received_ns=_number() * 1_000_000,
        origin=replace(
            origin,
            identity=_text(),
            raw=_text(),
            sequence=_number_like(origin.sequence),
            original_time=None if origin.original_time is None else _text(),
        ),
    )
    return Attempt(
        record=made,
        packets=_number() if attempt.packets > 1 else attempt.packets,
        bytes=_number_like(attempt.bytes),
        start_ns=start * 1_000_000,
        end_ns=end * 1_000_000,
        attribution=None if by is None else _attribution_specimen(by, record, made),
    ), derived._replace(
        uid=_text(),
        correlation_uid=_text(),
        community_uid=_text_like(derived.community_uid),
        raw_bytes=_number(),
    )


def _attribution_specimen(by: Attribution, record: Record, made: Record) -> Attribution:
    """Return an attribution of the same shape, of the record ``made`` in place of ``record``."""
    process = by.process
    if process is not None:
        process = replace(
            _program_specimen(process),
            tid=_number_like(process.tid),
            cmd_line=_text_like(process.cmd_line),
            working_directory=_text_like(process.working_directory),
            created_ns=None if process.created_ns is None else _number() * 1_000_000,
            namespace_pid=_number_like(process.namespace_pid),
            uid=made.uid if process.uid == record.uid else _number_like(process.uid),
            user_name=_text_like(process.user_name),
            gid=made.gid if process.gid == record.gid else _number_like(process.gid),
            group_name=_text_like(process.group_name),
            container=_container_specimen(process.container),
            unit=_text_like(process.unit),
            ancestors=tuple(map(_program_specimen, process.ancestors)),
        )
    return Attribution(
        method=by.method,
        confidence=by.confidence,
        reason=by.reason,
        process=process,
        user_name=_text_like(by.user_name),
        group_name=_text_like(by.group_name),
    )


def _program_specimen(process: Process) -> Process:
    program = program_of(process)
    name = secrets.token_hex(_LONG) if program.has_long_name else _text()
    paths = {
        None: None,
        "memory": f"{actors.MEMORY}{name}",
        "file": f"/{_text()}/{name}",
        "folder": f"/{_text()}/",
    }
    sha256 = process.sha256
    if sha256 is not None:
        sha256 = secrets.token_hex(32) if actors.is_valid_hash(sha256) else _text()
    return Process(
        pid=_number(),
        name=name if process.name else process.name,
        path=paths[program.path],
        is_deleted=process.is_deleted,
        sha256=sha256,
    )


def _container_specimen(container: Container | None) -> Container | None:
    if container is None:
        return None
    pod = container.pod_uid
    if pod is not None:
        pod = str(uuid.uuid4()) if actors.is_valid_pod_uid(pod) else _text()
    return Container(
        uid=_text_like(container.uid),
        name=_text_like(container.name),
        runtime=_text_like(container.runtime),
        image_uid=_text_like(container.image_uid),
        image_name=_text_like(container.image_name),
        pod_uid=pod,
    )


def _surroundings_specimen(around: Surroundings) -> Surroundings:
    rule, proxy = around.rule, around.proxy
    if rule is not None:
        rule = RuleFacts(uid=_text(), condition=_text())
    if proxy is not None:
        address: Any = _PlaceholderAddress(proxy.address.version)
        proxy = Proxy(address=address, port=COPIED)
    return Surroundings.of(around.direction, proxy, rule, _container_specimen(around.container))


class _PlaceholderAddress:
    """Random text in place of an IP address."""

    def __init__(self, version: Literal[4, 6]) -> None:
        self.version = version
        self._text = _text()

    def __str__(self) -> str:
        return self._text


def _context(host: Host | None, around: Surroundings, record: Record, which: int) -> Context:
    # A forwarded packet has its direction from the uplinks.
    uplinks = {Direction.INBOUND: record.in_interface, Direction.OUTBOUND: _text()}
    uplink = uplinks.get(around.direction)
    _, _, ports = _PORT_PLACEHOLDERS
    return Context(
        host=host,
        proxies=() if around.proxy is None else (replace(around.proxy, port=ports[which]),),
        uplinks=frozenset(() if uplink is None else (uplink,)),
        rules={} if around.rule is None else {record.rule: around.rule},
        container=around.container,
    )


def _text() -> str:
    """Return a random text, which no event contains by chance."""
    return secrets.token_hex(16)


def _text_like(text: str | None) -> str | None:
    return _text() if text else text


def _number() -> int:
    """Return a random number of 18 or 19 digits, which no event contains by chance."""
    # The end of an attempt is the sum of two such numbers, which must fit into 64 bits.
    return (1 << 59) + secrets.randbits(59)


def _number_like(number: int | None) -> int | None:
    return None if number is None else _number()


def _mac() -> str:
    # Locally administered, and not the address of a real interface.
    return ":".join(f"{byte:02x}" for byte in (0x02, *secrets.token_bytes(5)))


def _address(kind: AddressKind) -> str:
    # The colon makes the event show the placeholder in brackets, as an IPv6 address.
    return f"{_text()}:" if kind.version == 6 else _text()


def _with_ports(attempt: Attempt, which: int) -> Attempt:
    source, destination, _ = (placeholders[which] for placeholders in _PORT_PLACEHOLDERS)
    record = attempt.record
    return replace(
        attempt,
        record=replace(
            record,
            source_port=source if record.source_port == COPIED else record.source_port,
            destination_port=(
                destination if record.destination_port == COPIED else record.destination_port
            ),
        ),
    )


class _Slot(NamedTuple):
    """Position in an event's JSON at which a copied value is inserted."""

    start: int
    end: int
    #: Index of the value in the result of :func:`values_of`.
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
