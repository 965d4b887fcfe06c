"""Capture: BPF programs in the kernel that report which processes in a sandbox send packets.

The capture needs libbpf, and CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN over the initial user
namespace.
"""

from __future__ import annotations

import os
import socket
import struct
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from ocsf_nft.attribution import bpf_layout
from ocsf_nft.attribution.libbpf import LoadedPrograms, RingBuffer
from ocsf_nft.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from ocsf_nft.attribution.bpf_layout import CaptureEvent
    from ocsf_nft.netns import Namespace

_PROGRAMS: Final = "ocsf_nft.attribution.bpf"
_TYPES: Final = Path("/sys/kernel/btf/vmlinux")
_MOUNTS: Final = Path("/proc/self/mountinfo")
#: include/uapi/asm-generic/socket.h, since Linux 5.14.
_SO_NETNS_COOKIE: Final = 71
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


class Dropped(NamedTuple):
    """Numbers of reports that the kernel dropped since the capture began.

    The usual cause is a full buffer. ``calls`` counts reports of packets and system calls,
    ``processes`` counts reports of process details.
    """

    calls: int
    processes: int


class Capture:
    """BPF programs that report which processes in the given network namespaces send packets.

    Call :meth:`close` after use.
    """

    def __init__(
        self,
        cookies: Iterable[int],
        *,
        permissive: Collection[int] = (),
        knows_types: bool | None = None,
    ) -> None:
        """Start to report refused packets in network namespaces with these :func:`cookie` numbers.

        For namespaces in ``permissive``, or if the kernel has no BTF, report system calls that send
        or connect instead. ``knows_types`` is true if the kernel has BTF; None detects BTF. Raises
        UnsupportedError if the capture can't start.
        """
        self.knows_types = _TYPES.exists() if knows_types is None else knows_types
        self._loaded = LoadedPrograms(_object("types" if self.knows_types else "plain"))
        self._rings: list[RingBuffer] = []
        try:
            self._rings = [self._loaded.ring("calls")]
            if self.knows_types:
                # Read the processes before the calls, so that each caller is known.
                self._rings.insert(0, self._loaded.ring("processes"))
            modes = {
                each: _REFUSALS if self.knows_types and each not in permissive else _CALLS
                for each in cookies
            }
            for each, mode in modes.items():
                self._loaded.update_map("watched", struct.pack("=Q", each), mode)
            for name in _TYPES_PROGRAMS if self.knows_types else ():
                self._loaded.attach(name)
            if _CALLS in modes.values():
                self._attach_to(_cgroup_mount(_MOUNTS.read_text("utf-8", "surrogateescape")))
        except BaseException:
            self.close()
            raise

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

    def _attach_to(self, cgroups: Path) -> None:
        cgroup = _opened(cgroups)
        try:
            for name in _CGROUP_PROGRAMS:
                self._loaded.attach_to_cgroup(name, cgroup)
        finally:
            os.close(cgroup)

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
        read = [ring.read(_MOST) for ring in self._rings]
        events = [bpf_layout.decode(sample) for samples in read for sample in samples]
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
            answer = asking.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        return int.from_bytes(answer, "little" if struct.pack("=H", 1)[0] else "big")

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
        if "-" in words and words[words.index("-") + 1 :][:1] == ["cgroup2"]:
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


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:  # another file system is mounted over it
        raise UnsupportedError(f"cgroup v2 can't be opened at {path} ({error.strerror})") from error


def _object(name: str) -> bytes:
    try:
        return resources.files(_PROGRAMS).joinpath(f"{name}.bpf.o").read_bytes()
    except OSError as error:
        raise UnsupportedError(
            "this installation has no BPF programs: it was built without clang"
        ) from error
