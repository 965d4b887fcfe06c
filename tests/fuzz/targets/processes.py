"""Targets: BPF samples and files of /proc. A process chooses its names, arguments and cgroups."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from ocsf_nft import proc, userns
from ocsf_nft.attribution import bpf_capture, containers, proc_net_sockets
from ocsf_nft.attribution.bpf_capture import Call, ProcessSnapshot
from ocsf_nft.attribution.process_snapshots import ProcessSnapshots
from ocsf_nft.errors import UnsupportedError
from tests.fuzz import parts, seeds
from tests.fuzz.target import HOSTILE_TEXT, Target, require

if TYPE_CHECKING:
    from ocsf_nft.attribution.user_names import UserNames

_ID: Final = b"0123456789abcdef" * 4
_CGROUPS: Final = (
    b"0::/system.slice/docker-" + _ID + b".scope\n",
    b"0::/user.slice/user-1000.slice/user@1000.service/app.slice/libpod-" + _ID + b".scope\n",
    b"12:cpu:/kubepods/burstable/pod01234567-89ab-cdef-0123-456789abcdef/" + _ID + b"\n0::/\n",
    b"0::/kubepods.slice/kubepods-pod01234567_89ab_cdef_0123_456789abcdef.slice/cri-containerd-"
    + _ID
    + b".scope\n",
    b"1:name=systemd:/machine.slice/machine-a\\x2db.scope/payload\n",
    b"0::/system.slice/a.service (deleted)\n",
    b"0::/lxc.payload.name/init.scope\n",
    b"0::/lxc/name\n",
    b"0::/a.slice:docker:" + _ID + b"\n",
)
_MOUNTS: Final = (
    (
        b"24 30 0:22 / /proc rw,nosuid - proc proc rw\n"
        b"31 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
    ),
    b"31 24 0:26 /../.. /a\\040b rw - cgroup2 none rw\n40 24 0:9 / /b rw - cgroup2 none rw\n",
)
_WORDS: Final = (
    *HOSTILE_TEXT,
    _ID,
    b":/",
    b".scope",
    b".service",
    b".slice/",
    b"docker-",
    b"(",
    b") Z",
)
_MOST_NAME: Final = 4096


class _Names:
    """Names of users in place of those of the host."""

    missing: frozenset[int] = frozenset()

    def cached(self, _kind: str, number: int) -> str | None:
        return None if number else "root"


def _bpf(data: bytes) -> None:
    found = bpf_capture.decode(data)
    snapshots = ProcessSnapshots(cast("UserNames", _Names()))
    if isinstance(found, ProcessSnapshot):
        snapshots.add(found)
        call = Call(
            1,
            2,
            3,
            False,
            6,
            False,
            True,
            False,
            False,
            4,
            b"\1\2\3\4",
            443,
            found.image,
            5,
            0,
            0,
            0,
            found.comm,
            0,
        )
    elif isinstance(found, Call):
        call = found
        require(len(call.destination) in {0, 4, 16}, "an address has a wrong size")
        require(0 <= call.destination_port <= 0xFFFF, "a port is out of range")
    else:
        return
    process = snapshots.process(call)
    snapshots.described(process, 1_764_000_000_000_000_000)


def _stat(data: bytes) -> None:
    found = proc.parsed_stat(data)
    _ = found.started_ns
    proc.is_same_program(found, found, has_program=True)


def _status(data: bytes) -> None:
    proc.parsed_status(data)


def _cgroup(data: bytes) -> None:
    found = containers.parse_cgroups(proc.text(data))
    require(found.unit is None or len(found.unit) < len(data) + 1, "a unit is not in the text")


def _net(data: bytes) -> None:
    lines = data.splitlines()[1:]
    for parse in (proc_net_sockets._inet_socket, proc_net_sockets._packet_socket):
        with contextlib.suppress(OSError):
            tuple(proc_net_sockets._sockets(parse, lines))


def _user_map(data: bytes) -> None:
    userns.parsed_map(data.decode("ascii", "replace")).to_local(0)


def _mountinfo(data: bytes) -> None:
    found = bpf_capture._cgroup_mount(data.decode("utf-8", "surrogateescape"))
    require(isinstance(found, Path), "no path")


def _samples() -> tuple[bytes, ...]:
    closed = struct.pack("=B7xQQ", 2, 5, 6)
    return (*seeds.recorded("bpf call"), *seeds.recorded("bpf process"), closed)


TARGETS: Final = (
    Target(
        name="bpf-event",
        parse=_bpf,
        seeds=_samples,
        parts=parts.none,
        documented=(ValueError, struct.error),
        hostile=(b"/\0", b"memfd:\0", b"--password=x\0"),
        limit=4096,
        share=20,
    ),
    Target(
        name="proc-stat",
        parse=_stat,
        seeds=seeds.of_kind("proc stat"),
        parts=parts.words,
        documented=(ValueError,),
        hostile=_WORDS,
        limit=4096,
        share=4,
    ),
    Target(
        name="proc-status",
        parse=_status,
        seeds=seeds.of_kind("proc status"),
        parts=parts.lines,
        documented=(ValueError,),
        hostile=(*_WORDS, b"Tgid:\t1\n", b"Uid:\t0\t0\t0\t0\n"),
        limit=32_768,
        share=3,
    ),
    Target(
        name="proc-cgroup",
        parse=_cgroup,
        seeds=lambda: _CGROUPS,
        parts=parts.words,
        hostile=_WORDS,
        limit=32_768,
        share=4,
    ),
    Target(
        name="proc-net",
        parse=_net,
        seeds=seeds.of_kind("proc net"),
        parts=parts.words,
        documented=(),
        hostile=_WORDS,
        limit=32_768,
        share=3,
    ),
    Target(
        name="proc-uid-map",
        parse=_user_map,
        seeds=seeds.of_kind("proc uid_map"),
        parts=parts.words,
        documented=(ValueError,),
        hostile=_WORDS,
        limit=4096,
        share=2,
    ),
    Target(
        name="proc-mountinfo",
        parse=_mountinfo,
        seeds=lambda: _MOUNTS,
        parts=parts.words,
        documented=(UnsupportedError,),
        hostile=_WORDS,
        limit=32_768,
        share=2,
    ),
)
