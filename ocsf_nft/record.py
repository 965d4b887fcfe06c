"""What the kernel said: records, and what a source says about them.

These types are what every transport yields and every later stage reads. They are immutable and
know nothing of the rest of the package.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

#: ``counters``: what was read is a counter of the fence, not a log.
Transport: TypeAlias = Literal["nflog", "kmsg", "journal", "replay", "counters"]
#: The kernel module whose form a record has.
LogFormat: TypeAlias = Literal["nf_log_syslog", "nfnetlink_log", "nf_tables"]

#: What another firewall did with a packet that it logged. ``reject``: refused with an answer,
#: ``drop``: without one; ``accept``: let pass; ``log``: logged, and nobody says what became of it.
ForeignVerdict: TypeAlias = Literal["reject", "drop", "accept", "log"]
#: The same, and ``permit``: let pass by a fence of ours that is permissive, and that would have
#: refused it otherwise.
Verdict: TypeAlias = Literal[ForeignVerdict, "permit"]

#: A header field that has no home of its own in a :class:`Record`: numbers as numbers, flags as
#: ``True``, the packet quoted inside an ICMP error as a nested mapping under ``"quoted"``.
Detail: TypeAlias = "int | str | bool | Mapping[str, Detail]"

#: The log prefix of our rulesets is ``ocsf-nft:<sandbox>:<rule>:`` on every transport, and that of
#: a permissive one has this word after it: ``ocsf-nft:<sandbox>:<rule>:permissive:``.
PREFIX_ROOT = "ocsf-nft:"
PERMISSIVE = "permissive"
#: The rules of a fence round a virtual machine: nothing that they refuse has an owner. The socket
#: of the host that the kernel has with such a packet is a hypervisor's, or its receiver's.
VM_RULES = frozenset({"vm-forward", "vm-input", "vm-ingress", "vm-link"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a record was read, and what makes it this record and no other.

    ``identity`` is unique per record and the same whenever the same record is read again
    (a kernel log sequence number with its boot id, a journal cursor, a place in a file):
    event uids derive from it. ``raw`` is the record as the source gave it, as text, ``log_format``
    its form, which the text alone doesn't tell: a log prefix may begin like any other form;
    ``original_time`` is the stamp as the source wrote it; ``sequence`` the source's own number.
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
    """One refused packet, as the kernel told it; equal whichever transport brought it.

    Addresses are in canonical text form (RFC 5952 for IPv6, lower-case colons for MACs), numbers
    are as in the headers, absent facts are ``None``: nothing is invented. ``length`` is the IP
    packet's total length in bytes. ``tcp_flags`` is the 9-bit field of RFC 9293 and RFC 3168
    (FIN=1, SYN=2, RST=4, PSH=8, ACK=16, URG=32, ECE=64, CWR=128, AE=256).
    ``verdict`` is told of a foreign rule, as far as its prefix says it; ``permit`` for one of ours
    that only watches; None for one of ours that refuses, whose answers are known.
    Times are nanoseconds since the epoch, UTC; they and the origin do not take part in equality,
    because two transports see the same packet at slightly different moments. ``captured_sum`` is
    the Adler-32 (RFC 1950) of as many of the packet's bytes as were captured; None where none were.
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
        """Whether ``time_ns`` is when the record was read; the packet may be older.

        NFLOG has no time of a packet that goes out.
        """
        return self.time_ns == self.received_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Records that a source knows it lost, between two moments (ns since the epoch, UTC).

    ``lost`` is exact where the transport numbers its records, ``None`` where it only says that
    something went missing.
    """

    transport: Transport
    reason: str
    lost: int | None
    since_ns: int
    until_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A line that claims to be ours, or a netfilter record, and is not taken for one.

    ``forged``: userland wrote it (facility is not the kernel's). ``malformed``: it can't be read.
    ``ambiguous``: it can be read in more than one way, so it is not read at all.
    """

    kind: Literal["forged", "malformed", "ambiguous"]
    reason: str
    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a source read in one go, in the kernel's order.

    ``cursor`` is the source's position after this batch, opaque to everybody else: handed back to
    the source, it resumes with the next record. ``None`` where the transport has no position.
    ``since_ns``: none of the records was logged before that (CLOCK_BOOTTIME); 0 where the source
    can't tell.
    """

    records: tuple[Record, ...] = ()
    gaps: tuple[Gap, ...] = ()
    rejected: tuple[Reject, ...] = ()
    cursor: str | None = None
    since_ns: int = 0


class Prefix(NamedTuple):
    """What a log prefix says; one that is not ours is a rule of no sandbox."""

    sandbox: str | None
    rule: str
    verdict: Verdict | None = None


def split_prefix(prefix: str) -> Prefix:
    """Sandbox, rule and verdict of a log prefix; without a sandbox when it is not one of ours."""
    if prefix.startswith(PREFIX_ROOT) and prefix.endswith(":"):
        match prefix[len(PREFIX_ROOT) : -1].split(":"):
            case [str(sandbox), str(rule)] if sandbox and rule:
                return Prefix(sandbox, rule)
            case [str(sandbox), str(rule), "permissive"] if sandbox and rule:
                return Prefix(sandbox, rule, "permit")
    return Prefix(None, prefix.strip())


def own_prefix(sandbox: str, rule: str, *, is_permissive: bool = False) -> str:
    """The log prefix of a rule of ours."""
    return f"{PREFIX_ROOT}{sandbox}:{rule}:{f'{PERMISSIVE}:' if is_permissive else ''}"
