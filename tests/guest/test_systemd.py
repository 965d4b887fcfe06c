"""A whole system: systemd, its journal, and our unit, which reads what the kernel logs there."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.lab import GATEWAY4, GATEWAY6, INTERNET4, INTERNET6, PROXY_PORT, SANDBOX4, SANDBOX6
from tests.guest import cache, distribution, image, kernel, machine, network
from tests.guest.conftest import refusals
from tests.kernel import far_side
from tests.kernel.escapes import ESCAPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.guest.kernel import Kernel
    from tests.guest.machine import Machine
    from tests.guest.network import Network
    from tests.kernel.far_side import FarSide

pytestmark = pytest.mark.slow

_BOOT_SECONDS = 300
_UNIT = cache.PROJECT / "deploy/systemd/ocsf-nft.service"
#: What a person writes who uses the unit.
_PROXIES = f"--proxy {GATEWAY4}:{PROXY_PORT} --proxy [{GATEWAY6}]:{PROXY_PORT}"
_SETTINGS = f"""OCSF_NFT_FENCE="--sandbox vm-9 {_PROXIES} --transport kmsg"
OCSF_NFT_REPORT="--source journal --output /var/log/ocsf-nft/events.jsonl"
"""
_NETWORK = """[Unit]
Description=The network
DefaultDependencies=no
After=network-pre.target
Before=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c '\\
    echo 0 >/proc/sys/net/ipv6/conf/sb0/accept_dad; \\
    busybox ip link set lo up; busybox ip link set sb0 up; \\
    busybox ip address add 10.200.0.2/24 dev sb0; busybox ip address add fd00:200::2/64 dev sb0; \\
    busybox ip route add default via 10.200.0.1; busybox ip route add default via fd00:200::1'
"""
_WORKLOAD = f"""[Unit]
Description=The workload
Requires=ocsf-nft.service network.service
After=ocsf-nft.service network.service
[Service]
Environment=PYTHONPATH=/{image.SITE}:/{image.TESTS}
ExecStart={Path(sys.executable).resolve()} -m tests.guest.inside.agent systemd
StandardOutput=journal+console
StandardError=journal+console
"""


@pytest.fixture(scope="module")
def system(
    guest_kernel: Kernel, package_layer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("system")
    units = "etc/systemd/system"
    files = {
        # Not the first boot, in which systemd would enable whatever there is.
        "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
        # Made now: systemd takes a clock that is years ahead of this file, or of its own making
        # where there is none, for wrong.
        "usr/lib/clock-epoch": "",
        "etc/ocsf-nft/fence.env": _SETTINGS,
        f"{units}/ocsf-nft.service": _UNIT.read_text(encoding="utf-8"),
        # Python is where it is on this machine, and that may be somebody's home.
        f"{units}/ocsf-nft.service.d/python.conf": "[Service]\nProtectHome=read-only\n",
        f"{units}/network.service": _NETWORK,
        f"{units}/workload.service": _WORKLOAD,
    }
    # As `systemctl enable` makes them.
    links = {
        f"{units}/sysinit.target.wants/ocsf-nft.service": "../ocsf-nft.service",
        f"{units}/multi-user.target.wants/workload.service": "../workload.service",
    }
    layers = [
        image.busybox(),
        distribution.layer(),
        image.python(),
        package_layer,
        image.modules(folder / "modules", guest_kernel, *kernel.DEVICES, *kernel.FENCE),
        image.files(folder / "files", files, links),
    ]
    return image.initramfs(folder, layers)


@pytest.fixture(scope="module")
def far(around: Network) -> Iterator[FarSide]:
    with far_side.watch(around.lab) as watching:
        yield watching


@pytest.fixture(scope="module")
def guest(guest_kernel: Kernel, system: Path, around: Network, far: FarSide) -> Iterator[Machine]:
    assert far.strays() == []
    with machine.running(
        guest_kernel,
        system,
        around.host_namespace,
        tap=network.TAP,
        command_line=f"rdinit=/{image.TESTS}/tests/guest/inside/systemd-init "
        "systemd.unit=multi-user.target systemd.mask=serial-getty@ttyS0.service "
        "systemd.journald.forward_to_console=1",
        megabytes=1024,
    ) as running:
        running.greet(_BOOT_SECONDS)
        yield running


def test_the_unit_starts_before_the_network_and_stays(guest: Machine) -> None:
    told = guest.ask("shell", "systemctl", "status", "--no-pager", "--full", "ocsf-nft.service")
    assert told["code"] == 0, told
    times = {
        unit: int(
            guest.ask("shell", "systemctl", "show", unit, "-P", "ActiveEnterTimestampMonotonic")[
                "stdout"
            ]
        )
        for unit in ("ocsf-nft.service", "network-pre.target", "network.service")
    }
    assert 0 < times["ocsf-nft.service"] <= times["network-pre.target"] <= times["network.service"]


@pytest.mark.parametrize(("proxy", "seen_as"), [(GATEWAY4, SANDBOX4), (GATEWAY6, SANDBOX6)])
def test_the_proxy_is_reached(guest: Machine, proxy: str, seen_as: str) -> None:
    assert guest.ask("talk", proxy, PROXY_PORT).removeprefix("::ffff:") == seen_as


@pytest.mark.parametrize("address", [INTERNET4, INTERNET6])
def test_a_connection_is_refused_by_a_reset(guest: Machine, address: str) -> None:
    assert guest.ask("talk", address, 443) == "ConnectionRefusedError"


def test_what_is_refused_is_told_from_the_journal(
    guest: Machine, far: FarSide, judge: Callable[[Any], list[str]]
) -> None:
    # The unit is up before the journal is read, and what is refused until then has counters alone.
    _until(guest, bool)
    for escape in ESCAPES:
        assert guest.ask("escape", escape.name)["refused"][escape.rule] > 0, escape.name
    assert guest.ask("talk", GATEWAY4, PROXY_PORT) == SANDBOX4
    assert far.strays() == []
    # Of an LLC frame the kernel log has what its socket said that it is, not its length field.
    wanted = {(escape.rule, escape.protocol) for escape in ESCAPES if "llc" not in escape.name}
    events = _until(guest, lambda events: wanted <= refusals(events))
    faults = {event["message"]: judge(event) for event in events}
    assert not any(faults.values()), faults
    # A counter tells of no source: these are records, and only the journal had them read.
    assert any(event.get("src_endpoint", {}).get("port") for event in events)
    logged = guest.ask("shell", "journalctl", "-k", "-o", "cat", "--no-pager")["stdout"]
    assert re.search(r"^ocsf-nft:vm-9:egress:IN= OUT=sb0 ", logged, re.MULTILINE)


def _until(guest: Machine, enough: Callable[[list[Any]], bool]) -> list[Any]:
    deadline = time.monotonic() + 300
    while not enough(events := list(guest.ask("events"))):
        assert time.monotonic() < deadline, events
        time.sleep(1)
    return events


def test_the_fence_stays_while_the_run_is_started_again(guest: Machine) -> None:
    assert guest.ask("terminate", "ocsf-nft run") == 1

    def is_started_again(_events: list[Any]) -> bool:
        assert guest.ask("talk", INTERNET4, 443) == "ConnectionRefusedError"
        told = guest.ask("shell", "systemctl", "show", "ocsf-nft.service", "-P", "NRestarts")
        return str(told["stdout"]).strip() == "1"

    _until(guest, is_started_again)
    assert guest.ask("talk", INTERNET4, 443) == "ConnectionRefusedError"
