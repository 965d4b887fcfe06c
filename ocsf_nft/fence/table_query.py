"""Queries and checks of an existing nftables table: its sandbox, its owner, and its sets' elements.

They use netlink. The program nft is too slow for queries that run every few seconds.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import itertools
import re
import struct
import sys
from typing import TYPE_CHECKING, Final, TypeVar

from ocsf_nft import netlink, nfnetlink
from ocsf_nft.errors import FenceError, UnsupportedError, UsageError
from ocsf_nft.fence import nft
from ocsf_nft.netns import HOST
from ocsf_nft.nfnetlink import Generation, InterruptedDumpError, Nftables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ocsf_nft.fence.spec import FenceSpec, Surroundings, TableId
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.netns import Namespace
    from ocsf_nft.nfnetlink import Table

T = TypeVar("T")

#: Comment of a table of ours.
_OWNER: Final = re.compile(r"(?:fence|guard) of sandbox (.*)", re.DOTALL)

# include/uapi/linux/netfilter/nf_tables.h
_NFT_MSG_GETTABLE: Final = 1
_NFT_MSG_GETCHAIN: Final = 4
_NFT_MSG_GETRULE: Final = 7
_NFT_MSG_GETSETELEM: Final = 13
_NFTA_CHAIN_TABLE: Final = 1
_NFTA_CHAIN_NAME: Final = 3
_NFTA_RULE_TABLE: Final = 1
_NFTA_RULE_CHAIN: Final = 2
_NFTA_SET_ELEM_LIST_TABLE: Final = 1
_NFTA_SET_ELEM_LIST_SET: Final = 2
_NFTA_SET_ELEM_LIST_ELEMENTS: Final = 3
_NFTA_SET_ELEM_KEY: Final = 1
_NFTA_DATA_VALUE: Final = 1
_HEADER_BYTES: Final = 4  # of nfgenmsg
#: libnftnl's udata.h: type, length, value. This is the type of a table's comment.
_UDATA_TABLE_COMMENT: Final = 0
#: Errors of a kernel without nf_tables: no such subsystem, no such socket.
_MISSING: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT})
#: Lengths of the keys of allowed4 and allowed6; a field takes a multiple of four bytes.
_ENDPOINT_BYTES: Final = frozenset({12, 24})
_ADDRESS_BYTES: Final = frozenset({4, 16})
#: Sets of interfaces, by their index.
_INTERFACE_SETS: Final = frozenset({"uplinks", "outer"})
_PROTOCOLS: Final = {6: "tcp", 17: "udp"}
#: Attempts to read a list, if another process loads a ruleset meanwhile.
_TRIES: Final = 3


class UnlistedError(FenceError):
    """Error: the kernel's list of chains ends before those of a table.

    ``is_of_table`` is True if the chain that ends it is one of that table.
    """

    def __init__(self, namespace: Namespace, table_id: TableId, *, is_of_table: bool) -> None:
        chain, remedy = "a chain of another table", "delete that table"
        if is_of_table:
            chain, remedy = "one of its chains", "install the fence again"
        super().__init__(
            f"the table {' '.join(table_id)} in {namespace} can't be listed, because {chain} is "
            f"attached to too many interfaces: {remedy}"
        )
        self.is_of_table = is_of_table


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


def count(namespace: Namespace, family: str) -> int:
    """Return the number of tables of a family, such as ``netdev``.

    Raises the errors of :func:`comment`.
    """
    kind = nfnetlink.FAMILIES[family]
    return _query(namespace, lambda each: sum(1 for _ in each.dump(_NFT_MSG_GETTABLE, kind, b"")))


def generation(namespace: Namespace) -> Generation:
    """Return the generation of a namespace's ruleset; raises the errors of :func:`comment`."""
    return _query(namespace, lambda each: Generation(each.cookie, each.generation()))


def check_listed(namespace: Namespace, table_ids: Iterable[TableId]) -> None:
    """Raise UnlistedError if the kernel does not list all chains of one of the tables.

    The kernel ends the list before a chain with more than 32 KiB of devices. nft 1.1 then never
    ends: it searches the missing chain of a rule. Also raises the errors of :func:`comment`.
    """

    def inside() -> None:
        for table_id in table_ids:
            family, name = nfnetlink.FAMILIES[table_id.family], table_id.name.encode() + b"\0"
            question = struct.pack("!BBH", family, 0, 0) + netlink.attribute(_NFTA_RULE_TABLE, name)
            for _ in range(_TRIES):
                rules = _dump(_NFT_MSG_GETRULE, question)
                used = {bytes(each[_NFTA_RULE_CHAIN]) for _, each in rules}
                listed = {  # of all tables, as nft asks
                    bytes(each[_NFTA_CHAIN_NAME])
                    for found, each in _dump(_NFT_MSG_GETCHAIN, bytes(_HEADER_BYTES))
                    if (found, bytes(each[_NFTA_CHAIN_TABLE])) == (family, name)
                }
                if used <= listed:
                    break
            else:
                raise UnlistedError(namespace, table_id, is_of_table=bool(listed))

    call(namespace, inside)


def _dump(kind: int, question: bytes) -> Iterator[tuple[int, dict[int, memoryview]]]:
    """Yield the family and the attributes of each object of a list."""
    request = nfnetlink.SUBSYSTEM | kind
    for reply in netlink.replies(netlink.NETLINK_NETFILTER, request, question, dump=True):
        yield reply[0], dict(netlink.attributes(memoryview(reply)[_HEADER_BYTES:]))


