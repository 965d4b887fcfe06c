"""Shape of a Network Activity event, and the values that fill the slots of its template.

Attempts with the same shape give events that differ only in copied values, such as names, pids and
times. So one template serves all of them.
"""

from __future__ import annotations

from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self, TypeAlias

import orjson

from ocsf_nft.ocsf import actors, dns_queries, endpoints, packet_outcome, protocols
from ocsf_nft.ocsf.messages import short_name
from ocsf_nft.ocsf.model import CACHED
from ocsf_nft.ocsf.safe_text import encodable, plain, printable, visible
from ocsf_nft.ocsf.versions import STORED, is_before
from ocsf_nft.process import Process

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ocsf_nft.attempt import Attempt
    from ocsf_nft.ocsf.activity import Derived
    from ocsf_nft.ocsf.context import Proxy
    from ocsf_nft.ocsf.enums import Direction
    from ocsf_nft.process import Attribution, Container
    from ocsf_nft.record import Detail, Record

#: Key of a template: the values and properties that all events made from it share.
Shape: TypeAlias = tuple[Any, ...]
#: Values for slots: numbers, and texts as JSON without quotation marks.
Values: TypeAlias = tuple[bytes | int | None, ...]

#: Shape of a port that the event only copies. The ports in ``PORTS`` may affect the event.
COPIED: Final = -1
PORTS: Final = protocols.SERVICE_PORTS | packet_outcome.NAME_PORTS | {None}
#: Details that affect the kind and the outcome of a packet: of the first ones the value does, of
#: the others whether it is zero.
_NUMBERS: Final = ("icmp_type", "icmp_code")
_FLAGS: Final = ("fragment_offset", "more_fragments", "incomplete_bytes")
DECISIVE: Final = _NUMBERS + _FLAGS
#: TCP flags that affect the kind of a packet: SYN, RST and ACK (RFC 9293).
TCP_FLAGS: Final = 0b10110
#: A detail that affects the packet and is no number.
_ARP: Final = "arp"
_RELEVANT: Final = frozenset((_ARP, *DECISIVE))

#: Characters that JSON does not escape. Braces are excluded: they would be of a nested object.
_AS_IT_IS: Final = bytes(code for code in range(0x20, 0x7F) if code not in b"\\{}")
#: Characters of the longest path in a cache.
_MAX_CACHED: Final = 256
_TEXTS_OF_CONTAINER: Final = attrgetter(
    "uid", "name", "runtime", "image_uid", "image_name", "orchestrator"
)


class Surroundings(NamedTuple):
    """Facts about the sandbox of an attempt, as its event has them."""

    direction: Direction
    #: Proxy that the sender should have used.
    proxy: Proxy | None
    #: Position of the rule in the kernel, if it belongs to a fence.
    rule: str | None
    container: Container | None
    labels: tuple[str, ...]
    tenant_uid: str | None
    #: The end of a shape, and copied values: the same for many events.
    shape: Shape
    values: Values

    @classmethod
    def of(  # noqa: PLR0913, PLR0917 - facts about a sandbox
        cls,
        direction: Direction,
        proxy: Proxy | None,
        rule: str | None,
        container: Container | None,
        labels: tuple[str, ...],
        tenant_uid: str | None,
    ) -> Self:
        """Create the surroundings, with their part of a shape and of an event's values."""
        shape = (
            direction,
            None if proxy is None else proxy.address.version,
            rule is not None,
            _container_shape(container),
            len(labels),
            _text_shape(tenant_uid),
        )
        values = (
            None if proxy is None else str(proxy.address).encode(),
            None if rule is None else printable(orjson.dumps(rule))[1:-1],
            *_container_values(container),
            *map(_text_value, labels),
            _text_value(tenant_uid),
        )
        return cls(direction, proxy, rule, container, labels, tenant_uid, shape, values)


