"""Compilation of a ruleset to netlink messages, so that it can be loaded later without nft.

nft first reads all tables, so nft is too slow to restore a fence. This module parses messages that
nft prints in advance.
"""

from __future__ import annotations

import contextlib
import functools
import re
import struct
from typing import TYPE_CHECKING, Final

from ocsf_nft import netlink, netns
from ocsf_nft.errors import FenceError, UnsupportedError
from ocsf_nft.fence import nft
from ocsf_nft.netns import Namespace
from ocsf_nft.nfnetlink import (
    FAMILIES,
    NFNL_MSG_BATCH_BEGIN,
    NFNL_MSG_BATCH_END,
    NFPROTO_NETDEV,
    NFT_TABLE_F_OWNER,
    NFT_TABLE_F_PERSIST,
    SUBSYSTEM,
    Statement,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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


def compile_ruleset(namespace: Namespace, text: str) -> tuple[Statement, ...]:
    """Return the netlink messages that would load ``text``, a ruleset of ocsf-nft; load nothing.

    nft translates ``text`` in an empty temporary namespace. If this fails, for example because
    ``text`` refers to existing tables, nft uses ``namespace``. Raises AbsentError,
    UnsupportedError, FenceError.
    """
    # In an empty namespace, tables of other processes don't disturb nft. For example, this fails
    # if the ruleset refers to existing tables.
    with contextlib.suppress(UnsupportedError, FenceError):
        return tuple(parse_messages(netns.in_scratch(lambda: nft.show_messages(Namespace(), text))))
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


def ownership_statement(family: str, table: str) -> Statement:
    """Return the netlink statement that makes the sending socket the exclusive owner of a table.

    While the socket is open, only this socket can change the table. The table must already have the
    flag ``persist``.
    """
    flags = NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST
    payload = struct.pack("!BBH", FAMILIES[family], 0, 0)
    payload += netlink.attribute(_NFTA_TABLE_NAME, table.encode() + b"\0")
    payload += netlink.attribute(_NFTA_TABLE_FLAGS, struct.pack("!I", flags))
    return Statement(_NFT_MSG_NEWTABLE, _FLAGS[_NFT_MSG_NEWTABLE], payload)


def attach_statements(
    statements: Iterable[Statement], devices: Iterable[str]
) -> tuple[Statement, ...]:
    """Return the netlink statements that attach interfaces to the netdev chains of a fence.

    ``statements`` are the statements that created the fence. ``devices`` are the names of the
    interfaces. Without interfaces, the result is empty.
    """
    names = b"".join(
        netlink.attribute(_NFTA_DEVICE_NAME, name.encode("utf-8", "surrogateescape") + b"\0")
        for name in devices
    )
    return tuple(
        statement._replace(payload=_with_devices(statement.payload, names))
        for statement in statements
        if names
        and statement.kind == _NFT_MSG_NEWCHAIN
        and statement.payload[0] == NFPROTO_NETDEV
        and _NFTA_CHAIN_HOOK in dict(_attributes(statement.payload))
    )


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
