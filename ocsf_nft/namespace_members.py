"""Processes in a network namespace, with the standard library only (see ``control_request``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class NamespaceId(NamedTuple):
    """Identity of a namespace: the device and inode of its file."""

    device: int
    inode: int


def namespace_of(process: int | str) -> NamespaceId:
    """Return the network namespace of a process: a pid, or ``self``; raises OSError."""
    return namespace_at(f"/proc/{process}/ns/net")


def namespace_at(path: str) -> NamespaceId:
    """Return the namespace with the file ``path``; raises OSError."""
    status = os.stat(path)  # noqa: PTH116 - pathlib is slow to import
    return NamespaceId(status.st_dev, status.st_ino)


def has_members(namespace: NamespaceId, other_than: int | None = None) -> bool:
    """Return True if a process is in the namespace, apart from the process ``other_than``."""
    return any(process != other_than for process in members(namespace))


def members(namespace: NamespaceId) -> Iterator[int]:
    """Yield the processes in the namespace.

    A process with threads in several namespaces is not in one of them. Container engines are such
    processes: they create the namespace of a container in a thread, and if that is a Go program's
    first thread, it stays there.
    """
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib is slow to import
        if name.isdecimal():
            try:
                if namespace_of(name) == namespace and _is_inside(name, namespace):
                    yield int(name)
            except OSError:  # the process has exited
                continue


def _is_inside(process: str, namespace: NamespaceId) -> bool:
    folder = f"/proc/{process}/task"
    threads = os.listdir(folder)  # noqa: PTH208 - pathlib is slow to import
    return all(namespace_at(f"{folder}/{each}/ns/net") == namespace for each in threads)
