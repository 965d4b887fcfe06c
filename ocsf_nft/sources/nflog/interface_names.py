"""Names of a namespace's network interfaces: an NFLOG record has only their numbers."""

from __future__ import annotations

import fcntl
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket

#: ``struct ifreq`` of netdevice(7): the name, then the index.
_REQUEST: Final = struct.Struct("@16sI20x")
_SIOCGIFNAME: Final = 0x8910
_MAX_NAMES: Final = 4096


class InterfaceNames:
    """Table of the interface names in the network namespace of a socket, by the interface's index.

    The kernel is asked once for each index after each :meth:`refresh`, since an interface can be
    renamed. A name that was asked for stays in the table after the interface is deleted, because
    records of its packets may still arrive. The table has only the newest 4096 names.
    """

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._socket: socket.socket | None = None
        self._asked: set[int] = set()

    def refresh(self, sock: socket.socket) -> None:
        """Ask the kernel again for each name that is needed from now on.

        ``sock`` is a socket of any kind in the network namespace. It must stay open.
        """
        self._socket = sock
        self._asked.clear()

    def name(self, index: int) -> str | None:
        """Return the name of the interface with this index, or None if the index is unknown."""
        if self._socket is not None and index not in self._asked:
            self._asked.add(index)
            self._ask(self._socket, index)
        return self._names.get(index)

    def _ask(self, sock: socket.socket, index: int) -> None:
        request = bytearray(_REQUEST.pack(b"", index))
        try:
            # It takes a microsecond, and needs no privilege and no socket of its own.
            fcntl.ioctl(sock, _SIOCGIFNAME, request)
        except OSError:  # ENODEV: the interface is deleted
            return
        name, _ = _REQUEST.unpack(request)
        self._names.pop(index, None)
        self._names[index] = name.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        while len(self._names) > _MAX_NAMES:
            del self._names[next(iter(self._names))]
