"""Capture: BPF programs in the kernel that report which processes in a sandbox send packets.

The capture needs libbpf, and CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN over the initial user
namespace. The events have the structures of ``bpf/capture.bpf.c`` and ``bpf/process.h``, in native
byte order.
"""

from __future__ import annotations

import socket
import struct
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self, TypeAlias

from ocsf_nft import netlink, proc
from ocsf_nft.errors import UnsupportedError
from ocsf_nft.libbpf import LoadedPrograms, RingBuffer

if TYPE_CHECKING:
    from ocsf_nft.netns import Namespace

_PROGRAMS: Final = "ocsf_nft.attribution.bpf"
_TYPES: Final = Path("/sys/kernel/btf/vmlinux")
_MOUNTS: Final = Path("/proc/self/mountinfo")
#: Report mode of a namespace (``capture.bpf.c``): refused packets, or system calls that send or
#: connect. Refused packets need BTF type information in the kernel (CONFIG_DEBUG_INFO_BTF, Linux
#: 5.18 or later). System calls need cgroup v2 and Linux 5.15 or later. They are reported if the
#: kernel has no BTF, or if the fence is permissive.
_REFUSALS, _CALLS = b"\1", b"\2"
_CGROUP_PROGRAMS: Final = (
    "connect4", "connect6", "sendmsg4", "sendmsg6", "established", "released"
)  # fmt: skip
#: Programs that need BTF. They also report process details.
_TYPES_PROGRAMS: Final = ("forked", "executed", "refused")
#: Maximum number of samples of a ring in one read: a few milliseconds of work.
_MOST: Final = 256

_AF_INET: Final = 2
_AF_INET6: Final = 10
_AF_PACKET: Final = 17
#: ::ffff:0.0.0.0/96: an IPv4 address in an IPv6 socket.
_MAPPED: Final = bytes(10) + b"\xff\xff"

#: Flags of a call (``capture.bpf.c``).
_CONNECT, _MORE, _SYN, _ANY = 1, 2, 4, 8
#: family, protocol, flags, ports; time, socket, netns; the caller; owner; destination; sum.
_CALL_FORM: Final = struct.Struct("=xBBBHHQQQI4xQQIII4x16sI16x16sI")
_CLOSED_FORM: Final = struct.Struct("=8xQQ")
_PROCESS_FORM: Final = struct.Struct("=xBBxII4xQQI4xQQIIQ16sHHHH")


class ProcessImage(NamedTuple):
    """Identity of the program that a process runs; each exec gives the process another image.

    ``started_ns`` is the start time of the process (CLOCK_BOOTTIME). ``execs`` is its number of
    execs. Both are 0 if the kernel does not report them.
    """

    pid: int
    started_ns: int
    execs: int


#: Image of an event without a known process.
UNKNOWN_IMAGE: Final = ProcessImage(0, 0, 0)


class Call(NamedTuple):
    """Event of BPF programs: system call that sends or connects, or packet refused by nftables.

    An unknown address is empty; an unknown port is 0.
    """

    # In each namespace, the BPF programs report only one of these two kinds.

    #: Time of the call, or shortly after the refusal of the packet (CLOCK_BOOTTIME).
    time_ns: int
    #: For a call: the kernel's number (cookie) of the socket.
    socket: int
    netns: int
    #: The packet was refused as a link-layer frame.
    is_frame: bool
    protocol: int
    #: The call connects a socket, and sends nothing.
    is_connect: bool
    #: The packet, or the packet that the call sends, begins a TCP connection.
    is_syn: bool
    #: The event may be about any packet of ``owner``: the packet's header could not be read, or
    #: different calls or packets of the process may follow that are not reported.
    is_any: bool
    #: Similar calls or packets may follow that are not reported.
    has_more: bool
    source_port: int
    #: Packed: 4 bytes for IPv4, 16 bytes for IPv6.
    destination: bytes
    destination_port: int
    #: The sending process; :data:`UNKNOWN_IMAGE` if the sender of a packet is unknown.
    image: ProcessImage
    #: The sending thread; 0 if it is unknown which of several threads sent the packet.
    tid: int
    #: Real ids of the sending process.
    uid: int
    gid: int
    #: User id of the packet's socket, as in the packet's log record. For a call: the user id that a
    #: new socket of the process would get.
    owner: int
    comm: bytes
    #: Checksum of the packet's first bytes, as in :attr:`Record.captured_sum`; 0 if they could not
    #: be read.
    sum: int


class ClosedSocket(NamedTuple):
    """Event of the BPF programs: the last process that had a socket open has closed the socket.

    ``socket`` is the kernel's number (cookie) of the socket, as in an earlier :class:`Call`.
    ``time_ns`` is the time of the close (CLOCK_BOOTTIME).
    """

    time_ns: int
    socket: int


