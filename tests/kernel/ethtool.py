"""Offloads of a network interface, as `ethtool -K` sets them."""

from __future__ import annotations

import fcntl
import socket
import struct
from array import array

# include/uapi/linux/sockios.h and ethtool.h
_SIOCETHTOOL = 0x8946
# ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGRO
TX_CHECKSUM, TSO, GRO = 0x17, 0x1F, 0x2C


def switch(device: str, command: int, *, on: bool) -> None:
    """Switch an offload of a device in the calling thread's namespace."""
    value = array("I", [command, int(on)])
    address, _ = value.buffer_info()
    with socket.socket() as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("@16sP16x", device.encode(), address))