def elements(
    namespace: Namespace, family: str, table: str, sets: Iterable[str], most: int
) -> tuple[str, ...]:
    """Return a line for each element of the sets, for example ``allowed4: 192.0.2.1 . tcp . 443``.

    A missing set has no lines. If a set has more than ``most`` elements, a single line states this
    instead. A single line also states that a set could not be read because other processes changed
    it repeatedly. Raises AbsentError, UnsupportedError or FenceError.
    """
    return call(
        namespace,
        lambda: tuple(line for name in sets for line in _lines(family, table, name, most)),
    )


def owning_sandbox(namespace: Namespace, table_id: TableId) -> str | None:
    """Return the name of the sandbox to which a table belongs, according to the table's comment.

    Return None if the table is missing, or if the comment does not contain such a name. The comment
    is untrusted, because any process with CAP_NET_ADMIN can write it. Raises the errors of
    :func:`comment`.
    """
    found = _OWNER.fullmatch(comment(namespace, *table_id) or "")
    return None if found is None else found[1]


def refuse_other_sandbox(sandbox: str, namespace: Namespace, table_id: TableId) -> None:
    """Raise FenceError if the sandbox in a table's comment is not ``sandbox``.

    A missing table, or a comment that contains no sandbox's name, is not an error.
    """
    found = owning_sandbox(namespace, table_id)
    if found is not None and found != sandbox:
        raise _other_sandbox_error(found, namespace, table_id)


def refuse_exclusive(
    namespace: Namespace, table_ids: Iterable[TableId], state: StateDirectory
) -> None:
    """Raise FenceError if a process owns one of the tables exclusively.

    Only the owner can change such a table. If the owner is a process ``ocsf-nft run`` with the
    state directory ``state``, the error message contains the sandbox's name.
    """
    for table_id in table_ids:
        found = table(namespace, *table_id)
        if found is None or not found.is_exclusive:
            continue
        sandbox = owning_sandbox(namespace, table_id)
        is_run = False
        with contextlib.suppress(UsageError):  # not a valid sandbox name
            is_run = sandbox is not None and state.is_watched(sandbox)
        remedy = (
            f"stop the run of sandbox {sandbox} first (its fence stays)"
            if is_run
            else "that process is not a run that uses this state directory: end it first"
        )
        raise FenceError(
            f"the table {table_id.name} in {namespace} is exclusively owned by a process: {remedy}"
        )


def replaced_sandbox(
    spec: FenceSpec, around: Surroundings, namespace: Namespace, state: StateDirectory
) -> str | None:
    """Return the sandbox of a deleted VM if a new fence replaces this VM's tables; otherwise None.

    ``spec`` and ``around`` describe the new fence. Raises FenceError if the tables belong to
    another sandbox that may still be in use.
    """
    table_id, link_table = spec.tables
    if spec.tap is not None:
        _refuse_guard(spec.sandbox, namespace, link_table, state)
    found = owning_sandbox(namespace, table_id)
    if found is None or found == spec.sandbox:
        return None
    if spec.tap is None:
        raise _other_sandbox_error(found, namespace, table_id)
    installed = _record(found, state)
    if (
        installed is None
        or installed.identity != namespace.identity()
        or table_id not in installed.spec.tables
    ):
        return None
    # The tables of a VM's fence are named for its TAP device. A new VM may get the device name of a
    # deleted VM, but then the device has another index.
    if installed.around.ifindex == around.ifindex:
        raise _other_sandbox_error(found, namespace, table_id)
    return found


def _refuse_guard(
    sandbox: str, namespace: Namespace, table_id: TableId, state: StateDirectory
) -> None:
    """Raise FenceError if the table is the guard of a sandbox other than ``sandbox``."""
    found = owning_sandbox(namespace, table_id)
    if found is None or found == sandbox or namespace.identity() != HOST.identity():
        return
    installed = _record(found, state)
    # The untrusted comment is not enough: the record of that sandbox must name the table too.
    if installed is not None and table_id in installed.spec.guard_tables:
        raise _other_sandbox_error(found, namespace, table_id)


def call(namespace: Namespace, work: Callable[[], T]) -> T:
    """Return the result of ``work`` in a network namespace; ``work`` asks nf_tables.

    Raises AbsentError if the namespace does not exist. Turns an OSError of ``work`` into an
    UnsupportedError if a privilege or nf_tables is missing, else into a FenceError.
    """
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


def _record(sandbox: str, state: StateDirectory) -> InstalledFence | None:
    try:
        return state.read(sandbox)
    except UsageError:  # not a valid sandbox name, so it has no record
        return None


def _other_sandbox_error(found: str, namespace: Namespace, table_id: TableId) -> FenceError:
    return FenceError(
        f"the table {table_id.name} in {namespace} is that of sandbox {found}: "
        "remove its fence first"
    )


def _lines(family: str, table: str, name: str, most: int) -> list[str]:
    for _ in range(_TRIES):
        # One socket for each list, because a list that was not read to its end makes it unusable.
        with Nftables() as nftables, contextlib.suppress(InterruptedDumpError):
            # Another process may have added a million elements.
            keys = list(itertools.islice(_keys(nftables, family, table, name), most + 1))
            if len(keys) > most:
                return [f"{name}: more than {most} elements"]
            if name in _INTERFACE_SETS:
                return sorted(f"{name}: {int.from_bytes(key, sys.byteorder)}" for key in keys)
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

    return call(namespace, inside)
