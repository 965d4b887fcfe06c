"""Events with a placeholder in place of each copied value, from which templates are made."""

from __future__ import annotations

import ipaddress
import os
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf import actors
from ocsf_nft.ocsf.activity import Activities
from ocsf_nft.ocsf.context import Context, Proxy
from ocsf_nft.ocsf.enums import Direction
from ocsf_nft.ocsf.event_slots import (
    COPIED,
    DECISIVE,
    PORTS,
    TCP_FLAGS,
    Surroundings,
    program_of,
    values_of,
)
from ocsf_nft.ocsf.foreign_log import logging_host
from ocsf_nft.ocsf.versions import line_at
from ocsf_nft.process import Attribution, Container, Process
from ocsf_nft.record import LogHost

if TYPE_CHECKING:
    from ocsf_nft.ocsf.activity import Derived
    from ocsf_nft.ocsf.addresses import AddressKind
    from ocsf_nft.ocsf.context import Host
    from ocsf_nft.ocsf.event_slots import Values
    from ocsf_nft.ocsf.foreign_log import LoggingHost
    from ocsf_nft.record import Record

#: Placeholders of both ports, and of the proxy's port. Ports are too short for random placeholders,
#: so two events with different ports are made: the ports are where their lines differ.
PORT_PLACEHOLDERS: Final = ((11111, 22222), (33333, 44444), (12121, 34343))
#: Minimum length of a placeholder: that of a MAC address. Numbers of the shape (a port, a few
#: packets) are shorter.
PLACEHOLDER_CHARACTERS: Final = 17
#: Half of the characters of a name that is too long for a sentence.
_LONG: Final = 48


def lines(
    host: Host | None, attempt: Attempt, derived: Derived, around: Surroundings, version: str
) -> tuple[bytes, bytes, Values]:
    """Return the JSON lines of two events with placeholders, and the placeholders.

    The models make the events from attempts with the shape of ``attempt``. The lines differ only in
    their ports, which are :data:`PORT_PLACEHOLDERS`. The other placeholders are in the order of
    :func:`values_of`. ``version`` is the OCSF version.
    """
    attempt, derived = _specimen(attempt, derived)
    around = _surroundings_specimen(around)
    processed_ns = _number() * 1_000_000
    one, other = (
        line_at(
            Activities(_context(host, around, attempt.record, proxy_port))
            .event(_with_ports(attempt, source, destination), derived, processed_ns=processed_ns)
            .to_json(),
            version,
        )
        for source, destination, proxy_port in zip(*PORT_PLACEHOLDERS, strict=True)
    )
    return one, other, values_of(attempt, derived, around, processed_ns)


def _specimen(attempt: Attempt, derived: Derived) -> tuple[Attempt, Derived]:
    """Return an attempt of the same shape, with a random placeholder for each copied value."""
    record, origin, by = attempt.record, attempt.record.origin, attempt.attribution
    start = end = _number()
    if attempt.start_ns // 1_000_000 != attempt.end_ns // 1_000_000:
        end += _number()
    flags = record.tcp_flags
    if flags is not None:
        flags = _number() & ~TCP_FLAGS | flags & TCP_FLAGS
    host = None if derived.host is None else _host_specimen(derived.host)
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
            host=host,
        ),
    )
    return Attempt(
        record=made,
        packets=_number() if attempt.packets > 1 else attempt.packets,
        bytes=_number_like(attempt.bytes),
        start_ns=start * 1_000_000,
        end_ns=end * 1_000_000,
        attribution=None if by is None else _attribution_specimen(by, record, made),
        questions=tuple(replace(question, name=_text()) for question in attempt.questions),
    ), derived._replace(
        uid=_text(),
        correlation_uid=_text(),
        community_uid=_text_like(derived.community_uid),
        raw_bytes=_number(),
        host=None if host is None else logging_host(host),
    )


def _host_specimen(host: LoggingHost) -> LogHost:
    kind, has_boot_id, has_machine_id = host.shape
    names = {
        "hostname": _text(),
        "ip": str(ipaddress.IPv6Address(os.urandom(16))),
        "name": f"_{_text()}",
    }
    return LogHost(
        name=names[kind],
        boot_id=_text() if has_boot_id else None,
        machine_id=_text() if has_machine_id else None,
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
    return replace(
        by,
        process=process,
        user_name=_text_like(by.user_name),
        group_name=_text_like(by.group_name),
    )


def _program_specimen(process: Process) -> Process:
    program = program_of(process)
    name = os.urandom(_LONG).hex() if program.has_long_name else _text()
    paths = {
        None: None,
        "memory": f"{actors.MEMORY}{name}",
        "file": f"/{_text()}/{name}",
        "folder": f"/{_text()}/",
    }
    sha256 = process.sha256
    if sha256 is not None:
        sha256 = os.urandom(32).hex() if actors.is_valid_hash(sha256) else _text()
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
        orchestrator=_text_like(container.orchestrator),
        labels=tuple(_text() for _ in container.labels),
    )


def _surroundings_specimen(around: Surroundings) -> Surroundings:
    rule, proxy = around.rule, around.proxy
    if rule is not None:
        rule = _text()
    if proxy is not None:
        address: Any = _PlaceholderAddress(proxy.address.version)
        proxy = Proxy(address=address, port=COPIED)
    container = _container_specimen(around.container)
    labels = tuple(_text() for _ in around.labels)
    tenant = _text_like(around.tenant_uid)
    return Surroundings.of(around.direction, proxy, rule, container, labels, tenant)


class _PlaceholderAddress:
    """Random text in place of an IP address."""

    def __init__(self, version: Literal[4, 6]) -> None:
        self.version = version
        self._text = _text()

    def __str__(self) -> str:
        return self._text


def _context(host: Host | None, around: Surroundings, record: Record, proxy_port: int) -> Context:
    # A forwarded packet has its direction from the uplinks.
    uplinks = {Direction.INBOUND: record.in_interface, Direction.OUTBOUND: _text()}
    uplink = uplinks.get(around.direction)
    if host is not None:  # ``around`` has what its sandboxes take from it
        host = replace(host, tenant_uid=None, environment=None)
    return Context(
        host=host,
        proxies=() if around.proxy is None else (replace(around.proxy, port=proxy_port),),
        uplinks=frozenset(() if uplink is None else (uplink,)),
        rules={} if around.rule is None else {record.rule: around.rule},
        container=around.container,
        labels=around.labels,
        tenant_uid=around.tenant_uid,
    )


def _text() -> str:
    """Return a random text, which no event contains by chance."""
    return os.urandom(16).hex()


def _text_like(text: str | None) -> str | None:
    return _text() if text else text


def _number() -> int:
    """Return a random number of 18 or 19 digits, which no event contains by chance."""
    # The end of an attempt is the sum of two such numbers, which must fit into 64 bits.
    return (1 << 59) + int.from_bytes(os.urandom(8)) % (1 << 59)


def _number_like(number: int | None) -> int | None:
    return None if number is None else _number()


def _mac() -> str:
    # Locally administered, and not the address of a real interface.
    return ":".join(f"{byte:02x}" for byte in (0x02, *os.urandom(5)))


def _address(kind: AddressKind) -> str:
    # The colon makes the event show the placeholder in brackets, as an IPv6 address.
    return f"{_text()}:" if kind.version == 6 else _text()


def _with_ports(attempt: Attempt, source: int, destination: int) -> Attempt:
    record = attempt.record
    if record.source_port == COPIED:
        record = replace(record, source_port=source)
    if record.destination_port == COPIED:
        record = replace(record, destination_port=destination)
    return replace(attempt, record=record)