class ProcessSnapshot(NamedTuple):
    """Event of the BPF programs: details of a process, such as its program's path and arguments.

    Texts are bytes, because the kernel checks no encoding.
    """

    # The BPF programs report a process at its exec. After a missed exec, the event comes at the
    # next fork, refused packet, or system call that sends or connects.
    image: ProcessImage
    parent: ProcessImage
    namespace_pid: int
    is_deleted: bool
    #: True if ``parent`` has certainly forked it. Otherwise ``parent`` may have adopted it.
    is_child: bool
    uid: int
    gid: int
    inode: int
    comm: bytes
    #: Names of the program's path, innermost first: ``/usr/bin/curl`` is ``curl``, ``bin``,
    #: ``usr``, ``/``. Without the final ``/``, the outermost names are missing.
    path: tuple[bytes, ...]
    #: Working directory, in the same form.
    directory: tuple[bytes, ...]
    #: The same for the cgroup, with an empty name in place of ``/``.
    cgroup: tuple[bytes, ...]
    #: At most the first 1024 bytes of all arguments, each with a NUL byte at its end.
    arguments: bytes


CaptureEvent: TypeAlias = Call | ClosedSocket | ProcessSnapshot


class Dropped(NamedTuple):
    """Numbers of reports that the kernel dropped since the capture began.

    The usual cause is a full buffer. ``calls`` counts reports of packets and system calls,
    ``processes`` counts reports of process details.
    """

    calls: int
    processes: int


class Capture:
    """BPF programs that report which processes in watched network namespaces send packets."""

    def __init__(self, *, knows_types: bool | None = None) -> None:
        """Load and attach the programs; :meth:`watch` selects the namespaces.

        ``knows_types`` is true if the kernel has BTF; None detects BTF. Raises UnsupportedError if
        the capture can't start.
        """
        self.knows_types = _TYPES.exists() if knows_types is None else knows_types
        self._has_cgroup_programs = False
        self._loaded = LoadedPrograms(_object("types" if self.knows_types else "plain"))
        self._rings: list[RingBuffer] = []
        try:
            self._rings = [self._loaded.ring("calls")]
            if self.knows_types:
                self._rings.append(self._loaded.ring("processes"))
            for name in _TYPES_PROGRAMS if self.knows_types else ():
                self._loaded.attach(name)
            if not self.knows_types:
                self._attach_to_cgroups()
        except BaseException:
            self.close()
            raise

    def watch(self, netns: int, *, is_permissive: bool = False) -> bool:
        """Report the senders in the network namespace with this :func:`cookie` from now on.

        Return True if refused packets are reported. If ``is_permissive``, or if the kernel has no
        BTF, system calls that send or connect are reported instead. Raises UnsupportedError if the
        namespace can't be watched.
        """
        is_refused = self.knows_types and not is_permissive
        if not is_refused:
            self._attach_to_cgroups()
        mode = _REFUSALS if is_refused else _CALLS
        self._loaded.update_map("watched", struct.pack("=Q", netns), mode)
        return is_refused

    def unwatch(self, netns: int) -> None:
        """Report no more senders in the network namespace with this :func:`cookie`."""
        self._loaded.delete_from_map("watched", struct.pack("=Q", netns))

    def describe_again(self, pid: int) -> None:
        """Report the details of a process again, with its next call or fork, if not closed."""
        if self.knows_types and self._rings:
            self._loaded.delete_from_map("described", struct.pack("=I", pid))

    def __enter__(self) -> Self:
        """Return the capture, which already runs."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the capture and unload its BPF programs."""
        self.close()

    def close(self) -> None:
        """Stop the capture and unload its BPF programs."""
        while self._rings:
            self._rings.pop().close()
        self._loaded.close()

    def _attach_to_cgroups(self) -> None:
        if self._has_cgroup_programs:
            return
        cgroups = _cgroup_mount(_MOUNTS.read_text("utf-8", "surrogateescape"))
        try:
            with proc.opened(str(cgroups)) as cgroup:
                for name in _CGROUP_PROGRAMS:
                    self._loaded.attach(name, cgroup)
            self._has_cgroup_programs = True
        except OSError as error:  # another file system is mounted over it
            raise UnsupportedError(
                f"cgroup v2 can't be opened at {cgroups} ({error.strerror})"
            ) from error

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Return the file descriptors to poll, one for each ring buffer.

        A descriptor becomes readable only when its ring buffer has much unread data.
        """
        return tuple(ring.descriptor for ring in self._rings)

    def read(self) -> tuple[list[CaptureEvent], bool]:
        """Return new capture events, and True if another call may return more events.

        The events with details of a process come before all other events. Raises ValueError or
        struct.error if an event is invalid.
        """
        # The calls first: the BPF programs report a process before its call. A process that is
        # reported between the two reads is no problem, but an unknown caller would be one.
        read = [ring.read(_MOST) for ring in self._rings]
        events = [decode(sample) for samples in reversed(read) for sample in samples]
        return events, any(len(samples) >= _MOST for samples in read)

    def check(self) -> None:
        """Raise UnsupportedError if another process has detached a BPF program of the capture."""
        if (name := self._loaded.detached()) is not None:
            raise UnsupportedError(f"another process has detached the BPF program {name}")

    def dropped(self) -> Dropped:
        """Return the numbers of dropped reports; raise UnsupportedError if they can't be read."""
        return Dropped(*self._loaded.counter_sums("dropped", len(Dropped._fields)))


