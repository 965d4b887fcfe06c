"""Send one frame through an AF_XDP socket, which passes no netfilter hook on its way out.

Copy mode, a UMEM of four frames, one descriptor. Layouts: ``include/uapi/linux/if_xdp.h``.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import socket
import struct
import time

_AF_XDP = 44
_SOL_XDP = 283
_XDP_MMAP_OFFSETS, _XDP_TX_RING, _XDP_UMEM_REG = 1, 3, 4
_XDP_UMEM_FILL_RING, _XDP_UMEM_COMPLETION_RING = 5, 6
_XDP_COPY = 1 << 1
_XDP_UMEM_TX_METADATA_LEN = 1 << 2
_XDP_TX_METADATA = 1 << 1
_XDP_TXMD_FLAGS_CHECKSUM = 1 << 1
_PGOFF_TX_RING = 0x80000000
_FRAMES, _FRAME_BYTES = 4, 2048
#: struct xsk_tx_metadata: flags, start of the checksum, and its offset from there.
_METADATA = struct.Struct("=QHH12x")
_RING = struct.Struct("=4Q")  # producer, consumer, desc, flags: offsets of struct xdp_ring_offset
#: Guards against waiting forever: a kernel worker may be held up for seconds.
_SECONDS = 60


class _Address(ctypes.Structure):
    _fields_ = (
        ("family", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("ifindex", ctypes.c_uint32),
        ("queue", ctypes.c_uint32),
        ("shared_fd", ctypes.c_uint32),
    )


def send(device: str, frame: bytes, checksum: tuple[int, int] | None = None) -> None:
    """Send a frame from the calling thread's namespace; raises OSError if AF_XDP is refused.

    ``checksum`` requests that a device on the frame's way computes a checksum: the offset in the
    frame where the sum begins, and the offset from there where the device writes it.
    """
    memory = mmap.mmap(-1, _FRAMES * _FRAME_BYTES)
    flags = options = begin = 0
    if checksum is not None:
        flags, options, begin = _XDP_UMEM_TX_METADATA_LEN, _XDP_TX_METADATA, _METADATA.size
        _METADATA.pack_into(memory, 0, _XDP_TXMD_FLAGS_CHECKSUM, *checksum)
    memory[begin : begin + len(frame)] = frame
    with socket.socket(_AF_XDP, socket.SOCK_RAW, 0) as sock:
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        region = struct.pack("=QQIIII", start, len(memory), _FRAME_BYTES, 0, flags, begin)
        sock.setsockopt(_SOL_XDP, _XDP_UMEM_REG, region)
        for ring in (_XDP_UMEM_FILL_RING, _XDP_UMEM_COMPLETION_RING, _XDP_TX_RING):
            sock.setsockopt(_SOL_XDP, ring, _FRAMES)
        offsets = sock.getsockopt(_SOL_XDP, _XDP_MMAP_OFFSETS, 4 * _RING.size)
        producer, _consumer, descriptors, _flags = _RING.unpack_from(offsets, _RING.size)
        ring_bytes = descriptors + _FRAMES * 16
        transmit = mmap.mmap(sock.fileno(), ring_bytes, offset=_PGOFF_TX_RING)
        _bind(sock, _Address(_AF_XDP, _XDP_COPY, socket.if_nametoindex(device), 0, 0))
        struct.pack_into("=QII", transmit, descriptors, begin, len(frame), options)
        struct.pack_into("=I", transmit, producer, 1)
        end = time.monotonic() + _SECONDS
        while True:  # the device may not be ready at the first call
            try:
                sock.send(b"", socket.MSG_DONTWAIT)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)
        transmit.close()


def _bind(sock: socket.socket, address: _Address) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    end = time.monotonic() + _SECONDS
    while libc.bind(sock.fileno(), ctypes.byref(address), ctypes.sizeof(address)) != 0:
        code = ctypes.get_errno()
        # A kernel worker releases the queue some time after the old socket was closed.
        if code != errno.EBUSY or time.monotonic() > end:
            raise OSError(code, f"bind: errno {code}")
        time.sleep(0.002)
