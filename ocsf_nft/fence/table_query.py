"""Netlink queries about an nftables table: its comment, its flags, and the elements of its sets.

The program nft is too slow for these queries, which run every few seconds.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import itertools
from typing import TYPE_CHECKING, Final, TypeVar

from ocsf_nft import netlink, nfnetlink
from ocsf_nft.errors import FenceError, UnsupportedError
from ocsf_nft.fence import nft
from ocsf_nft.nfnetlink import InterruptedDumpError, Nftables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ocsf_nft.netns import Namespace
    from ocsf_nft.nfnetlink import Table

T = TypeVar("T")

# include/uapi/linux/netfilter/nf_tables.h
_NFT_MSG_GETSETELEM: Final = 13
_NFTA_SET_ELEM_LIST_TABLE: Final = 1
_NFTA_SET_ELEM_LIST_SET: Final = 2
_NFTA_SET_ELEM_LIST_ELEMENTS: Final = 3
_NFTA_SET_ELEM_KEY: Final = 1
_NFTA_DATA_VALUE: Final = 1
#: libnftnl's udata.h: type, length, value. This is the type of a table's comment.
_UDATA_TABLE_COMMENT: Final = 0
#: Errors of a kernel without nf_tables: no such subsystem, no such socket.
_MISSING: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT})
#: Lengths of the keys of allowed4 and allowed6; a field takes a multiple of four bytes.
_ENDPOINT_BYTES: Final = frozenset({12, 24})
_ADDRESS_BYTES: Final = frozenset({4, 16})
_PROTOCOLS: Final = {6: "tcp", 17: "udp"}
#: Attempts to read a set, if another process loads a ruleset meanwhile.
_TRIES: Final = 3


def comment(namespace: Namespace, family: str, name: str) -> str | None:
    """Return the comment of an nftables table; None if there is no such table.

    If the table has no comment, the result is an empty text. Raises AbsentError if the namespace
    does not exist, UnsupportedError or FenceError if the query is not possible.
    """
    found = table(namespace, family, name)
    return None if found is None else _comment(found.userdata)


def table(namespace: Namespace, family: str, name: str) -> Table | None:
    """Return an nftables table's flags and user data; None if there is no such table.

    Raises the errors of :func:`comment`.
    """
    return _query(namespace, lambda nftables: nftables.table(family, name))


def generation(namespace: Namespace) -> int:
    """Return the generation of a namespace's ruleset, which each transaction increments.

    Raises the errors of :func:`comment`.
    """
    return _query(namespace, Nftables.generation)


def elements(
    namespace: Namespace, family: str, table: str, sets: Iterable[str], most: int
) -> tuple[str, ...]:
    """Return a line for each element of the sets, for example ``allowed4: 192.0.2.1 . tcp . 443``.

    A missing set has no lines. If a set has more than ``most`` elements, a single line states this
    instead. A single line also states that a set could not be read because other processes changed
    it repeatedly. Raises AbsentError, UnsupportedError or FenceError.
    """
    return _call(
        namespace,
        lambda: tuple(line for name in sets for line in _lines(family, table, name, most)),
    )


def _lines(family: str, table: str, name: str, most: int) -> list[str]:
    for _ in range(_TRIES):
        # One socket for each list, because a list that was not read to its end makes it unusable.
        with Nftables() as nftables, contextlib.suppress(InterruptedDumpError):
            # Another process may have added a million elements.
            keys = list(itertools.islice(_keys(nftables, family, table, name), most + 1))
            if len(keys) > most:
                return [f"{name}: more than {most} elements"]
            return sorted(f"{name}: {_key_text(key)}" for key in keys)
    return [f"{name}: altered again and again while it was read"]


def _keys(nftables: Nftables, family: str, table: str, name: str) -> Iterator[bytes]:
    attributes = netlink.attribute(_NFTA_SET_ELEM_LIST_TABLE, table.encode() + b"\0")
    attributes += netlink.attribute(_NFTA_SET_ELEM_LIST_SET, name.encode() + b"\0")
    with contextlib.suppress(FileNotFoundError):
        for answer in nftables.dump(_NFT_MSG_GETSETELEM, nfnetlink.FAMILIES[family], attributes):
            for element in netlink.attributes(_nested(answer, _NFTA_SET_ELEM_LIST_ELEMENTS)):
                key = _nested(element[1], _NFTA_SET_ELEM_KEY)
                yield bytes(_nested(key, _NFTA_DATA_VALUE))


def _nested(payload: memoryview, kind: int) -> memoryview:
    return dict(netlink.attributes(payload)).get(kind, memoryview(b""))


def _key_text(key: bytes) -> str:
    if len(key) in _ADDRESS_BYTES:
        return str(ipaddress.ip_address(key))
    if len(key) in _ENDPOINT_BYTES and not any(key[-7:-4] + key[-2:]):
        protocol, port = key[-8], int.from_bytes(key[-4:-2], "big")
        return f"{ipaddress.ip_address(key[:-8])} . {_PROTOCOLS.get(protocol, protocol)} . {port}"
    return key.hex() or "*"  # the key of the catch-all element is empty


def _comment(userdata: bytes) -> str:
    offset = 0
    while offset + 2 <= len(userdata):
        kind, length = userdata[offset], userdata[offset + 1]
        value = userdata[offset + 2 : offset + 2 + length]
        if kind == _UDATA_TABLE_COMMENT:
            return value.split(b"\0", 1)[0].decode("utf-8", "replace")
        offset += 2 + length
    return ""


def _query(namespace: Namespace, query: Callable[[Nftables], T]) -> T:
    def inside() -> T:
        with Nftables() as nftables:
            return query(nftables)

    return _call(namespace, inside)


def _call(namespace: Namespace, work: Callable[[], T]) -> T:
    try:
        return namespace.call(work)
    except PermissionError as error:
        raise nft.permission_error() from error
    except OSError as error:
        if error.errno in _MISSING:
            raise UnsupportedError("this kernel has no nf_tables: load that module") from error
        raise FenceError(
            f"the kernel doesn't report the installed fence: {error.strerror or error}"
        ) from error
