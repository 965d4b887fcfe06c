"""Names of network namespaces: the paths at which their files are mounted or linked."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.errors import OcsfNftError, UnsupportedError, reason_of
from ocsf_nft.netns import HOST, NAMED, Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Directories whose symbolic links count, such as ``ln -s /proc/PID/ns/net /run/netns/NAME``.
_DIRECTORIES: Final = (NAMED, Path("/run/docker/netns"))
#: Line of /proc/PID/mountinfo for a mount of a network namespace: its inode and its mount point.
_MOUNT: Final = re.compile(rb"\d+ \d+ \d+:\d+ net:\[(\d+)\] (\S+) .* - nsfs \S+ \S+")
_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
_TARGET: Final = re.compile(r"net:\[\d+\]")


class NamespaceName(NamedTuple):
    """Path of a network namespace, and the namespace's identity.

    ``is_hidden`` is True if another mount covers the path, so that the path does not lead to the
    namespace.
    """

    path: Path
    identity: str
    is_hidden: bool


def find_names() -> tuple[NamespaceName, ...]:
    """Return the names of all network namespaces that have one in our mount namespace.

    A name is a mount of a namespace's file anywhere, or a symbolic link in ``/run/netns`` or
    ``/run/docker/netns``. Raises UnsupportedError if the mounts can't be read.
    """
    device, _, _ = HOST.identity().partition(":")  # the same for all namespaces
    try:
        mounts = tuple(dict.fromkeys(_mounted(device)))  # a shared mount is listed twice
    except OSError as error:
        raise UnsupportedError(f"mounts can't be read: {reason_of(error)}") from error
    identities = {mount.path: mount.identity for mount in mounts if not mount.is_hidden}
    links = (link for directory in _DIRECTORIES for link in _linked(directory, identities))
    return (*mounts, *links)


def _mounted(device: str) -> Iterator[NamespaceName]:
    with Path("/proc/self/mountinfo").open("rb") as lines:
        for line in lines:
            if (mount := _MOUNT.match(line)) is not None:
                raw = _ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), mount[2])
                path, identity = Path(os.fsdecode(raw)), f"{device}:{int(mount[1])}"
                yield NamespaceName(path, identity, is_hidden=_identity(path) != identity)


def _linked(directory: Path, mounts: Mapping[Path, str]) -> Iterator[NamespaceName]:
    with contextlib.suppress(OSError), os.scandir(directory) as entries:  # it may be missing
        for entry in entries:
            if entry.is_symlink():
                path = Path(entry.path)
                target = Path(os.path.realpath(path))
                # /proc/PID/ns/net is a link itself, with a target such as net:[4026531840].
                is_network = target in mounts or _TARGET.fullmatch(target.name)
                identity = _identity(path) if is_network else None
                if identity is not None:
                    yield NamespaceName(path, identity, is_hidden=False)


def _identity(path: Path) -> str | None:
    try:
        return Namespace(path).identity()
    except OcsfNftError:  # deleted, or not permitted
        return None
