"""Decoder of the binary events that the BPF programs send.

The structures are those of ``bpf/capture.bpf.c`` and ``bpf/process.h``, in native byte order.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, TypeAlias

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
_PROCESS_FORM: Final = struct.Struct("=xB2xII4xQQI4xQQIIQ16sHHHH")


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


def decode(sample: bytes) -> CaptureEvent:
    """Decode one capture event from the bytes that a BPF program wrote to a ring buffer.

    Raises ValueError or struct.error if the bytes are not a valid event.
    """
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
        source_port, _address(family, destination), destination_port,
        ProcessImage(pid, started_ns, execs), tid, uid, gid, owner, _text(comm), check,
    )  # fmt: skip


def _snapshot(sample: bytes) -> ProcessSnapshot:
    (
        is_deleted, namespace_pid, pid, started_ns, execs,
        parent_pid, parent_started_ns, parent_execs,
        uid, gid, inode, comm, path, directory, cgroup, arguments,
    ) = _PROCESS_FORM.unpack_from(sample)  # fmt: skip
    texts = []
    at = _PROCESS_FORM.size
    for size in (path, directory, cgroup, arguments):
        texts.append(sample[at : at + size])
        at += size
    if at > len(sample):
        raise ValueError("texts of a process that end too soon")
    return ProcessSnapshot(
        image=ProcessImage(pid, started_ns, execs),
        parent=ProcessImage(parent_pid, parent_started_ns, parent_execs),
        namespace_pid=namespace_pid,
        is_deleted=bool(is_deleted),
        uid=uid,
        gid=gid,
        inode=inode,
        comm=_text(comm),
        path=_names(texts[0]),
        directory=_names(texts[1]),
        cgroup=_names(texts[2]),
        arguments=texts[3],
    )


def _address(family: int, packed: bytes) -> bytes:
    if family == _AF_INET:
        return packed[:4]
    if family != _AF_INET6:
        return b""
    return packed[12:] if packed.startswith(_MAPPED) else packed


def _text(padded: bytes) -> bytes:
    return padded.partition(b"\0")[0]


def _names(texts: bytes) -> tuple[bytes, ...]:
    return tuple(texts.split(b"\0")[:-1])
