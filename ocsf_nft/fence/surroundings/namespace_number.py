"""Number of the host's network namespace, as another namespace numbers it."""

from __future__ import annotations

import os
import struct
from typing import Final

from ocsf_nft import netlink

_RTM_GETNSID: Final = 90
_NETNSA_NSID: Final = 1
_NETNSA_FD: Final = 3
_FAMILY: Final = b"\0\0\0\0"
_UNKNOWN: Final = -1


def of_host() -> int | None:
    """Return the number of this process's namespace in the calling thread's namespace.

    Return None if it has none. Raises OSError.
    """
    descriptor = os.open(f"/proc/{os.getpid()}/ns/net", os.O_RDONLY)
    try:
        request = _FAMILY + netlink.attribute(_NETNSA_FD, struct.pack("=I", descriptor))
        (reply,) = netlink.request(netlink.NETLINK_ROUTE, _RTM_GETNSID, request)
    finally:
        os.close(descriptor)
    found = dict(netlink.attributes(memoryview(reply)[len(_FAMILY) :]))
    (number,) = struct.unpack("=i", found[_NETNSA_NSID])
    return None if number == _UNKNOWN else int(number)
