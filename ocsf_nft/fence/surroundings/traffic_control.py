"""Queueing disciplines and filters of traffic control (tc), read and deleted by rtnetlink.

Layouts and numbers: ``include/uapi/linux/rtnetlink.h`` and ``pkt_sched.h``. The functions work in
the calling thread's network namespace, and raise OSError.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final

from ocsf_nft import netlink
from ocsf_nft.fence.surroundings import names
from ocsf_nft.fence.surroundings.facts import FilterFact, QdiscFact

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocsf_nft.fence.surroundings.limits import Limit

_RTM_DELQDISC: Final = 37
_RTM_GETQDISC: Final = 38
_RTM_DELTFILTER: Final = 45
_RTM_GETTFILTER: Final = 46
_TCA_KIND: Final = 1
_TCMSG: Final = struct.Struct("=BxxxiIII")  # family, ifindex, handle, parent, info

#: Kinds that the kernel attaches by itself, or that change no packet: not facts without a filter.
_HARMLESS: Final = frozenset(
    {"noqueue", "noop", "mq", "pfifo_fast", "pfifo", "bfifo", "fq", "fq_codel", "codel", "sfq",
     "pie", "fq_pie", "tbf"}
)  # fmt: skip
#: Kinds that can't have filters.
_WITHOUT_FILTERS: Final = frozenset({"noqueue", "noop", "mq", "pfifo_fast", "pfifo", "bfifo", "fq"})
#: Parents of the filters of ``clsact`` and ``ingress``: for incoming and outgoing packets.
_TC_H_INGRESS: Final = 0xFFFFFFF1
_INGRESS_PARENTS: Final = (0xFFFFFFF2, 0xFFFFFFF3)


def qdiscs(links: Mapping[int, str], limit: Limit) -> Iterator[QdiscFact]:
    """Yield all queueing disciplines of the interfaces ``links`` (names by index)."""
    request = _TCMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    replies = netlink.replies(netlink.NETLINK_ROUTE, _RTM_GETQDISC, request, dump=True)
    for reply in limit.take(replies):
        _family, ifindex, handle, parent, _info = _TCMSG.unpack_from(reply)
        if ifindex in links:
            yield QdiscFact(ifindex, links[ifindex], _kind(reply), handle, parent)


def is_harmless(qdisc: QdiscFact) -> bool:
    """Return True if a queueing discipline without filters changes no packets."""
    return qdisc.kind in _HARMLESS


def filters(qdisc: QdiscFact, limit: Limit) -> Iterator[FilterFact]:
    """Yield the filters that are attached to a queueing discipline."""
    if qdisc.kind in _WITHOUT_FILTERS:
        return
    parents = _INGRESS_PARENTS if qdisc.parent == _TC_H_INGRESS else (qdisc.handle,)
    for parent in parents:
        request = _TCMSG.pack(socket.AF_UNSPEC, qdisc.ifindex, 0, parent, 0)
        replies = netlink.replies(netlink.NETLINK_ROUTE, _RTM_GETTFILTER, request, dump=True)
        for reply in limit.take(replies):
            _family, ifindex, handle, found, info = _TCMSG.unpack_from(reply)
            # A message without a handle is about the whole priority.
            if ifindex == qdisc.ifindex and handle:
                yield FilterFact(ifindex, qdisc.link, _kind(reply), found, info, handle)


def delete_qdisc(qdisc: QdiscFact) -> None:
    """Delete a queueing discipline, with its filters."""
    request = _TCMSG.pack(socket.AF_UNSPEC, qdisc.ifindex, qdisc.handle, qdisc.parent, 0)
    netlink.request(netlink.NETLINK_ROUTE, _RTM_DELQDISC, request)


def delete_filter(fact: FilterFact) -> None:
    """Delete a filter."""
    request = _TCMSG.pack(socket.AF_UNSPEC, fact.ifindex, fact.handle, fact.parent, fact.info)
    request += netlink.attribute(_TCA_KIND, fact.kind.encode() + b"\0")
    netlink.request(netlink.NETLINK_ROUTE, _RTM_DELTFILTER, request)


def _kind(reply: bytes) -> str:
    attributes = dict(netlink.attributes(memoryview(reply)[_TCMSG.size :]))
    return names.text(attributes.get(_TCA_KIND, b""))
