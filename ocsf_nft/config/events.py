"""Configuration of events: store, processes, severities, findings, and foreign log prefixes."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field

from ocsf_nft.config.base_table import FileName, Seconds, Size, Table, checked
from ocsf_nft.errors import UsageError
from ocsf_nft.fence import values
from ocsf_nft.flows.dns_questions import MAX_OF_FLOW
from ocsf_nft.log_prefixes import begins
from ocsf_nft.ocsf import protocols
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.finding_settings import FindingSettings, TunnelThreshold
from ocsf_nft.ocsf.severity import SeverityRule
from ocsf_nft.quoted import quoted
from ocsf_nft.record import ForeignVerdict

SeverityName: TypeAlias = Literal["informational", "low", "medium", "high", "critical"]
_PROTOCOLS: Final = {name: number for number, name in protocols.NAMES.items()} | {
    "icmpv6": protocols.ICMPV6
}


def _protocol(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.lower() not in _PROTOCOLS:
        raise ValueError(
            f"{quoted(value)} is no IP protocol: give its name at IANA, as tcp or ipv6-icmp, "
            "or a number"
        )
    return _PROTOCOLS[value.lower()]


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise UsageError(
            f"{quoted(text)} is no address and no network: write 203.0.113.0/24 or 2001:db8::/32"
        ) from error


def _web_address(text: str) -> str:
    try:
        found = urlsplit(text)
        is_valid = found.scheme in {"http", "https"} and found.hostname and text.isprintable()
    except ValueError:  # such as an address in one bracket
        is_valid = False
    if not is_valid:
        raise UsageError(f"{quoted(text)} is no web address: write https://HOST/PATH/")
    return text if text.endswith("/") else f"{text}/"


class StoreConfig(Table):
    """Store of the events and of the packet counts on the disk, table ``[store]`` in the file.

    Events use at most ``max_bytes``. An eighth of that is for dead letters: events that a sink
    refused. Packet counts are stored in addition. To make room, the store deletes the oldest events
    that every sink has acknowledged, and the oldest dead letters. An event that is older than
    ``max_age`` is deleted even if a sink still needs it.

    The checkpoints of the sinks and the dead letters are in a directory beside ``path``. It has the
    same name with ``.delivery`` at the end.

    ``when_full`` applies if the disk is full, or the store is full of events that a sink has not
    acknowledged. With ``wait``, `ocsf-nft run` reads no more log records until there is room.
    With ``drop``, `ocsf-nft run` drops the oldest events, and reports how many events each sink
    will never get.
    """

    path: Annotated[Path, FileName] | None = None
    """File of the store; by default state-1.sqlite3 in state_dir."""
    max_bytes: Annotated[Size, Field(ge=1 << 20, le=1 << 44)] = 1 << 30
    """Maximum size of the events: a number of bytes, or text such as 512MiB."""
    max_age: Annotated[Seconds, Field(ge=60, le=10 * 366 * 86_400)] = 30 * 86_400.0
    """Maximum age of an event: a number of seconds, or text such as 30d."""
    when_full: Literal["wait", "drop"] = "wait"
    """Read no more records, or remove the oldest events."""


class AttributionConfig(Table):
    """Attribution of packets to the processes that sent them, table ``[attribution]`` in the file.

    ``method`` is the first method that is tried to find the process. If it does not work, a weaker
    method is used. With ``capture``, BPF programs record the process at the time when it sends.
    With ``socket``, an event names the process that has the socket when the packet's log record
    arrives. With ``user``, an event names only the user. The search for the process delays a log
    record by at most ``wait_ms``.

    An event has the SHA-256 of the process's program file if the file has at most
    ``hash_max_bytes``. The hash is missing if the file can't be read within ``wait_ms``. If
    ``hash_max_bytes`` is 0 (the default), no event has a hash.
    """

    method: Literal["capture", "socket", "user"] = "capture"
    """Best attribution method that may be used."""
    wait_ms: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Maximum time that a record waits for its process, in milliseconds."""
    hash_max_bytes: Annotated[Size, Field(ge=0)] = 0
    """Hash programs (SHA-256) up to this size; 0: none."""


