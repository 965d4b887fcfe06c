"""Netlink messages that load a ruleset without nft, prepared in advance so that a restore is fast.

nft first reads all tables, so nft is too slow to restore a fence. This module parses messages that
nft prints in advance.
"""

from __future__ import annotations

import contextlib
import functools
import re
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocsf_nft import netlink, netns
from ocsf_nft.errors import FenceError, UnsupportedError
from ocsf_nft.fence import listing, nft, replace_keeping_counters, ruleset, table_changes
from ocsf_nft.netns import HOST
from ocsf_nft.nfnetlink import (
    NFNL_MSG_BATCH_BEGIN,
    NFNL_MSG_BATCH_END,
    NFPROTO_NETDEV,
    SUBSYSTEM,
    Statement,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ocsf_nft.fence.spec import TableId
    from ocsf_nft.fence.state import InstalledFence
    from ocsf_nft.netns import Namespace

_NLM_F_CREATE: Final = 0x400
_NLM_F_APPEND: Final = 0x800
# include/uapi/linux/netfilter/nf_tables.h
_NFT_MSG_NEWTABLE: Final = 0
_NFT_MSG_DELTABLE: Final = 2
_NFT_MSG_NEWCHAIN: Final = 3
_NFT_MSG_DELCHAIN: Final = 5
_NFT_MSG_NEWRULE: Final = 6
_NFT_MSG_DELRULE: Final = 8
_NFT_MSG_NEWSET: Final = 9
_NFT_MSG_DELSET: Final = 11
_NFT_MSG_NEWSETELEM: Final = 12
_NFT_MSG_NEWOBJ: Final = 18
_NFT_MSG_DELOBJ: Final = 20
_NFTA_TABLE_NAME: Final = 1
_NFTA_TABLE_FLAGS: Final = 2
_NFTA_CHAIN_NAME: Final = 3
_NFTA_CHAIN_HOOK: Final = 4
_NFTA_CHAIN_POLICY: Final = 5
_NFTA_HOOK_DEV: Final = 3
_NFTA_HOOK_DEVS: Final = 4
_NFTA_DEVICE_NAME: Final = 1
_NLA_F_NESTED: Final = 0x8000
_NLA_F_NET_BYTEORDER: Final = 0x4000
_FAMILY_BYTES: Final = 4

#: libmnl does not show these flags. In a ruleset of ours, all statements of a type have the same
#: flags.
_FLAGS: Final = {
    _NFT_MSG_NEWTABLE: 0,
    _NFT_MSG_DELTABLE: 0,
    _NFT_MSG_NEWCHAIN: _NLM_F_CREATE,
    _NFT_MSG_DELCHAIN: 0,
    _NFT_MSG_NEWRULE: _NLM_F_CREATE | _NLM_F_APPEND,
    _NFT_MSG_DELRULE: 0,
    _NFT_MSG_NEWSET: _NLM_F_CREATE,
    _NFT_MSG_DELSET: 0,
    _NFT_MSG_NEWSETELEM: _NLM_F_CREATE,
    _NFT_MSG_NEWOBJ: _NLM_F_CREATE,
    _NFT_MSG_DELOBJ: 0,
}
_DELETIONS: Final = {
    _NFT_MSG_DELTABLE,
    _NFT_MSG_DELCHAIN,
    _NFT_MSG_DELRULE,
    _NFT_MSG_DELSET,
    _NFT_MSG_DELOBJ,
}
_MESSAGE: Final = re.compile(
    r"-+\t-+\n"
    r"\|  (?P<length>\d{10})  \|\t\| message length \|\n"
    r"\| (?P<kind>\d{5}) \| [RMAE-]{4} \|\t\|  type \| flags  \|\n"
    r"\|  \d{10}  \|\t\| sequence number\|\n"
    r"\|  \d{10}  \|\t\|     port ID    \|\n"
    r"-+\t-+\n"
    r"(?P<body>(?:\|.*\n)*)"
    r"-+\t-+\n"
)
#: Header of an attribute (length, flags, type) between colour codes.
_HEADER_LINE: Final = re.compile(
    r"\|\x1b\[[\d;]+m(\d{5})\x1b\[0m"
    r"\|\x1b\[[\d;]+m([N-])([B-])\x1b\[0m"
    r"\|\x1b\[[\d;]+m(\d{5})\x1b\[0m\|\t"
)
_HEADER_BYTES: Final = 16
_ATTRIBUTE: Final = struct.Struct("=HH")


class PackedStatements:
    """Netlink messages in a compact form, about a twentieth: a service has them for each fence.

    The length of each payload must be a multiple of four bytes.
    """

    def __init__(self, statements: Iterable[Statement]) -> None:
        messages = [netlink.message(kind, flags, payload) for kind, flags, payload in statements]
        if any(len(each) % 4 for each in messages):
            raise ValueError("a payload is not padded")
        self._data = zlib.compress(b"".join(messages))

    def unpack(self) -> tuple[Statement, ...]:
        """Return the messages."""
        data = memoryview(zlib.decompress(self._data))
        return tuple(
            Statement(each.kind, each.flags, bytes(each.payload))
            for each in netlink.messages_with_headers(data)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceBatch:
    """Prepared netlink messages that restore the tables of a fence in one network namespace."""

    tables: tuple[TableId, ...]
    #: Messages that empty the tables except their counters; None if this is impossible.
    emptying: PackedStatements | None
    #: Messages that delete the tables with their counters.
    deleting: PackedStatements
    #: Messages that create and fill the tables, after one of the other two.
    content: PackedStatements

    @property
    def full(self) -> tuple[Statement, ...]:
        """Return the messages that restore the tables without their counters."""
        return (*self.deleting.unpack(), *self.content.unpack())

    @property
    def keeping_counters(self) -> tuple[Statement, ...] | None:
        """Return the messages that restore the tables with counters; None if impossible."""
        if self.emptying is None:
            return None
        return (*self.emptying.unpack(), *self.content.unpack())

    def preserving(self, recreated: Iterable[TableId]) -> tuple[Statement, ...] | None:
        """Return the messages that preserve counters; None if this is impossible.

        Another process may have created tables of the fence again (``recreated``). Their counters
        are wrong.
        """
        return None if set(recreated) & set(self.tables) else self.keeping_counters


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreBatch:
    """Prepared netlink messages that restore a fence, in all its network namespaces."""

    #: Fence that the messages restore.
    installed: InstalledFence
    #: The messages in the fenced namespace, and in the host's if the fence has a guard.
    batches: tuple[NamespaceBatch, ...]

    @property
    def links(self) -> frozenset[str]:
        """Return the names of the fenced interfaces."""
        return frozenset(self.installed.around.links)

    def is_valid_for(self, installed: InstalledFence) -> bool:
        """Return True if these messages, made for ``self.installed``, also restore ``installed``.

        The two fences must have the same specification, log transport, namespace, TAP device, and
        links of the host.
        Their routes may differ, and so may their other interfaces.
        """
        own, other = (
            (each.spec, each.transport, each.identity, each.around.ifindex, each.around.host)
            for each in (self.installed, installed)
        )
        return own == other


def prepare(installed: InstalledFence) -> RestoreBatch:
    """Prepare the netlink messages that restore a fence later; change nothing in the kernel now.

    Runs nft for each namespace, only to generate the messages. Blocks until nft ends. Raises
    UnsupportedError or FenceError if nft fails.
    """
    spec, around, transport = installed.spec, installed.around, installed.transport
    text = ruleset.fence(spec, around, transport)
    batches = [_prepare_namespace(installed.namespace, installed, tuple(spec.tables), text)]
    if spec.guard_tables:
        text = ruleset.guard(spec, around, transport)
        batches.append(_prepare_namespace(HOST, installed, tuple(spec.guard_tables), text))
    return RestoreBatch(installed=installed, batches=tuple(batches))


def compile_ruleset(namespace: Namespace, text: str) -> tuple[Statement, ...]:
    """Return the netlink messages that would load ``text``, a ruleset of ocsf-nft; load nothing.

    nft translates ``text`` in an empty temporary namespace, where no tables of other processes
    disturb it. If this fails, for example because ``text`` refers to existing tables, nft uses
    ``namespace``. Raises AbsentError, UnsupportedError, FenceError.
    """
    with contextlib.suppress(UnsupportedError, FenceError):
        return tuple(parse_messages(netns.in_scratch(lambda: nft.show_messages(HOST, text))))
    return tuple(parse_messages(nft.show_messages(namespace, text)))


def parse_messages(output: str) -> Iterator[Statement]:
    """Yield the messages of a netlink transaction, read from nft's debug output.

    The output is that of ``nft --debug=mnl``. The messages that only begin or end the transaction
    are omitted. Raises FenceError if the output has no transaction, or has an unknown format.
    """
    is_inside = False
    for found in _MESSAGE.finditer(output):
        kind = int(found["kind"])
        if kind == NFNL_MSG_BATCH_BEGIN:
            is_inside = True
        elif kind == NFNL_MSG_BATCH_END:
            return
        elif is_inside:
            number = kind - SUBSYSTEM
            if number not in _FLAGS:
                raise FenceError(f"nft shows a message of an unknown type: {kind}")
            payload = _payload(found["body"])
            if len(payload) != int(found["length"]) - _HEADER_BYTES + (-int(found["length"]) % 4):
                raise FenceError("nft shows messages that are truncated or in an unknown format")
            yield Statement(number, _FLAGS[number], payload)
    if not is_inside:
        raise FenceError("nft doesn't show what it sends in a known format")


def attach_statements(
    statements: Iterable[Statement], devices: Iterable[str]
) -> tuple[Statement, ...]:
    """Return the netlink statements that attach interfaces to the netdev chains of a fence.

    ``statements`` are the statements that created the fence. ``devices`` are the names of the
    interfaces. Without interfaces, the result is empty.
    """
    names = [
        netlink.attribute(_NFTA_DEVICE_NAME, name.encode("utf-8", "surrogateescape") + b"\0")
        for name in devices
    ]
    groups = [
        b"".join(names[start : start + ruleset.MOST_LINKS])
        for start in range(0, len(names), ruleset.MOST_LINKS)
    ]
    chains: dict[bytes, Statement] = {}
    for statement in statements:
        if statement.kind == _NFT_MSG_NEWCHAIN and statement.payload[0] == NFPROTO_NETDEV:
            found = dict(_attributes(statement.payload))
            if _NFTA_CHAIN_HOOK in found:  # a chain with many interfaces has several statements
                chains.setdefault(bytes(found[_NFTA_CHAIN_NAME]), statement)
    return tuple(
        statement._replace(payload=_with_devices(statement.payload, some))
        for statement in chains.values()
        for some in groups
    )


def _prepare_namespace(
    namespace: Namespace, installed: InstalledFence, tables: tuple[TableId, ...], definition: str
) -> NamespaceBatch:
    replacement = None
    listed = {table_id: installed.listings.get(" ".join(table_id), "") for table_id in tables}
    listings = {table_id: listing.without_elements(text) for table_id, text in listed.items()}
    # A restore detaches no interface: by then it may be detached, which would be an error.
    listings = listing.with_devices(listings, installed.around.attached)
    if all(listings.values()):
        replacement = replace_keeping_counters.replacement_text(definition, listings)
    is_owned = installed.spec.is_owned
    if replacement is None:
        emptying, content = None, _split(compile_ruleset(namespace, definition))[1]
    else:
        text = _set_comments(replacement, tables, is_owned=is_owned)
        emptying, content = _split(compile_ruleset(namespace, text))
    return NamespaceBatch(
        tables=tables,
        emptying=None if emptying is None else PackedStatements(emptying),
        deleting=PackedStatements(_deletion_statements(tables, is_owned=is_owned)),
        content=PackedStatements(content),
    )


def _split(statements: tuple[Statement, ...]) -> tuple[tuple[Statement, ...], ...]:
    """Return the statements that empty or delete the tables of a fence, and those that fill them.

    The content of a fence's ruleset deletes nothing.
    """
    end = max(index for index, each in enumerate(statements) if each.kind in _DELETIONS) + 1
    return statements[:end], statements[end:]


def _deletion_statements(tables: Iterable[TableId], *, is_owned: bool) -> Iterator[Statement]:
    """Yield the statements of :func:`ruleset.ensure_table` and ``delete table`` for each table."""
    for table_id in tables:
        yield table_changes.ensuring_statement(table_id, is_owned=is_owned)
        yield table_changes.deletion_statement(table_id)


def _set_comments(replacement: str, tables: tuple[TableId, ...], *, is_owned: bool) -> str:
    """Return ``replacement``, changed so that each table is created with its comment."""
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


def _payload(body: str) -> bytes:
    """Return the payload of a message, which nft shows in one line for every four bytes.

    Raises FenceError if the format is unknown.
    """
    # A fence has tens of thousands of such lines.
    words = (
        line[2:13] if line.startswith("| ") else _attribute_header(line)
        for line in body.split("\n")
        if line
    )
    try:
        return bytes.fromhex("".join(words))
    except ValueError as error:
        raise FenceError("nft shows messages in an unknown format") from error


@functools.lru_cache(4096)
def _attribute_header(line: str) -> str:
    """Return the header of an attribute, as hexadecimal digits.

    Raises ValueError if the line has an unknown format.
    """
    found = _HEADER_LINE.match(line)
    if found is None:
        raise ValueError
    length, nested, order, kind = found.groups()
    flags = _NLA_F_NESTED * (nested == "N") | _NLA_F_NET_BYTEORDER * (order == "B")
    return _ATTRIBUTE.pack(int(length), int(kind) | flags).hex()


def _attributes(payload: bytes) -> Iterator[tuple[int, memoryview]]:
    return netlink.attributes(memoryview(payload)[_FAMILY_BYTES:])


def _with_devices(payload: bytes, names: bytes) -> bytes:
    changed = payload[:_FAMILY_BYTES]
    for kind, value in _attributes(payload):
        if kind == _NFTA_CHAIN_HOOK:
            hook = b"".join(
                netlink.attribute(part, bytes(content))
                for part, content in netlink.attributes(value)
                if part not in {_NFTA_HOOK_DEV, _NFTA_HOOK_DEVS}
            )
            hook += netlink.attribute(_NFTA_HOOK_DEVS | _NLA_F_NESTED, names)
            changed += netlink.attribute(kind | _NLA_F_NESTED, hook)
        elif kind != _NFTA_CHAIN_POLICY:  # it may have changed since
            changed += netlink.attribute(kind, bytes(value))
    return changed
