"""Results of reading a kernel log: log records, gaps (missing records) and rejected lines.

Every transport (NFLOG, /dev/kmsg, journal, file) returns these types.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self, TypeAlias

#: ``counters``: a record made from a counter of the fence, not from a log.
Transport: TypeAlias = Literal["nflog", "kmsg", "journal", "replay", "counters"]
#: The kernel module that defines the format of a record.
LogFormat: TypeAlias = Literal["nf_log_syslog", "nfnetlink_log", "nf_tables"]

#: Verdict of another firewall for a packet that it logged. ``reject``: refused with an answer;
#: ``drop``: refused without an answer; ``accept``: allowed; ``log``: logged, with unknown verdict.
ForeignVerdict: TypeAlias = Literal["reject", "drop", "accept", "log"]
#: These, and ``permit``: allowed by a permissive fence of ours, which would have refused it
#: otherwise.
Verdict: TypeAlias = Literal[ForeignVerdict, "permit"]

#: Header field without its own attribute in a :class:`Record`: numbers as numbers, flags as
#: ``True``, the packet quoted inside an ICMP error as a nested mapping under ``"quoted"``.
Detail: TypeAlias = int | str | bool | Mapping[str, Any]

#: The log prefix of our rulesets is ``ocsf-nft:<sandbox>:<rule>:`` on every transport. That of a
#: permissive ruleset has one more word: ``ocsf-nft:<sandbox>:<rule>:permissive:``.
PREFIX_ROOT = "ocsf-nft:"
PERMISSIVE = "permissive"
#: Rules of a fence for a virtual machine. Packets that they refuse have no owner on this host: a
#: socket that the kernel has with such a packet belongs to the hypervisor, or to the receiver.
VM_RULES = frozenset({"vm-forward", "vm-input", "vm-ingress", "vm-link"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LogHost:
    """Host that logged a record, as a syslog line or a journal entry names it; hostile text."""

    #: Host name or address.
    name: str
    #: Values of the journal's fields ``_BOOT_ID`` and ``_MACHINE_ID``: 32 hexadecimal digits.
    boot_id: str | None = None
    machine_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Source of a log record, and the identity of the record in that source."""

    transport: Transport
    #: Different for each record, and the same if a record is read again; for example, a journal
    #: cursor. The uids of events are derived from it.
    identity: str
    #: Name of the log.
    log_source: str
    #: Format of ``raw``. The text alone does not show it: a log prefix may begin like another
    #: format.
    log_format: LogFormat
    #: Text of the record, as in the source, but without the payload of the packet and secrets.
    raw: str
    #: Size of the whole text in bytes; None if ``raw`` lacks nothing.
    raw_bytes: int | None = None
    #: Number that the source gave the record.
    sequence: int | None = None
    #: Timestamp that the source gave the record.
    original_time: str | None = None
    #: None if the log does not name the host that logged the record.
    host: LogHost | None = None