class SeverityConfig(Table):
    """Rule for the severity of refused packets, table ``[[severity]]`` in the file.

    The rule applies to packets that match all keys in the table except ``severity``. A key that the
    table lacks matches every packet. If several rules match, the first one in the file applies.
    """

    severity: SeverityName
    """Severity of the attempts that match all other keys."""
    sandbox: Annotated[str, checked(values.sandbox_name)] | None = None
    """Name of the sandbox."""
    rule: Annotated[str, Field(min_length=1)] | None = None
    """Name of the rule, such as egress."""
    protocol: (
        Annotated[
            int,
            BeforeValidator(_protocol, json_schema_input_type=int | str),
            Field(ge=0, le=255, strict=True),
        ]
        | None
    ) = None
    """IP protocol: its IANA name, such as tcp, or its number."""
    destination: (
        Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, checked(_network)] | None
    ) = None
    """Address or network of the destination."""
    port: Annotated[int, Field(ge=0, le=65535, strict=True)] | None = None
    """Destination port."""
    uid: Annotated[int, Field(ge=0, le=0xFFFF_FFFE, strict=True)] | None = None
    """User of the sender."""

    def as_rule(self) -> SeverityRule:
        """Convert this table of the configuration file to a SeverityRule."""
        return SeverityRule(**dict(self) | {"severity": Severity[self.severity.upper()]})


class FindingConfig(Table):
    """Condition for an attempt to become a finding, table ``[finding]`` in the file.

    An attempt is a group of refused packets of one flow; one event reports the group. An attempt
    with the severity ``min_severity`` or a higher one becomes a finding (Detection Finding event).
    The key ``threshold`` is for attempts with the severity Medium or a higher one. Such an attempt
    becomes a finding if at least ``threshold`` packets of its flow have been refused so far.
    """

    min_severity: SeverityName = "high"
    """An attempt of this severity or a higher one is a finding at once."""
    threshold: Annotated[int, Field(ge=1, le=1 << 62, strict=True)] = FindingSettings().packets
    """Number of packets from which an attempt of severity Medium is a finding."""

    alert_severity: SeverityName = "high"
    """A finding of this severity or a higher one is an alert (is_alert)."""
    auto_close: bool = False
    """Close a finding when its packets have ended. By default only a person closes it."""
    runbook_url: Annotated[str, checked(_web_address)] | None = None
    """Address of the runbook on your web server, as https://docs.example.com/how-to/runbook/. A
    finding then has a link to its page."""

    def as_settings(self) -> FindingSettings:
        """Convert this table of the configuration file to the settings of findings."""
        return FindingSettings(
            min_severity=Severity[self.min_severity.upper()],
            packets=self.threshold,
            alert_severity=Severity[self.alert_severity.upper()],
            auto_close=self.auto_close,
            runbook_url=self.runbook_url,
        )


class EventsConfig(Table):
    """Choice of optional events, table ``[events]`` in the file."""

    dns_activity: bool = False
    """Emit a DNS Activity event for each name in logged DNS queries."""


class DnsTunnelConfig(Table):
    """Condition for the DNS queries of a flow to be a finding, table ``[dns_tunnel]`` in the file.

    Data that leaves by DNS is written into names. So a flow to port 53 becomes a finding of the
    severity High if its queries have ``names`` distinct long names below one domain. A name is long
    if it has at least ``length`` characters below the domain. All these characters together must
    have at least ``entropy`` bits a character: hexadecimal data has 4, base 32 has 5, and a
    repeated character has 0.
    """

    names: Annotated[int, Field(ge=2, le=MAX_OF_FLOW, strict=True)] = TunnelThreshold().names
    """Number of distinct long names below one domain."""
    length: Annotated[int, Field(ge=1, le=250, strict=True)] = TunnelThreshold().length
    """Characters of a long name, without the domain and the dots."""
    entropy: Annotated[float, Field(ge=0, le=8, allow_inf_nan=False)] = TunnelThreshold().entropy
    """Minimum of bits a character in the long names."""

    def as_threshold(self) -> TunnelThreshold:
        """Convert this table of the configuration file to the condition for a DNS tunnel."""
        return TunnelThreshold(**dict(self))


class PrefixConfig(Table):
    """Meaning of another firewall's log prefix, table ``[[prefix]]`` in the file.

    A log prefix is the text at the start of a firewall's log record. The table applies to each
    log record with a prefix that starts with the text ``begins``. ``verdict`` is the verdict of
    these records. The optional keys ``sandbox`` and ``rule`` set their sandbox and their rule.
    Without ``rule``, the complete prefix becomes the rule's name.
    """

    begins: Annotated[str, checked(begins)]
    """Beginning of the log prefix."""
    verdict: ForeignVerdict
    """What the rule did with the packet."""
    sandbox: Annotated[str, checked(values.sandbox_name)] | None = None
    """Name of a sandbox."""
    rule: Annotated[str, Field(min_length=1)] | None = None
    """Name of the rule; by default the text of the prefix."""
