"""Sysctls of a network namespace that matter for a fence, and tables of legacy iptables.

The files below ``/proc/sys/net`` are those of the calling thread's network namespace.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from ocsf_nft.fence.surroundings.facts import SysctlFact

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_NET: Final = "/proc/sys/net/"
_PROC_NET: Final = "/proc/thread-self/net/"
#: Packets with forged addresses, answers to ARP for others, and routes from the link.
_NAMES: Final = {
    "ipv4": ("accept_local", "accept_source_route", "arp_ignore", "proxy_arp", "proxy_arp_pvlan",
             "route_localnet"),
    "ipv6": ("accept_ra", "accept_source_route", "proxy_ndp"),
}  # fmt: skip
_LEGACY: Final = {"ip_tables_names": "ip", "ip6_tables_names": "ip6", "arp_tables_names": "arp"}
#: Tables that rewrite packets, or exclude them from connection tracking.
_REWRITING_TABLES: Final = frozenset({"nat", "mangle", "raw"})
_MOST_BYTES: Final = 4096


def read(uplinks: Collection[str]) -> Iterator[SysctlFact]:
    """Yield the sysctls of all interfaces together, and those of the interfaces ``uplinks``."""
    for family, names in _NAMES.items():
        for scope in ("all", *uplinks):
            folder = f"{family}/conf/{scope}"
            # It is missing without IPv6, or if the interface has just been deleted.
            with contextlib.suppress(OSError):
                yield from _read_folder(folder, names)


def _read_folder(folder: str, names: Collection[str]) -> list[SysctlFact]:
    descriptor = os.open(_NET + folder, os.O_RDONLY | os.O_DIRECTORY)
    found = []
    try:
        for name in names:  # relative paths, because the kernel checks each part of a path here
            with contextlib.suppress(OSError, ValueError):  # an older kernel may lack it
                found.append(SysctlFact(f"{folder}/{name}", int(_content(name, descriptor))))
    finally:
        os.close(descriptor)
    return found


def legacy_tables() -> Iterator[str]:
    """Yield the tables of legacy iptables that may rewrite packets, such as ``ip nat``."""
    for file, family in _LEGACY.items():
        with contextlib.suppress(OSError):  # the kernel has no legacy iptables
            for line in _content(_PROC_NET + file).split():
                name = line.decode("utf-8", "backslashreplace")
                if name in _REWRITING_TABLES:
                    yield f"{family} {name}"


def restore(fact: SysctlFact) -> None:
    """Set a sysctl to an earlier value; raises OSError."""
    descriptor = os.open(_NET + fact.key, os.O_WRONLY)
    try:
        os.write(descriptor, b"%d" % fact.value)
    finally:
        os.close(descriptor)


def _content(path: str, where: int | None = None) -> bytes:
    descriptor = os.open(path, os.O_RDONLY, dir_fd=where)
    try:
        return os.read(descriptor, _MOST_BYTES)
    finally:
        os.close(descriptor)
