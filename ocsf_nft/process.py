"""Attribution of packets to processes, with the method and the confidence of each attribution.

A process chooses its own name, arguments and paths. These texts are stored unchanged, so they may
contain any characters, for example line ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

#: Attribution method, best first. ``capture``: BPF programs saw the process while it sent.
#: ``socket``: the process that had the socket when the record arrived. ``user``: only the user id
#: in the kernel's record is known. ``none``: not even that.
Method: TypeAlias = Literal["capture", "socket", "user", "none"]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """Process on this host; unknown values are None.

    All ids are those of the host, except ``namespace_pid``: the process's pid inside the sandbox.
    ``tid`` is the id of the thread that sent the packet. ``path`` is the path of the program file,
    or ``memfd:NAME`` if the file was never on a disk. ``is_deleted`` and ``sha256`` (hexadecimal)
    are about this file. ``created_ns`` is the start of the process (ns since the epoch, UTC).
    ``ancestors`` has the parent, then the parent's parent, and so on. Their own ``ancestors`` are
    empty.
    """

    pid: int
    tid: int | None = None
    name: str | None = None
    path: str | None = None
    is_deleted: bool | None = None
    sha256: str | None = None
    cmd_line: str | None = None
    working_directory: str | None = None
    created_ns: int | None = None
    namespace_pid: int | None = None
    uid: int | None = None
    user_name: str | None = None
    gid: int | None = None
    group_name: str | None = None
    container: Container | None = None
    unit: str | None = None
    ancestors: tuple[Process, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One of several processes that sent, or may have sent, packets that one event reports.

    ``calls`` is the number of refused packets of this process that BPF programs saw; None if
    unknown. If BPF programs can't see refused packets, ``calls`` is the number of the process's
    system calls that send or connect. The real number may be higher.
    """

    process: Process
    # Refused packets are not seen if the fence is permissive, or if the kernel has no BTF.
    calls: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Process that sent the packets of an event, with the attribution method and the confidence.

    - ``reason`` is a sentence that explains the result.
    - ``process`` is the sender. It is None if the sender is unknown, or if there are several
      possible senders.
    - ``seen`` lists possible senders. ``unnamed`` is the minimum number of others, not listed.
    - ``user_name`` and ``group_name`` are the names for the uid and the gid in the kernel's log
      record.
    - ``sent_ns`` is the time at which BPF programs saw the process send the packet of the kernel's
      log record (ns since the epoch). It is None if they did not see that.
    """

    method: Method
    confidence: ConfidenceLevel | None = None
    reason: str
    process: Process | None = None
    seen: tuple[Seen, ...] = ()
    unnamed: int = 0
    user_name: str | None = None
    group_name: str | None = None
    sent_ns: int | None = field(default=None, compare=False)

    @property
    def names_no_process(self) -> bool:
        """Return True if there is neither a sender nor a possible sender."""
        return self.process is None and not self.seen and not self.unnamed
