"""Capture: BPF programs tell who sends what in a sandbox, while it does.

Needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN over the initial user namespace, and libbpf. On a
kernel that describes its types (CONFIG_DEBUG_INFO_BTF, Linux 5.18 or later) each packet is told of
that is refused, and what the processes are. Of a fence that refuses nothing, and on other kernels
(Linux 5.15 or later), it is calls that are told of, for which it takes cgroup v2.
"""

from __future__ import annotations

import os
import socket
import struct
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from ocsf_nft.attribution import bpf_layout
from ocsf_nft.attribution.cgroup_mount import hierarchy
from ocsf_nft.attribution.libbpf import Loaded, Ring
from ocsf_nft.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from ocsf_nft.attribution.bpf_layout import Told
    from ocsf_nft.netns import Namespace

_PROGRAMS: Final = "ocsf_nft.attribution.bpf"
_TYPES: Final = Path("/sys/kernel/btf/vmlinux")
#: include/uapi/asm-generic/socket.h, since Linux 5.14.
_SO_NETNS_COOKIE: Final = 71
#: What is told of a namespace (``capture.bpf.c``).
_REFUSALS, _CALLS = b"\1", b"\2"
_OF_CGROUP: Final = ("connect4", "connect6", "sendmsg4", "sendmsg6", "established", "released")
_OF_TYPES: Final = ("forked", "executed", "refused")
#: Read of a ring in one go: a few milliseconds of work.
_MOST: Final = 256


class Lost(NamedTuple):
    """What there was no room for, since the capture began."""

    calls: int
    processes: int


class Capture:
    """The programs at work, in some network namespaces; a context to be left."""

    def __init__(
        self,
        cookies: Iterable[int],
        *,
        permissive: Collection[int] = (),
        knows_types: bool | None = None,
    ) -> None:
        """Begin to capture in the namespaces that are numbered so (:func:`cookie`).

        What is refused is told of; in those that are ``permissive``, and in all where no types are
        known, what is called. ``knows_types`` is looked up where it is not given. Raises
        UnsupportedError when this host doesn't allow it, with the reason.
        """
        self.knows_types = _TYPES.exists() if knows_types is None else knows_types
        self._loaded = Loaded(_object("types" if self.knows_types else "plain"))
        self._rings: list[Ring] = []
        try:
            self._rings = [self._loaded.ring("calls")]
            if self.knows_types:
                # Before the calls: who calls is known then.
                self._rings.insert(0, self._loaded.ring("processes"))
            what = {
                each: _REFUSALS if self.knows_types and each not in permissive else _CALLS
                for each in cookies
            }
            for each, value in what.items():
                self._loaded.put("watched", struct.pack("=Q", each), value)
            for name in _OF_TYPES if self.knows_types else ():
                self._loaded.attach(name)
            if _CALLS in what.values():
                self._attach_to(hierarchy())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Use it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()

    def close(self) -> None:
        """Capture no more."""
        while self._rings:
            self._rings.pop().close()
        self._loaded.close()

    def _attach_to(self, cgroups: Path) -> None:
        cgroup = _opened(cgroups)
        try:
            for name in _OF_CGROUP:
                self._loaded.attach_to_cgroup(name, cgroup)
        finally:
            os.close(cgroup)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Readable when much has come that was not read."""
        return tuple(ring.descriptor for ring in self._rings)

    def read(self) -> tuple[list[Told], bool]:
        """What has come, first the processes; of much some, and whether there may be more."""
        read = [ring.read(_MOST) for ring in self._rings]
        told = [bpf_layout.told(sample) for samples in read for sample in samples]
        return told, any(len(samples) >= _MOST for samples in read)

    def check(self) -> None:
        """Raise UnsupportedError when it captures no more."""
        if (name := self._loaded.detached()) is not None:
            raise UnsupportedError(f"somebody has detached the BPF program {name}")

    def lost(self) -> Lost:
        """What there was no room for; raises UnsupportedError where that can't be read."""
        return Lost(*self._loaded.totals("lost", len(Lost._fields)))


def cookie(namespace: Namespace) -> int:
    """The kernel's number of a network namespace, which no other one ever gets."""

    def ask() -> int:
        # Of any family: a service may be kept from others.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
            answer = asking.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        return int.from_bytes(answer, "little" if struct.pack("=H", 1)[0] else "big")

    try:
        return namespace.call(ask)
    except OSError as error:
        raise UnsupportedError(
            f"this kernel doesn't number network namespaces, as Linux 5.14 does ({error.strerror})"
        ) from error


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
