"""Ways that make interfaces in the namespace of the host, by its number in the sandbox's one."""

from __future__ import annotations

import contextlib
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.kernel import xdp
from tests.kernel.packets import ETH_IP
from tests.kernel.ways import netlinks, tools
from tests.kernel.ways.variant import DEVICE, HOST_BRIDGE, HOST_UPLINK, Register, Seat

if TYPE_CHECKING:
    from collections.abc import Callable

VARIANTS: Final = Register("interfaces on the host", "cap-add")
#: Time in which the service deletes the interface, and time of the attempts.
_NOTICE_SECONDS: Final = 5.0
_ATTEMPTS, _PAUSE_SECONDS = 20, 0.05


def _sent(seat: Seat, device: str) -> None:
    """Send frames by AF_XDP until the device is gone."""
    frame = tools.own_frame(ETH_IP, tools.udp4(seat), to=tools.BROADCAST)
    with contextlib.suppress(OSError):
        for _ in range(_ATTEMPTS):
            xdp.send(device, frame)
            time.sleep(_PAUSE_SECONDS)


def _macvlan(lower: int, number: int) -> None:
    netlinks.macvlan("m0", lower, number)


def _pair(master: int, number: int) -> None:
    netlinks.veth("v0", "v1")
    netlinks.move("v1", number, master)


def _pair_there(master: int, number: int) -> None:
    netlinks.veth_outside(f"v{os.getpid()}", "v0", os.getpid(), number, master)


def _by(
    seat: Seat, device: str, target: str, make: Callable[[int, int], None], wait: float
) -> None:
    if seat.form == "tap":  # a guest is in no network namespace that has a number of the host's
        return
    number = netlinks.number_of_peer(DEVICE)
    make(netlinks.links(number)[target], number)
    tools.set_up(device)
    time.sleep(wait)
    _sent(seat, device)


for _name, _what, _device, _target, _make in (
    ("macvlan on the host", "makes a macvlan interface on the host's uplink", "m0", HOST_UPLINK,
     _macvlan),
    ("pair to a bridge of the host", "moves one end of an own pair into a bridge of the host",
     "v0", HOST_BRIDGE, _pair),
    ("pair made on the host", "makes a pair with one end in a bridge of the host", "v0",
     HOST_BRIDGE, _pair_there),
):  # fmt: skip
    VARIANTS.append(
        f"{_what}, and sends by AF_XDP at once.",
        partial(_by, device=_device, target=_target, make=_make, wait=0.0), "cap-add", _name,
        races=True,
    )  # fmt: skip
    VARIANTS.append(
        f"{_what}, and sends by AF_XDP after some seconds.",
        partial(_by, device=_device, target=_target, make=_make, wait=_NOTICE_SECONDS), "cap-add",
        f"{_name}, later",
    )  # fmt: skip
