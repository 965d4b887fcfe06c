"""Netlink messages that restore a fence, prepared in advance so that a restore is fast."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocsf_nft.fence import replace_keeping_counters, ruleset, ruleset_batch
from ocsf_nft.netns import HOST
from ocsf_nft.nfnetlink import Statement

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.fence.spec import TableId
    from ocsf_nft.fence.state import InstalledFence
    from ocsf_nft.netns import Namespace

#: Kind, flags and length of a packed message.
_HEADER: Final = struct.Struct("=HHI")
#: nft's listing of a table; the elements of its sets follow it (:func:`listing.of_fence`).
_TABLE: Final = re.compile(r".*?^\}\n", re.MULTILINE | re.DOTALL)


class PackedStatements:
    """Netlink messages in a compact form, about a twentieth: a service has them for each fence."""

    def __init__(self, statements: Iterable[Statement]) -> None:
        parts: list[bytes] = []
        for kind, flags, payload in statements:
            parts += (_HEADER.pack(kind, flags, len(payload)), payload)
        self._data = zlib.compress(b"".join(parts))

    def unpack(self) -> tuple[Statement, ...]:
        """Return the messages."""
        data = zlib.decompress(self._data)
        found, position = [], 0
        while position < len(data):
            kind, flags, length = _HEADER.unpack_from(data, position)
            position += _HEADER.size
            found.append(Statement(kind, flags, data[position : position + length]))
            position += length
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceBatch:
    """Prepared netlink messages that restore the tables of a fence in one network namespace.

    ``keeping_counters`` are messages that preserve existing counters; None if this is impossible.
    ``full`` are messages that first delete the tables with their counters.
    """

    tables: tuple[TableId, ...]
    keeping_counters: PackedStatements | None
    full: PackedStatements

    def candidates(self, recreated: Iterable[TableId]) -> tuple[tuple[Statement, ...], ...]:
        """Return netlink message sequences to send in turn, until the kernel accepts a sequence.

        The first sequence preserves packet counters, if possible; the last resets them.
        ``recreated`` are tables that another process has created again, so their counters are
        wrong. If a recreated table is to be restored, only the last sequence is returned.
        """
        # A recreated table of this fence has counters that are not the fence's.
        if self.keeping_counters is None or set(recreated) & set(self.tables):
            return (self.full.unpack(),)
        return self.keeping_counters.unpack(), self.full.unpack()


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreBatch:
    """Prepared netlink messages that restore a fence, in all its network namespaces."""

    #: Fence that the messages restore.
    installed: InstalledFence
    #: Each namespace with its messages. The first is the fenced namespace. The second is the host's
    #: if the fence has a guard: a table on the host that blocks packets that bypass the fence.
    batches: tuple[tuple[Namespace, NamespaceBatch], ...]

    @property
    def links(self) -> frozenset[str]:
        """Return the names of the fenced interfaces."""
        return frozenset(self.installed.around.links)

    def is_valid_for(self, installed: InstalledFence) -> bool:
        """Return True if these messages, made for ``self.installed``, also restore ``installed``.

        The two fences must have the same specification, log transport, namespace and TAP device.
        Their routes may differ, and so may their other interfaces.
        """
        own, other = (
            (each.spec, each.transport, each.identity, each.around.ifindex)
            for each in (self.installed, installed)
        )
        return own == other


def prepare(installed: InstalledFence) -> RestoreBatch:
    """Prepare the netlink messages that restore a fence later; change nothing in the kernel now.

    Runs nft several times, only to generate the messages. Blocks until nft ends. Raises
    UnsupportedError or FenceError if nft fails.
    """
    spec, around, transport = installed.spec, installed.around, installed.transport
    text = ruleset.fence(spec, around, transport)
    batches = [
        (
            installed.namespace,
            _prepare_namespace(installed.namespace, installed, tuple(spec.tables), text),
        )
    ]
    if spec.guard_device is not None:
        guarded = tuple(spec.guard_tables)
        text = ruleset.guard(spec, around, transport)
        batches.append((HOST, _prepare_namespace(HOST, installed, guarded, text)))
    return RestoreBatch(installed=installed, batches=tuple(batches))


def _prepare_namespace(
    namespace: Namespace, installed: InstalledFence, tables: tuple[TableId, ...], definition: str
) -> NamespaceBatch:
    replacement = None
    listed = {table_id: installed.listings.get(" ".join(table_id), "") for table_id in tables}
    listings = {
        table_id: found[0] for table_id, text in listed.items() if (found := _TABLE.match(text))
    }
    if len(listings) == len(tables):
        replacement = replace_keeping_counters.replacement_text(definition, listings)
    if replacement is not None:
        replacement = _set_comments(replacement, tables, is_owned=installed.spec.is_owned)
    return NamespaceBatch(
        tables=tables,
        keeping_counters=None
        if replacement is None
        else PackedStatements(ruleset_batch.compile_ruleset(namespace, replacement)),
        full=PackedStatements(ruleset_batch.compile_ruleset(namespace, definition)),
    )


def _set_comments(replacement: str, tables: tuple[TableId, ...], *, is_owned: bool) -> str:
    """Return the ruleset ``replacement``, changed so that each table is created with its comment.

    In ``replacement``, the comment comes after the line that creates the table. The kernel ignores
    such a late comment. ``is_owned`` must be true if that line has the flags ``owner`` and
    ``persist``, else false.
    """
    # Unchanged, the ruleset creates a missing table first, and gives its comment later. The kernel
    # ignores a comment for a table that exists already.
    for table_id in tables:
        where = f"table {table_id.family} {table_id.name}"
        pattern = rf'^{re.escape(where)} \{{\n(?:\tflags .*\n)?\tcomment ".*"\n\}}\n'
        comment = re.search(pattern, replacement, re.MULTILINE)
        if comment is not None:
            first, flush = ruleset.ensure_table(*table_id, persists=is_owned), f"flush {where}\n"
            replacement = replacement.replace(f"\n{first}{flush}", f"\n{comment[0]}{flush}", 1)
    return replacement
