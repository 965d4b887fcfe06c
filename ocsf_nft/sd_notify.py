"""Notifications to a service manager: sd_notify(3), for systemd and compatible managers."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

_log = structlog.get_logger()

_SOCKET: Final = "NOTIFY_SOCKET"
_WATCHDOG: Final = "WATCHDOG_USEC"
_WATCHDOG_PID: Final = "WATCHDOG_PID"


def notify(**state: str) -> None:
    """Send the state of the service to the service manager, for instance READY="1".

    The keywords are the variables of sd_notify(3). Does nothing if no service manager expects
    notifications. Never waits. An error is logged, not raised.
    """
    path = os.environ.get(_SOCKET)
    if not path:
        return
    lines = ((name, value.replace("\n", " ")) for name, value in state.items())
    message = "".join(f"{name}={value}\n" for name, value in lines)
    # An abstract name begins with @ in the environment, with NUL in the kernel.
    address = f"\0{path[1:]}" if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            sock.sendto(message.encode(), address)
    except OSError as error:
        _log.warning("the service manager can't be notified", reason=error.strerror)


def notify_reloading() -> None:
    """Notify the service manager that a reload starts; ``notify(READY="1")`` ends it.

    See systemd.service(5), Type=notify-reload.
    """
    notify(RELOADING="1", MONOTONIC_USEC=str(time.monotonic_ns() // 1000))


async def keep_alive(is_well: Callable[[], bool]) -> None:
    """Notify the service manager's watchdog regularly while ``is_well`` returns True.

    Without notifications, the service manager considers the service as failed. Runs until the task
    is cancelled. Returns at once if the manager has no watchdog for this process.
    """
    seconds = _watchdog_seconds()
    if seconds is None:
        return
    while True:
        if is_well():
            notify(WATCHDOG="1")
        await asyncio.sleep(seconds / 2)


def _watchdog_seconds() -> float | None:
    if os.environ.get(_WATCHDOG_PID, str(os.getpid())) != str(os.getpid()):
        return None
    found = os.environ.get(_WATCHDOG, "")
    return int(found) / 1e6 if found.isdecimal() and int(found) else None
