"""Results of reading a source of kernel log records: records, gaps, and lines that are no record.

Every transport yields these types, and every later stage reads them. They are immutable and import
nothing of the rest of the package.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

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
Detail: TypeAlias = "int | str | bool | Mapping[str, Detail]"

#: The log prefix of our rulesets is ``ocsf-nft:<sandbox>:<rule>:`` on every transport. That of a
#: permissive ruleset has one more word: ``ocsf-nft:<sandbox>:<rule>:permissive:``.
PREFIX_ROOT = "ocsf-nft:"
PERMISSIVE = "permissive"
#: Rules of a fence for a virtual machine. Packets that they refuse have no owner on this host: a
#: socket that the kernel has with such a packet belongs to the hypervisor, or to the receiver.
VM_RULES = frozenset({"vm-forward", "vm-input", "vm-ingress", "vm-link"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Source from which a log record was read, with the unique identity of the record.

    ``identity`` is unique for each record, and the same if the record is read again. It is a kernel
    log sequence number with its boot id, a journal cursor, or a position in a file. Event uids are
    derived from it. ``log_source`` is the name of the log. ``raw`` is the text of the record from
    the source. ``log_format`` is the format of that text. The text alone does not show its format,
    because a log prefix may begin like another format. ``original_time`` is the timestamp as the
    source wrote it. ``sequence`` is the source's number of the record.
    """

    transport: Transport
    identity: str
    log_source: str
    log_format: LogFormat
    raw: str
    sequence: int | None = None
    original_time: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Packet that a firewall rule logged, in most cases because the rule refused the packet.

    All transports give an equal record for the same packet. ``prefix`` is the text of the rule's
    log statement. ``sandbox`` and ``rule`` are the names in ``prefix``. Addresses are in canonical
    text form (RFC 5952 for IPv6, lower-case with colons for MACs). Numbers are as in the headers.
    Absent values are None and never guessed. ``length`` is the total length of the IP packet in
    bytes. ``tcp_flags`` is the 9-bit field of RFC 9293 and RFC 3168 (FIN=1, SYN=2, RST=4, PSH=8,
    ACK=16, URG=32, ECE=64, CWR=128, AE=256). For a rule of another firewall, ``verdict`` is the
    verdict in its log prefix. For a permissive rule of ours, it is ``permit``. For an enforcing
    rule of ours it is None, because the rule itself shows the answer. Times are nanoseconds since
    the epoch, UTC. Times and origin are not compared, because two transports see the same packet at
    slightly different times. ``captured_sum`` is the Adler-32 (RFC 1950) of the captured bytes of
    the packet; None if no bytes were captured.
    """

    prefix: str
    sandbox: str | None
    rule: str
    verdict: Verdict | None = None
    in_interface: str | None = None
    out_interface: str | None = None
    mac_source: str | None = None
    mac_destination: str | None = None
    ethertype: int | None = None
    ip_version: Literal[4, 6] | None = None
    source: str | None = None
    destination: str | None = None
    protocol: int | None = None
    source_port: int | None = None
    destination_port: int | None = None
    tcp_flags: int | None = None
    length: int | None = None
    uid: int | None = None
    gid: int | None = None
    details: Mapping[str, Detail] = field(default_factory=dict)
    time_ns: int = field(compare=False)
    received_ns: int = field(compare=False)
    captured_sum: int | None = field(default=None, compare=False)
    origin: Origin = field(compare=False)

    @property
    def is_timed_when_read(self) -> bool:
        """Return whether ``time_ns`` is only the time of the read; the packet may be older.

        NFLOG has no time for outgoing packets.
        """
        return self.time_ns == self.received_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Missing log records: a source could not read them, between two timestamps (ns, epoch, UTC).

    ``dropped`` is the exact number of missing records, if the transport numbers its records. It is
    ``None`` if the transport only reports that records are missing.
    """

    transport: Transport
    reason: str
    dropped: int | None
    since_ns: int
    until_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """Log line that has the form or the log prefix of a record, but is not accepted as a record.

    ``forged``: a user process wrote the line (the facility is not the kernel's). ``malformed``: the
    line can't be parsed. ``ambiguous``: it can be parsed in more than one way.
    """

    kind: Literal["forged", "malformed", "ambiguous"]
    reason: str
    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Result of one read of a source of log records, in the kernel's order.

    ``rejected`` are lines that are no valid records. ``cursor`` is the position after this batch,
    in a format that only the source understands. A source that is opened with this cursor resumes
    with the next record. ``cursor`` is None if the transport has no position. ``since_ns`` is the
    earliest time at which the kernel can have logged the records (CLOCK_BOOTTIME); 0 if unknown.
    """

    records: tuple[Record, ...] = ()
    gaps: tuple[Gap, ...] = ()
    rejected: tuple[Reject, ...] = ()
    cursor: str | None = None
    since_ns: int = 0


class Prefix(NamedTuple):
    """Parts of a log prefix.

    ``verdict`` is ``permit`` for a permissive fence, else None. For a prefix of another firewall,
    ``sandbox`` is None and ``rule`` is the whole text of the prefix.
    """

    sandbox: str | None
    rule: str
    verdict: Verdict | None = None


def split_prefix(prefix: str) -> Prefix:
    """Split a log prefix into sandbox, rule and verdict.

    For a prefix of another firewall, the sandbox is None and the rule is the whole text.
    """
    if prefix.startswith(PREFIX_ROOT) and prefix.endswith(":"):
        match prefix[len(PREFIX_ROOT) : -1].split(":"):
            case [str(sandbox), str(rule)] if sandbox and rule:
                return Prefix(sandbox, rule)
            case [str(sandbox), str(rule), "permissive"] if sandbox and rule:
                return Prefix(sandbox, rule, "permit")
    return Prefix(None, prefix.strip())


def own_prefix(sandbox: str, rule: str, *, is_permissive: bool = False) -> str:
    """Return the log prefix of a rule of a sandbox's fence, such as ``ocsf-nft:agent:egress:``."""
    return f"{PREFIX_ROOT}{sandbox}:{rule}:{f'{PERMISSIVE}:' if is_permissive else ''}"
