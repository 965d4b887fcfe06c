"""Processes in a network namespace, with the standard library only (see ``control_request``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator


#: ``own``: only the container is in the namespace. ``shared``: other processes are in it, such as
#: those of the container that it joined. ``host``: the namespace of the engine itself.
Network: TypeAlias = Literal["own", "shared", "host"]


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


def network_of(
    namespace: NamespaceId, other_than: int | None = None, *, is_new: bool = False
) -> Network:
    """Return which network namespace a container is in, for an engine's program.

    The process ``other_than`` is the container's own. With ``is_new``, no other process can be in
    the namespace if it is not that of the engine.
    """
    if namespace == namespace_of("self"):
        return "host"
    return "shared" if not is_new and has_members(namespace, other_than) else "own"


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