def shape_of(
    attempt: Attempt, derived: Derived, around: Surroundings, version: str
) -> Shape | None:
    """Return the shape of an attempt: attempts with the same shape share an event template.

    Return None if the attempt can't have a template, for example because it is aggregated, or has
    several possible senders or DNS questions. ``derived`` has values computed from the attempt.
    ``version`` is the OCSF version.
    """
    record, by = attempt.record, attempt.attribution
    if attempt.aggregation is not None:
        return None
    if around.labels and is_before(STORED, version):  # a conversion may copy parts of labels
        return None
    if by is not None and (by.seen or by.unnamed):
        return None
    if derived.source is None and record.source is not None:
        return None
    if derived.destination is None and record.destination is not None:
        return None
    questions = attempt.questions
    if questions and not (len(questions) == 1 and dns_queries.is_usual(questions[0])):
        return None
    if not (_is_mac(record.mac_source) and _is_mac(record.mac_destination)):
        return None
    details: Shape | None = ()
    if not _RELEVANT.isdisjoint(record.details):
        details = _decisive(record.details)
        if details is None:
            return None
    return (
        rule_shape(record, derived, around, version),
        _text_shape(record.mac_source),
        _text_shape(record.mac_destination),
        record.ethertype,
        derived.source,
        derived.destination,
        record.protocol,
        record.source_port if record.source_port in PORTS else COPIED,
        record.destination_port if record.destination_port in PORTS else COPIED,
        None if record.tcp_flags is None else record.tcp_flags & TCP_FLAGS,
        details,
        derived.severity,
        min(attempt.packets, 2),
        attempt.start_ns // 1_000_000 == attempt.end_ns // 1_000_000,
        attempt.bytes is not None,
        record.uid is not None,
        record.gid is not None,
        derived.community_uid is not None,
        questions[0].type if questions else None,
        None if by is None else _attribution_shape(by, record),
    )


def rule_shape(record: Record, derived: Derived, around: Surroundings, version: str) -> Shape:
    """Return the part of a shape that the rule, the devices, the log and the IP version decide.

    ``derived`` has values computed from the attempt of ``record``. ``version`` is the OCSF version.
    """
    origin = record.origin
    return (
        version,
        _text_shape(record.sandbox),
        record.rule,
        record.verdict,
        _text_shape(record.in_interface),
        _text_shape(record.out_interface),
        record.ip_version,
        origin.log_source,
        origin.log_format,
        None if derived.host is None else derived.host.shape,
        derived.firewall,
        origin.sequence is not None,
        origin.original_time is not None,
        *around.shape,
    )


def _is_mac(text: str | None) -> bool:
    return text is None or endpoints.is_mac(text)


def _text_shape(text: str | None) -> Literal[True, ""] | None:
    return True if text else None if text is None else ""


def _decisive(details: Mapping[str, Detail]) -> Shape | None:
    """Return the header details that affect the event's content, such as ``icmp_type``.

    Return None if the details include one for which no template can be made, such as ``arp``.
    """
    if _ARP in details:
        return None
    numbers = []
    for name in DECISIVE:
        value = details.get(name, 0)
        if not isinstance(value, int):
            return None
        if name in details:
            numbers.append((name, bool(value) if name in _FLAGS else value))
    return tuple(numbers)


def _attribution_shape(by: Attribution, record: Record) -> Shape:
    process = by.process
    return (
        by.method,
        by.confidence,
        by.reason,
        _text_shape(by.user_name),
        _text_shape(by.group_name),
        None if process is None else _process_shape(process),
        # Whether the process has the user and the group of the record.
        process is not None and process.uid == record.uid,
        process is not None and process.gid == record.gid,
    )


def _process_shape(process: Process) -> Shape:
    program = program_of(process)
    return (
        program.shape,
        program.has_long_name,
        process.tid is not None,
        _text_shape(process.cmd_line),
        _text_shape(process.working_directory),
        process.created_ns is not None,
        process.namespace_pid is not None,
        process.uid is not None,
        _text_shape(process.user_name),
        process.gid is not None,
        _text_shape(process.group_name),
        _container_shape(process.container),
        _text_shape(process.unit),
        _ancestor_shapes(process.ancestors),
    )


def _ancestor_shapes(ancestors: Sequence[Process]) -> tuple[Shape, ...]:
    """Return the shapes of a process's ancestors, the parent first.

    An event has the file of the parent, but only the name and path of the others.
    """
    found = [program_of(each).shape for each in ancestors]
    return (*found[:1], *map(_without_file, found[1:]))


def _without_file(shape: Shape) -> Shape:
    name, path, _, _ = shape
    # The path of a program with a name may as well be that of a file.
    return name, path and ("file" if name is True else path)


class Program(NamedTuple):
    """Shape of a program, and its copied values: the same for all processes that run it."""

    shape: Shape
    #: Name, path and hash.
    values: Values
    #: Path of a file, of a program without a file, or another path.
    path: Literal["file", "memory", "folder"] | None
    #: Name in a sentence.
    short_name: bytes | None
    #: Whether sentences have only the first characters of the name.
    has_long_name: bool


def program_of(process: Process) -> Program:
    """Return the program that a process runs."""
    # A program may choose a long path: the cache must not need much memory.
    is_cached = process.path is None or len(process.path) <= _MAX_CACHED
    make = _program if is_cached else _program.__wrapped__
    return make(process.name, process.path, process.is_deleted, process.sha256)


