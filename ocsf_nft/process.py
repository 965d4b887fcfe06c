"""Attribution of packets to processes: the process, and the method and confidence of the result.

The texts are stored unchanged. A process chooses its name, its arguments and its paths, so these
texts may contain any characters, for example line ends.
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
    """Container that is a sandbox, or in which a process runs; the names are from its runtime.

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

    ``tid`` is the id of the thread that sent the packet. ``name`` is the process's name, which the
    process can change. ``path`` is the path of its program file (``memfd:NAME`` if that file was
    never on a disk). ``is_deleted`` is true if the program file was deleted. ``sha256`` is the hash
    of the file's content, in hexadecimal. ``created_ns`` is the start of the process, in
    nanoseconds since the epoch (UTC). ``namespace_pid`` is its pid inside the sandbox. ``unit`` is
    its systemd unit. ``ancestors`` has its parent, then the parent's parent, and so on; each of
    these has empty ``ancestors``.
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
    """One of several processes that sent the packets of an attempt, or may have sent them.

    ``calls`` is the number of times that the kernel saw this process send them; None if unknown. It
    is a lower bound, because the BPF programs in the kernel do not report each call.
    """

    process: Process
    calls: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Attribution of an attempt to the process that made it, with its method and its confidence.

    ``process`` is the sender. It is None if the sender is unknown, or if there are several possible
    senders. ``seen`` has the possible senders, up to a maximum number. ``unnamed`` is the number of
    possible senders that ``seen`` does not have, as a lower bound. ``reason`` is a sentence that
    explains the result. ``confidence`` is None if it is not rated. ``user_name`` and ``group_name``
    are the names of the user and group in the kernel's log record. ``sent_ns`` is the time at which
    the kernel saw the process send the packet (ns since the epoch, UTC). It is None if the BPF
    programs did not report the refused packet itself.
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
        """Return True if the attribution has neither a sender nor possible senders."""
        return self.process is None and not self.seen and not self.unnamed
