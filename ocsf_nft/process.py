"""Attribution of packets to processes: the process, and the method and confidence of the result.

Texts are not escaped. A process chooses its name, its arguments and its paths, so they may contain
any bytes.
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
    """Container that is a sandbox or has a process in it, with the names from its runtime.

    ``uid`` is the container's id in the runtime, and ``pod_uid`` the uid of its Kubernetes pod.
    """

    uid: str | None = None
    name: str | None = None
    runtime: str | None = None
    image_uid: str | None = None
    image_name: str | None = None
    pod_uid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """Process on this host; the ids are those of the host, and unknown values are None.

    ``tid`` is the thread that sent. ``name`` is the name that the process chose. ``path`` is the
    path of its program file (``memfd:NAME`` if that never was a file on a disk). ``is_deleted`` is
    true if the program file was deleted. ``sha256`` is the hash of the file's content, in
    hexadecimal. ``created_ns`` is since the epoch, UTC. ``namespace_pid`` is the process's pid
    inside the sandbox. ``unit`` is its systemd unit. ``ancestors`` are the processes that started
    it, its parent first; their own ``ancestors`` are empty.
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
    """Process that sent a packet, or may have sent it, where several processes are possible.

    ``calls`` is the number of attempts that the kernel saw this process make; None if unknown. The
    number is a lower bound: the capture, which sees processes send, does not report each call.
    """

    process: Process
    calls: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Attribution of an attempt to a process, with its method and its confidence.

    ``process`` is the sender. It is None if the sender is unknown, or if there are several possible
    senders. ``seen`` has these possible senders, up to a maximum number. ``unnamed`` is a lower
    bound for the number of possible senders beyond that. ``reason`` is a sentence that explains the
    result. ``confidence`` is None if it is not rated. ``user_name`` and ``group_name`` are the
    names of the record's user and group. ``sent_ns`` is the time at which the kernel saw the
    process send the packet (ns since the epoch, UTC). It is None if only calls or sockets are
    known.
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
        """Return whether the attribution has neither a sender nor possible senders.

        Several attempts can share such an attribution.
        """
        return self.process is None and not self.seen and not self.unnamed