def cookie(namespace: Namespace) -> int:
    """Return the kernel's number of a network namespace; the kernel never uses a number twice.

    Raises UnsupportedError if the kernel has no such numbers (before Linux 5.14).
    """

    def ask() -> int:
        # AF_UNIX, because a service may be denied other address families.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
            return netlink.namespace_cookie(asking)

    try:
        return namespace.call(ask)
    except OSError as error:
        raise UnsupportedError(
            f"this kernel has no cookies of network namespaces: they need Linux 5.14 or later "
            f"({error.strerror})"
        ) from error


def _cgroup_mount(mounts: str) -> Path:
    """Return the mount point of cgroup v2, which is not the same on all hosts.

    ``mounts`` is the content of /proc/self/mountinfo. Raises UnsupportedError if cgroup v2 is not
    mounted.
    """
    found: list[tuple[str, Path]] = []
    for line in mounts.split("\n"):
        # proc(5): ID, parent, device, root, mount point, options, optional fields, "-", type, …
        words = line.split(" ")
        if "-" in words[6:] and words[words.index("-", 6) + 1 :][:1] == ["cgroup2"]:
            found.append((words[3], Path(_unescaped(words[4]))))
    if not found:
        raise UnsupportedError(
            "cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified"
        )
    # Of several, the mount point that shows the largest part of the cgroup tree.
    # In a cgroup namespace, roots of mounts above the namespace's root are "/..", "/../.." etc.
    _, path = min(found, key=lambda each: (-each[0].count("/.."), len(each[0])))
    return path


def _unescaped(text: str) -> str:
    # mountinfo escapes blanks, tabs, line ends and backslashes.
    for escape, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escape, character)
    return text


def _object(name: str) -> bytes:
    try:
        return resources.files(_PROGRAMS).joinpath(f"{name}.bpf.o").read_bytes()
    except OSError as error:
        raise UnsupportedError(
            "this installation has no BPF programs: it was built without clang"
        ) from error


def decode(sample: bytes) -> CaptureEvent:
    """Decode one capture event; raise ValueError or struct.error if the bytes are invalid."""
    match sample[0] if sample else 0:
        case 1:
            return _call(sample)
        case 2:
            return ClosedSocket._make(_CLOSED_FORM.unpack_from(sample))
        case 3:
            return _snapshot(sample)
        case kind:
            raise ValueError(f"an event of an unknown kind, {kind}")


def _call(sample: bytes) -> Call:
    (
        family, protocol, flags, source_port, destination_port, time_ns, socket, netns,
        pid, started_ns, execs, tid, uid, gid, comm, owner, destination, check,
    ) = _CALL_FORM.unpack_from(sample)  # fmt: skip
    # Positional arguments take half the time, and there are thousands of events a second.
    return Call(
        time_ns, socket, netns, family == _AF_PACKET, protocol,
        bool(flags & _CONNECT), bool(flags & _SYN), bool(flags & _ANY), bool(flags & _MORE),
        source_port, _address(family, destination, is_packet=not socket), destination_port,
        _image(pid, started_ns, execs), tid, uid, gid, owner, _text(comm), check,
    )  # fmt: skip


def _snapshot(sample: bytes) -> ProcessSnapshot:
    (
        is_deleted, is_child, namespace_pid, *images, uid, gid, inode, comm,
        path, directory, cgroup, arguments,
    ) = _PROCESS_FORM.unpack_from(sample)  # fmt: skip
    texts = []
    at = _PROCESS_FORM.size
    for size in (path, directory, cgroup, arguments):
        texts.append(sample[at : at + size])
        at += size
    if at > len(sample):
        raise ValueError("texts of a process that end too soon")
    return ProcessSnapshot(
        ProcessImage(*images[:3]), ProcessImage(*images[3:]), namespace_pid, bool(is_deleted),
        bool(is_child), uid, gid, inode, _text(comm),
        _names(texts[0]), _names(texts[1]), _names(texts[2]), texts[3],
    )  # fmt: skip


def _address(family: int, packed: bytes, *, is_packet: bool) -> bytes:
    if family == _AF_INET:
        return packed[:4]
    if family != _AF_INET6:
        return b""
    # A call with such an address sends a packet of IPv4. A raw socket can send one of IPv6.
    return packed[12:] if packed.startswith(_MAPPED) and not is_packet else packed


# Cached, because thousands of stored events share an image and a name.
@lru_cache(maxsize=256)
def _image(pid: int, started_ns: int, execs: int) -> ProcessImage:
    return ProcessImage(pid, started_ns, execs)


@lru_cache(maxsize=256)
def _text(padded: bytes) -> bytes:
    return padded.partition(b"\0")[0]


def _names(texts: bytes) -> tuple[bytes, ...]:
    return tuple(texts.split(b"\0")[:-1])
