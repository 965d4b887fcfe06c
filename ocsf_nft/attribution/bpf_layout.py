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
#: kind, family, protocol, flags, ports; time, socket, netns; the caller; owner; addresses; sum.
_CALL_FORM: Final = struct.Struct("=BBBBHHQQQIIQQIII4x16sI16s16sI")
_CLOSED_FORM: Final = struct.Struct("=B7xQQ")
_PROCESS_FORM: Final = struct.Struct("=BB2xIIIQQIIQQIIQ16sHHHH")


class ProcessImage(NamedTuple):
    """Identity of the program that a process runs; each exec gives the process another image.

    ``started_ns`` is the start time of the process (CLOCK_BOOTTIME). ``execs`` is the number of
    execs of the process. Both are 0 if the kernel does not report them.
    """

    pid: int
    started_ns: int
    execs: int


#: Image of an event without a known process.
UNKNOWN_IMAGE: Final = ProcessImage(0, 0, 0)


class Call(NamedTuple):
    """Capture event: a system call by which a process sends or connects, or a refused packet.

    The BPF programs report either the calls in a namespace or its refused packets
    (:class:`Capture`). ``time_ns`` is the time of the call, or shortly after the refusal of the
    packet (CLOCK_BOOTTIME). Addresses are packed: 4 bytes for IPv4, 16 bytes for IPv6, empty if
    unknown. A port is 0 if it is unknown.

    ``image``, ``tid``, ``uid``, ``gid`` and ``comm`` describe the sending process and its thread.
    The ids are the real ids. ``image`` is :data:`UNKNOWN_IMAGE` if the sender of a packet is
    unknown. ``tid`` is 0 if it is unknown which of several threads sent the packet. ``owner`` of a
    packet is the user id of its socket, as in the packet's log record. ``owner`` of a call is the
    user id that a new socket of the process would get.

    ``socket`` of a call is the kernel's number (cookie) of the socket. ``sum`` of a packet is the
    checksum of its first bytes, as in :attr:`Record.captured_sum`. It is 0 if these bytes could not
    be read.

    ``is_frame``: the packet was refused as a link-layer frame. ``is_connect``: the call connects a
    socket, and sends nothing. ``is_syn``: the packet, or the packet that the call sends, begins a
    TCP connection. ``has_more``: similar calls or packets may follow that are not reported.
    ``is_any``: the event may be about any packet of ``owner``, because the packet's header could
    not be read. ``is_any`` is also set if different calls or packets of the process may follow that
    are not reported.
    """

    time_ns: int
    socket: int
    netns: int
    is_frame: bool
    protocol: int
    is_connect: bool
    is_syn: bool
    is_any: bool
    has_more: bool
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    image: ProcessImage
    tid: int
    uid: int
    gid: int
    owner: int
    comm: bytes
    sum: int


class ClosedSocket(NamedTuple):
    """Capture event: the last process that had a socket open has closed the socket.

    This event exists only for a socket with an earlier :class:`Call`. ``socket`` is the kernel's
    number (cookie) of the socket, as in that call. ``time_ns`` is of CLOCK_BOOTTIME.
    """

    time_ns: int
    socket: int


class ProcessSnapshot(NamedTuple):
    """Capture event: details of a process, such as the path of its program and its arguments.

    The BPF programs report a process at its exec. A process that was not reported then is reported
    at its next fork, call or refused packet. ``directory`` is the working directory.

    ``path``, ``directory`` and ``cgroup`` are lists of names, innermost first: ``/usr/bin/curl`` is
    ``curl``, ``bin``, ``usr``, ``/``. A list that leads up to the root ends with ``/`` (``cgroup``:
    with an empty name). ``arguments`` has all arguments, each with a NUL byte at its end, but at
    most the first 1024 bytes. Texts are bytes, because the kernel checks no encoding.
    """

    image: ProcessImage
    parent: ProcessImage
    namespace_pid: int
    is_deleted: bool
    uid: int
    gid: int
    inode: int
    comm: bytes
    path: tuple[bytes, ...]
    directory: tuple[bytes, ...]
    cgroup: tuple[bytes, ...]
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
            return ClosedSocket._make(_CLOSED_FORM.unpack_from(sample)[1:])
        case 3:
            return _snapshot(sample)
        case kind:
            raise ValueError(f"an event of an unknown kind, {kind}")


def _call(sample: bytes) -> Call:
    (
        _, family, protocol, flags, source_port, destination_port, time_ns, socket, netns,
        pid, _, started_ns, execs, tid, uid, gid, comm, owner, source, destination, check,
    ) = _CALL_FORM.unpack_from(sample)  # fmt: skip
    # Positional arguments take half the time, and there are thousands of events a second.
    return Call(
        time_ns, socket, netns, family == _AF_PACKET, protocol,
        bool(flags & _CONNECT), bool(flags & _SYN), bool(flags & _ANY), bool(flags & _MORE),
        _address(family, source), source_port, _address(family, destination), destination_port,
        ProcessImage(pid, started_ns, execs), tid, uid, gid, owner, _text(comm), check,
    )  # fmt: skip


def _snapshot(sample: bytes) -> ProcessSnapshot:
    (
        _, is_deleted, namespace_pid, pid, _, started_ns, execs,
        parent_pid, _, parent_started_ns, parent_execs,
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
