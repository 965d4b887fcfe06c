"""Program for a sandbox: send UDP to one address, and print the number of datagrams.

It sends for a number of seconds, or until SIGTERM.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import time

address, seconds = sys.argv[1], float(sys.argv[2])
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sent = 0
end = time.monotonic() + seconds
stopped: list[int] = []
signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))
while not stopped and time.monotonic() < end:
    for _ in range(500):
        with contextlib.suppress(OSError):
            sock.sendto(b"flood", (address, 9))
        sent += 1
print(sent)  # noqa: T201 - its only output
