"""What nf_tables says of a table without nft: whose it is, and what is in its sets.

A look at a fence asks this every few seconds, so it starts no process; and whoever has
CAP_NET_ADMIN over the namespace may have put a million elements where ours has one, so no more is
taken than is asked for. Numbers: ``include/uapi/linux/netfilter/nf_tables.h``.
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

_NFT_MSG_GETSETELEM: Final = 13
_NFTA_SET_ELEM_LIST_TABLE: Final = 1
_NFTA_SET_ELEM_LIST_SET: Final = 2
_NFTA_SET_ELEM_LIST_ELEMENTS: Final = 3
_NFTA_SET_ELEM_KEY: Final = 1
_NFTA_DATA_VALUE: Final = 1
#: libnftnl's udata.h: type, length, value; the type of a table's comment.
_UDATA_TABLE_COMMENT: Final = 0
#: What a kernel without nf_tables answers: no such subsystem, no such socket.
_MISSING: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT})
#: How the keys of allowed4 and allowed6 are made up; a field takes a multiple of four bytes.
_ENDPOINT_BYTES: Final = frozenset({12, 24})
_ADDRESS_BYTES: Final = frozenset({4, 16})
_PROTOCOLS: Final = {6: "tcp", 17: "udp"}
#: A list is told again when somebody loads a ruleset meanwhile.
_TRIES: Final = 3


def comment(namespace: Namespace, family: str, name: str) -> str | None:
    """The comment on a table, empty where it has none; None when there is no such table.

    Raises UnsupportedError when it is not permitted to look, FenceError when the kernel fails, and
    what :meth:`Namespace.call` does.
    """
    found = table(namespace, family, name)
    return None if found is None else _comment(found.userdata)


def table(namespace: Namespace, family: str, name: str) -> Table | None:
    """A table; None when there is no such table. Raises what :func:`comment` does."""

    def ask() -> Table | None:
        with Nftables() as nftables:
            return nftables.table(family, name)

    return _answered(namespace, ask)


def elements(
    namespace: Namespace, family: str, table: str, sets: Iterable[str], most: int
) -> tuple[str, ...]:
    """A line for each element of the sets, in order; none for a set that is not there.

    Where a set has more elements than ``most``, one line says so. Raises what :func:`comment`
    does.
    """
    return _answered(
        namespace,
        lambda: tuple(line for name in sets for line in _lines(family, table, name, most)),
    )


def _lines(family: str, table: str, name: str, most: int) -> list[str]:
    for _ in range(_TRIES):
        # One for each list: it is closed where that is not read to its end.
        with Nftables() as nftables, contextlib.suppress(InterruptedDumpError):
            keys = list(itertools.islice(_keys(nftables, family, table, name), most + 1))
            if len(keys) > most:
                return [f"{name}: more than {most} elements"]
            return sorted(f"{name}: {_words(key)}" for key in keys)
    return [f"{name}: altered again and again while it was read"]


def _keys(nftables: Nftables, family: str, table: str, name: str) -> Iterator[bytes]:
    """The keys of a set; an empty one for the element that stands for all that have none."""
    question = netlink.attribute(_NFTA_SET_ELEM_LIST_TABLE, table.encode() + b"\0")
    question += netlink.attribute(_NFTA_SET_ELEM_LIST_SET, name.encode() + b"\0")
    with contextlib.suppress(FileNotFoundError):
        for answer in nftables.dump(_NFT_MSG_GETSETELEM, nfnetlink.FAMILIES[family], question):
            for element in netlink.attributes(_inside(answer, _NFTA_SET_ELEM_LIST_ELEMENTS)):
                key = _inside(element[1], _NFTA_SET_ELEM_KEY)
                yield bytes(_inside(key, _NFTA_DATA_VALUE))


def _inside(payload: memoryview, wanted: int) -> memoryview:
    return dict(netlink.attributes(payload)).get(wanted, memoryview(b""))


def _words(key: bytes) -> str:
    """A key as a person reads it: an address, or an address, a protocol and a port."""
    if len(key) in _ADDRESS_BYTES:
        return str(ipaddress.ip_address(key))
    if len(key) in _ENDPOINT_BYTES and not any(key[-7:-4] + key[-2:]):
        protocol, port = key[-8], int.from_bytes(key[-4:-2], "big")
        return f"{ipaddress.ip_address(key[:-8])} . {_PROTOCOLS.get(protocol, protocol)} . {port}"
    return key.hex() or "*"


def _comment(userdata: bytes) -> str:
    offset = 0
    while offset + 2 <= len(userdata):
        kind, length = userdata[offset], userdata[offset + 1]
        value = userdata[offset + 2 : offset + 2 + length]
        if kind == _UDATA_TABLE_COMMENT:
            return value.split(b"\0", 1)[0].decode("utf-8", "replace")
        offset += 2 + length
    return ""


def _answered(namespace: Namespace, ask: Callable[[], T]) -> T:
    try:
        return namespace.call(ask)
    except PermissionError as error:
        raise nft.not_permitted() from error
    except OSError as error:
        if error.errno in _MISSING:
            raise UnsupportedError("this kernel has no nf_tables: load that module") from error
        raise FenceError(
            f"the kernel doesn't tell what fence stands: {error.strerror or error}"
        ) from error
