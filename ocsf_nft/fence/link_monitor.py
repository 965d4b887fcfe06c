"""Monitor of a sandbox's network interfaces, which attaches the fence to new ones."""

from __future__ import annotations

import contextlib
import errno
import time
from typing import TYPE_CHECKING, Final

from ocsf_nft import netlink, netns, rtnetlink
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.fence import restore_batch
from ocsf_nft.fence.surroundings.notices import RouteNotices

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from ocsf_nft.fence.nft_monitor import NftMonitor
    from ocsf_nft.fence.restore_batch import RestoreBatch
    from ocsf_nft.fence.spec import Tap

_RECEIVE_BYTES: Final = 1 << 16
#: Maximum of datagrams in one read, so that it ends.
_MAX_DATAGRAMS: Final = 1024
#: Pause between two reads of notices; the first one is immediate.
_PAUSE_SECONDS: Final = 0.02


class LinkMonitor:
    """Monitor of the network interfaces (links) in a sandbox's namespace.

    Only one thread may call :meth:`read`; any thread may call :meth:`attach`.
    """

    def __init__(self, tables: NftMonitor, tap: Tap | None) -> None:
        """Open a socket for notices in the namespace of ``tables``, the monitor of the fence there.

        With ``tap``, only links with the name of this device count. The caller closes ``notices``.
        Raises SourceError if the socket can't be opened, and the errors of :meth:`Namespace.call`.
        """
        #: Names of new links that no record has yet, by their indexes: a link may be renamed.
        self._new: dict[int, str] = {}
        #: Number of times that new links were attached; they may have been removed since.
        self.attachments = 0
        #: Time of the next read (monotonic).
        self.reads_from = 0.0
        #: Notices about links and everything else that a fence depends on.
        self.seen = RouteNotices()
        self._tables = tables
        self._device = None if tap is None else tap.device
        self.notices = tables.namespace.call(rtnetlink.subscribe)

    @property
    def new(self) -> frozenset[str]:
        """Return the names of new links that no record has yet."""
        return frozenset(self._new.values())

    def read(self, batch: RestoreBatch | None, *, attaches: bool) -> bool:
        """Read the kernel's queued notices about links; with ``attaches``, attach the new links.

        ``batch`` are the messages that restore the fence; its links are not new. Return True if a
        link or a route may have changed. Raises OSError if the socket fails.
        """
        self.seen.has_links = False
        found: dict[int, str] = {}
        fenced = batch.links if batch else frozenset()
        has_dropped = False
        with contextlib.suppress(BlockingIOError):
            for _ in range(_MAX_DATAGRAMS):
                try:
                    datagram, sender = self.notices.recvfrom(_RECEIVE_BYTES)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    has_dropped = True
                    continue
                if sender[0] == 0:
                    self._take(datagram, found, fenced)
        if has_dropped:
            self.seen.mark_dropped()
            # The notice of the end of any of them may be among those that were dropped.
            self._new.clear()
            with contextlib.suppress(OSError, OcsfNftError):  # a check finds them later
                found = netns.call_beside(self.notices, lambda: self._present(fenced))
        self._new |= found
        if attaches:
            self.attach(batch, frozenset(found.values()))
        self.reads_from = time.monotonic() + _PAUSE_SECONDS
        return self.seen.has_links

    def _present(self, fenced: AbstractSet[str]) -> dict[int, str]:
        """Return the names of the present new links, by their indexes; ``fenced`` are not new."""
        return {
            link.ifindex: link.name
            for link in rtnetlink.links()
            if not link.is_loopback and link.name not in fenced
            if self._device in {None, link.name}
        }

    def _take(self, datagram: bytes, found: dict[int, str], fenced: AbstractSet[str]) -> None:
        """Add the names of new links to ``found``, by their indexes; ``fenced`` are not new."""
        for message in netlink.messages_with_headers(memoryview(datagram)):
            self.seen.take(message)
            kind, body = message.kind, message.payload
            is_of_link = kind in {rtnetlink.RTM_NEWLINK, rtnetlink.RTM_DELLINK}
            link = rtnetlink.link(body) if is_of_link else None
            if link is None or link.is_loopback:
                continue
            if self._new.get(link.ifindex) == link.name and kind == rtnetlink.RTM_NEWLINK:
                continue
            # It was deleted or renamed, or it is new.
            self._new.pop(link.ifindex, None)
            found.pop(link.ifindex, None)
            is_new = kind == rtnetlink.RTM_NEWLINK and link.name not in fenced
            if is_new and self._device in {None, link.name}:
                found[link.ifindex] = link.name

    def attach(self, batch: RestoreBatch | None, names: AbstractSet[str]) -> None:
        """Attach the fence's netdev chains to the links ``names`` that are not in ``batch``.

        Without ``batch``, attach nothing. Errors are ignored, because a later check reports them.
        """
        if batch is None or not (names := names - batch.links):
            return
        self.attachments += 1
        # The link may be removed again. A later check adds the new links to the fence's record, and
        # reports links that can't be attached. The lock on the records is not needed: the chains
        # only block packets, so they do no harm.
        with contextlib.suppress(OSError, OcsfNftError):
            full = batch.batches[0].full
            self._tables.commit(restore_batch.attach_statements(full, names))
