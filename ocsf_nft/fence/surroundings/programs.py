"""BPF programs on interfaces, XDP and tcx; found by rtnetlink and bpf(2).

Layouts and numbers: ``include/uapi/linux/if_link.h`` and ``bpf.h``. The functions work in the
calling thread's network namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
from typing import TYPE_CHECKING, Final

from ocsf_nft import netlink
from ocsf_nft.fence.surroundings import names
from ocsf_nft.fence.surroundings.facts import ProgramFact

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.surroundings.limits import Limit

_RTM_SETLINK: Final = 19
_IFLA_XDP: Final = 43
_NLA_F_NESTED: Final = 0x8000
_IFLA_XDP_FD: Final = 1
_IFLA_XDP_FLAGS: Final = 3
#: Mode of an XDP program as XDP_FLAGS_…_MODE, by the attribute with the program's id.
_XDP_MODES: Final = {5: 1 << 2, 6: 1 << 1, 7: 1 << 3}
_IFINFOMSG: Final = struct.Struct("=BxHiII")

#: Number of the system call bpf(2).
_SYSCALLS: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_BPF_PROG_QUERY: Final = 16
_TCX: Final = {46: "tcx ingress", 47: "tcx egress"}
_MOST_PROGRAMS: Final = 64
#: Interface, attach type, query flags, attach flags, array of ids, its length, and arrays that are
#: not requested.
_QUERY: Final = struct.Struct("=IIIIQIxxxxQQQQ")


def xdp(ifindex: int, link: str, attribute: memoryview | None) -> Iterator[ProgramFact]:
    """Yield the XDP programs in the attribute IFLA_XDP of an interface."""
    if attribute is None:
        return
    for kind, value in netlink.attributes(attribute):
        mode = _XDP_MODES.get(kind)
        if mode is not None:
            yield ProgramFact(ifindex, link, "xdp", mode, names.number(value))


def tcx(ifindex: int, link: str, limit: Limit | None = None) -> Iterator[ProgramFact]:
    """Yield the tcx programs of an interface; nothing if the kernel has no tcx.

    Needs CAP_NET_ADMIN in the initial user namespace: without it, ``limit`` (if any) is exceeded.
    """
    for attach_type, hook in _TCX.items():
        for program in _query(ifindex, attach_type, limit):
            yield ProgramFact(ifindex, link, hook, 0, program)


def detach_xdp(fact: ProgramFact) -> None:
    """Detach an XDP program; raises OSError, with EBUSY if a BPF link holds it."""
    value = netlink.attribute(_IFLA_XDP_FD, struct.pack("=i", -1))
    value += netlink.attribute(_IFLA_XDP_FLAGS, struct.pack("=I", fact.mode))
    request = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, fact.ifindex, 0, 0)
    request += netlink.attribute(_IFLA_XDP | _NLA_F_NESTED, value)
    netlink.request(netlink.NETLINK_ROUTE, _RTM_SETLINK, request)


def _query(ifindex: int, attach_type: int, limit: Limit | None) -> list[int]:
    number = _SYSCALLS.get(platform.machine())
    if number is None:
        return []
    ids = (ctypes.c_uint32 * _MOST_PROGRAMS)()
    question = _QUERY.pack(
        ifindex, attach_type, 0, 0, ctypes.addressof(ids), _MOST_PROGRAMS, 0, 0, 0, 0
    )
    buffer = ctypes.create_string_buffer(question, _QUERY.size)
    if _LIBC.syscall(number, _BPF_PROG_QUERY, buffer, _QUERY.size) < 0:
        code = ctypes.get_errno()
        # ENOSPC: there are more than fit. EPERM: the privilege is missing. Otherwise the kernel has
        # no such hook, or the interface has just been deleted.
        if limit is not None:
            limit.is_exceeded |= code in {errno.ENOSPC, errno.EPERM}
        return list(ids) if code == errno.ENOSPC else []
    count = _QUERY.unpack(buffer.raw)[5]
    return list(ids)[:count]


_LIBC: Final = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else ctypes.CDLL("")