@lru_cache(maxsize=CACHED)
def _program(
    name: str | None, path: str | None, is_deleted: bool | None, sha256: str | None
) -> Program:
    process = Process(pid=0, name=name, path=path)
    shown, short = actors.name_of(process), short_name(process)
    kind: Literal["file", "memory", "folder"] | None = None
    if path is not None and not actors.program(process):
        kind = "folder"
    elif path is not None:
        kind = "memory" if path.startswith(actors.MEMORY) else "file"
    is_valid = None if sha256 is None else actors.is_valid_hash(sha256)
    return Program(
        (_text_shape(shown), kind, is_deleted, is_valid),
        (_text_value(shown), _text_value(path), _text_value(sha256)),
        kind,
        _text_value(short),
        short != shown,
    )


@lru_cache(maxsize=CACHED)
def _container_shape(container: Container | None) -> Shape | None:
    if container is None:
        return None
    pod = container.pod_uid
    is_valid = None if pod is None else actors.is_valid_pod_uid(pod)
    return (*map(_text_shape, _TEXTS_OF_CONTAINER(container)), is_valid, len(container.labels))


def values_of(
    attempt: Attempt, derived: Derived, around: Surroundings, processed_ns: int
) -> Values:
    """Return the values for the slots of an event's template: numbers, and texts as JSON bytes.

    Their number and order depend only on the shape. A value that the attempt lacks is None, and has
    no slot. ``processed_ns`` is the present time.
    """
    record, origin = attempt.record, attempt.record.origin
    start, end = attempt.start_ns // 1_000_000, attempt.end_ns // 1_000_000
    original = origin.original_time
    # The ports are first, because templates._slots_of_ports gives them the indexes 0 to 2. The enum
    # ``slot`` of ocsf_nft/conversion/native/converter.c has the indexes of the first 32 values.
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
        _packet(record.details),
        orjson.dumps(visible(record.prefix)),
        None if original is None else orjson.dumps(visible(original)),
        orjson.dumps(visible(origin.identity)),
        origin.sequence,
        record.received_ns // 1_000_000,
        processed_ns // 1_000_000,
        _name_value(record.sandbox),
        _name_value(record.in_interface),
        _name_value(record.out_interface),
        None if record.mac_source is None else record.mac_source.encode(),
        None if record.mac_destination is None else record.mac_destination.encode(),
        _text_value(attempt.questions[0].name) if attempt.questions else None,
        *(() if derived.host is None else derived.host.values),
        *around.values,
        *_attribution_values(attempt.attribution),
    )


def _packet(details: Mapping[str, Detail]) -> bytes:
    """Encode header details as a JSON member with a comma: ``"packet":{"ttl":64,"tos":0},``."""
    try:
        encoded = orjson.dumps(details, option=orjson.OPT_STRICT_INTEGER)
    except TypeError:  # a long number, a lone surrogate, a mapping that is no dict
        encoded = orjson.dumps(plain(details))
    if encoded[1:-1].translate(None, _AS_IT_IS):
        encoded = orjson.dumps(plain(details))
    return b'"packet":%b,' % encoded if details else b""


def _attribution_values(by: Attribution | None) -> Values:
    if by is None:
        return ()
    names = (_name_value(by.user_name), _name_value(by.group_name))
    return names if by.process is None else names + _process_values(by.process)


def _process_values(process: Process) -> Values:
    program = program_of(process)
    return (
        process.pid,
        *program.values,
        program.short_name,
        process.tid,
        _text_value(process.cmd_line),
        _text_value(process.working_directory),
        None if process.created_ns is None else process.created_ns // 1_000_000,
        process.namespace_pid,
        process.uid,
        _name_value(process.user_name),
        process.gid,
        _name_value(process.group_name),
        *_container_values(process.container),
        _name_value(process.unit),
        *(value for each in process.ancestors for value in (each.pid, *program_of(each).values)),
    )


@lru_cache(maxsize=CACHED)
def _container_values(container: Container | None) -> Values:
    if container is None:
        return ()
    texts = (*_TEXTS_OF_CONTAINER(container), container.pod_uid, *container.labels)
    return tuple(map(_text_value, texts))


def _text_value(text: str | None) -> bytes | None:
    return None if text is None else orjson.dumps(visible(text))[1:-1]


@lru_cache(maxsize=CACHED)
def _name_value(name: str | None) -> bytes | None:
    """Return a name that many events have, as :func:`_text_value` does."""
    return _text_value(name)
