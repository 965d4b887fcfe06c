"""Attribution of packets to processes, with the method and the confidence of each attribution.

A process chooses its own name, arguments and paths. These texts are stored unchanged, so they may
contain any characters, for example line ends. Only secrets in the arguments are replaced
(:mod:`ocsf_nft.redaction`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

#: Attribution method, best first. ``capture``: BPF programs saw the process while it sent.
#: ``socket``: the process that had the socket when the record arrived. ``user``: only the user id
#: in the kernel's record is known. ``none``: not even that.
Method: TypeAlias = Literal["capture", "socket", "user", "none"]
_ONE_SENDER_SEEN: Final = "it sent one of the packets, and no other process was seen to send"
#: Confidence of an attribution.
ConfidenceLevel: TypeAlias = Literal["high", "medium", "low"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """Container that is a sandbox, or in which a process runs.

    The container runtime, for example Docker, gives a container its ``uid``, its ``name`` and the
    name of its image. ``pod_uid`` is the uid of the container's Kubernetes pod.
    """

    uid: str | None = None
    name: str | None = None
    runtime: str | None = None
    image_uid: str | None = None
    image_name: str | None = None
    pod_uid: str | None = None
    orchestrator: str | None = None
    #: Labels, each as ``key=value``.
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """Process on this host, with the host's ids; unknown values are None."""

    pid: int
    #: Thread that sent the packet.
    tid: int | None = None
    name: str | None = None
    #: Path of the program file; ``memfd:NAME`` if the file was never on a disk.
    path: str | None = None
    #: Whether the program file was deleted.
    is_deleted: bool | None = None
    #: Hash of the program file, hexadecimal.
    sha256: str | None = None
    cmd_line: str | None = None
    working_directory: str | None = None
    #: Start of the process, in ns since the epoch (UTC).
    created_ns: int | None = None
    #: Pid inside the sandbox.
    namespace_pid: int | None = None
    uid: int | None = None
    user_name: str | None = None
    gid: int | None = None
    group_name: str | None = None
    container: Container | None = None
    unit: str | None = None
    #: The parent, then the parent's parent, and so on. Their own ``ancestors`` are empty.
    ancestors: tuple[Process, ...] = ()


#: Maximum length of a text in the result of :func:`shortened`; ancestors in that of :func:`brief`.
_SHORT_TEXT: Final = 400
_BRIEF_ANCESTORS: Final = 4


def brief(process: Process) -> Process:
    """Return a process with short texts and few ancestors, to be stored again and again."""
    return shortened(process, ancestors=_BRIEF_ANCESTORS)


def shortened(process: Process, *, ancestors: int) -> Process:
    """Return a process with short texts, and with its nearest ``ancestors`` at most.

    A sandboxed program can have paths and arguments of a kilobyte each.
    """
    above = tuple(shortened(each, ancestors=0) for each in process.ancestors[:ancestors])
    texts = process.cmd_line, process.path, process.working_directory
    if above == process.ancestors and all(len(each or "") <= _SHORT_TEXT for each in texts):
        return process
    return replace(
        process,
        cmd_line=_cut(process.cmd_line),
        path=_cut_path(process.path),
        working_directory=_cut_path(process.working_directory),
        ancestors=above,
    )


def _cut(line: str | None) -> str | None:
    return line if line is None or len(line) <= _SHORT_TEXT else f"{line[: _SHORT_TEXT - 1]}…"


def _cut_path(path: str | None) -> str | None:
    # The last part is the name of the program.
    return path if path is None or len(path) <= _SHORT_TEXT else f"…{path[1 - _SHORT_TEXT :]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One of several processes that sent, or may have sent, packets that one event reports."""

    process: Process
    #: Number of the process's refused packets that BPF programs saw; None if unknown. The real
    #: number may be higher. If the fence is permissive, or if the kernel has no BTF: number of the
    #: process's system calls that send or connect.
    calls: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Process that sent the packets of an event, with the attribution method and the confidence."""

    method: Method
    confidence: ConfidenceLevel | None = None
    #: Sentence that explains the result.
    reason: str
    #: The sender; None if it is unknown, or if there are several possible senders.
    process: Process | None = None
    #: Possible senders.
    seen: tuple[Seen, ...] = ()
    #: Minimum number of other possible senders, which ``seen`` does not list.
    unnamed: int = 0
    #: Name for the uid in the kernel's log record.
    user_name: str | None = None
    #: Name for the gid in the kernel's log record.
    group_name: str | None = None
    #: Time at which BPF programs saw the process send the packet of the kernel's log record (ns
    #: since the epoch). None if they did not see that.
    sent_ns: int | None = field(default=None, compare=False)
    #: True if the log record itself may be forged. Then ``reason`` says so.
    is_doubted: bool = False

    @property
    def names_no_process(self) -> bool:
        """Return True if there is neither a sender nor a possible sender."""
        return self.process is None and not self.seen and not self.unnamed


def limit_to_one_packet(known: Attribution) -> Attribution:
    """Weaken the attribution of one packet, to use it for a whole group of packets.

    The result names the process of ``known`` only as a possible sender, with low confidence.
    If ``known`` names no process as the sender, it is returned unchanged.
    """
    return as_candidate(known, _ONE_SENDER_SEEN)


def as_candidate(known: Attribution, reason: str) -> Attribution:
    """Name the process of an attribution only as a possible sender, with low confidence.

    ``reason`` explains the result. If ``known`` names no process as the sender, it is returned
    unchanged.
    """
    if known.process is None:
        return known
    return replace(
        known, confidence="low", reason=reason, process=None, seen=(Seen(process=known.process),)
    )
