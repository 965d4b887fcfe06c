"""Run inside a sandbox: send UDP to one address, print how many were sent.

For some seconds, or until SIGTERM.
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