@dataclass(frozen=True, slots=True)
class DnsQuestion:
    """Question of a DNS query: the name that the sender asks for, and the type of the answer."""

    #: Presentation format of RFC 1035 in lower case, without the last dot; ``.`` is the root. Each
    #: byte that is not printable ASCII is escaped, as in ``\\000``: at most 1,011 characters.
    name: str
    #: Number of the record type (IANA), for example 1 for A.
    type: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Packet that a firewall rule logged, in most cases because the rule refused the packet.

    All log transports (NFLOG, journal and others) give an equal record for the same packet. Absent
    values are None.
    """

    #: Text of the rule's log statement.
    prefix: str
    #: ``sandbox`` and ``rule`` are the names in ``prefix``.
    sandbox: str | None
    rule: str
    #: None in the normal case: a fence refused the packet. ``permit``: a permissive fence allowed
    #: the packet. For another firewall: the verdict in the log prefix, for example ``drop``.
    verdict: Verdict | None = None
    in_interface: str | None = None
    out_interface: str | None = None
    #: MAC addresses are lower-case, with colons.
    mac_source: str | None = None
    mac_destination: str | None = None
    ethertype: int | None = None
    ip_version: Literal[4, 6] | None = None
    #: IP addresses are in canonical text form (RFC 5952 for IPv6).
    source: str | None = None
    destination: str | None = None
    protocol: int | None = None
    source_port: int | None = None
    destination_port: int | None = None
    #: The 9-bit field of RFC 9293 and RFC 3168, for example SYN=2 and ACK=16.
    tcp_flags: int | None = None
    #: Total length of the IP packet in bytes.
    length: int | None = None
    uid: int | None = None
    gid: int | None = None
    details: Mapping[str, Detail] = field(default_factory=dict)
    # The fields below differ between log transports, so equality ignores them.
    #: Time of the packet, in ns since the epoch (UTC).
    time_ns: int = field(compare=False)
    #: Time of the read, in ns since the epoch (UTC).
    received_ns: int = field(compare=False)
    #: Adler-32 checksum (RFC 1950) of the packet's first 128 bytes; None if no bytes were captured.
    captured_sum: int | None = field(default=None, compare=False)
    #: Question of the DNS query in the packet. Only NFLOG gives the bytes of a packet.
    question: DnsQuestion | None = field(default=None, compare=False)
    origin: Origin = field(compare=False)

    @property
    def is_timed_when_read(self) -> bool:
        """Return true if the packet's time is unknown, so that ``time_ns`` is the time of the read.

        Then the packet may be older than ``time_ns``. NFLOG gives no time for outgoing packets.
        """
        return self.time_ns == self.received_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Missing log records: the kernel logged them, but the source could not read them."""

    transport: Transport
    reason: str
    #: Number of missing records; None if the transport does not number its records.
    dropped: int | None
    #: The kernel logged the records between these times (ns since the epoch, UTC).
    since_ns: int
    until_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """Line of a log that resembles a packet's log record, but is not accepted as a log record."""

    #: ``forged``: the line is not from the kernel, or names a sandbox whose records can't be in
    #: this log. ``malformed``: the line can't be parsed. ``ambiguous``: there are several ways to
    #: parse it.
    kind: Literal["forged", "malformed", "ambiguous"]
    reason: str
    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Result of one read of a log: log records in the kernel's order, gaps and rejected lines."""

    records: tuple[Record, ...] = ()
    gaps: tuple[Gap, ...] = ()
    #: Texts from the log that are no valid log records.
    rejected: tuple[Reject, ...] = ()
    #: Position after this batch, at which reading can resume; None if reading can't resume.
    cursor: str | None = None
    #: Earliest time at which the kernel can have logged the records (ns of CLOCK_BOOTTIME); 0 if
    #: unknown.
    since_ns: int = 0

    @classmethod
    def of(
        cls, found: Iterable[Record | Gap | Reject], cursor: str | None = None, since_ns: int = 0
    ) -> Self:
        """Return a batch of ``found``, with the items of each kind in their order."""
        records: list[Record] = []
        gaps: list[Gap] = []
        rejected: list[Reject] = []
        for item in found:
            if isinstance(item, Record):
                records.append(item)
            elif isinstance(item, Gap):
                gaps.append(item)
            else:
                rejected.append(item)
        return cls(
            records=tuple(records), gaps=tuple(gaps), rejected=tuple(rejected),
            cursor=cursor, since_ns=since_ns,
        )  # fmt: skip


class Prefix(NamedTuple):
    """Parts of a log prefix: ``ocsf-nft:agent:egress:`` has sandbox ``agent`` and rule ``egress``.

    ``verdict`` is ``permit`` in the prefix of a permissive fence, else None. A prefix of another
    firewall may stand for a sandbox, a rule and a verdict too: see ``log_prefixes.Prefixes``.
    """

    sandbox: str | None
    rule: str
    verdict: Verdict | None = None


def split_prefix(prefix: str) -> Prefix:
    """Split a log prefix into sandbox, rule and verdict (:class:`Prefix`).

    The prefix of another firewall is not split: the rule is the whole text, and the sandbox is
    None.
    """
    if prefix.startswith(PREFIX_ROOT) and prefix.endswith(":"):
        match prefix[len(PREFIX_ROOT) : -1].split(":"):
            case [str(sandbox), str(rule)] if sandbox and rule:
                return Prefix(sandbox, rule)
            case [str(sandbox), str(rule), "permissive"] if sandbox and rule:
                return Prefix(sandbox, rule, "permit")
    return Prefix(None, prefix.strip())


def own_prefix(sandbox: str, rule: str, *, is_permissive: bool = False) -> str:
    """Return the log prefix of a rule in an ocsf-nft fence, for example ``ocsf-nft:agent:egress:``.

    If the fence is permissive, the prefix is ``ocsf-nft:agent:egress:permissive:``.
    """
    return f"{PREFIX_ROOT}{sandbox}:{rule}:{f'{PERMISSIVE}:' if is_permissive else ''}"
