"""A machine without a fence inside, fenced_guest the fence of its host."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from ocsf_nft.lab import INTERNET4, INTERNET6, ip
from tests.guest import machine, network
from tests.guest.conftest import OWN_INIT, refusals
from tests.guest.machine import TIMEOUT_SECONDS
from tests.kernel import command, conftest, tap, written
from tests.kernel.packets import PAYLOAD
from tests.kernel.vm_escapes import FORBIDDEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.guest.kernel import Kernel
    from tests.guest.machine import Machine
    from tests.kernel.vm_escapes import Forbidden

pytestmark = [pytest.mark.kernel, pytest.mark.xdist_group("guest")]

_NAME = "vm-7"
_WEB = 443
#: The host's earlier tables: its own firewall and a published port.
_BEFORE = f"""
table ip published {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        ip daddr {tap.GATEWAY4} tcp dport 8080 dnat to {INTERNET4}:80
        ip daddr 10.96.0.1 tcp dport 443 dnat to {INTERNET4}:443
    }}
}}
table inet firewall {{
    chain input {{
        type filter hook input priority filter; policy accept;
        tcp dport 25 counter drop
    }}
}}
"""


@dataclass(frozen=True)
class FencedGuest:
    """A guest, its host, and the output of the host's run."""

    guest: Machine
    site: tap.Site
    options: tuple[str, ...]
    output: Path
    running: command.Running
    #: The host's ruleset and settings before the fence.
    before: tuple[str, dict[str, str]]

    def events(self) -> list[dict[str, Any]]:
        return written.so_far(self.output)

    def refused(self, rule: str) -> int:
        """Return the kernel's total of a rule."""
        listed = orjson.loads(conftest.nft(self.site.host, "-j", "list", "counters"))
        return sum(
            entry["counter"]["packets"]
            for entry in listed["nftables"]
            if "counter" in entry and entry["counter"]["name"] == f"refused_{rule}"
        )


@pytest.fixture(scope="module")
def fenced_guest(
    guest_kernel: Kernel, initramfs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FencedGuest]:
    folder = tmp_path_factory.mktemp("host")
    output = folder / "events.jsonl"
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(tap.site())
        _plug(site)
        for address in (tap.GATEWAY4, tap.GATEWAY6, tap.UPLINK4, tap.UPLINK6):
            stack.enter_context(network.address_server(site.host, address, tap.PORT))
        for address in (INTERNET4, INTERNET6):
            stack.enter_context(network.address_server(site.internet, address, _WEB))
        before = _state(site)
        named = (
            "--sandbox",
            _NAME,
            "--netns",
            site.host_name,
            "--state-dir",
            str(folder / "state"),
        )
        subnets = tuple(word for subnet in tap.SUBNETS for word in ("--subnet", subnet))
        fenced = command.run(
            *("install", *named, "--profile", "tap", "--device", tap.DEVICE, *subnets),
            *("--gateway-port", str(tap.PORT)),
        )
        assert fenced.code == 0, fenced.stderr
        running = stack.enter_context(command.running(*named, "--output", str(output)))
        guest = stack.enter_context(
            machine.running(
                guest_kernel,
                initramfs,
                site.host,
                tap=tap.DEVICE,
                mac=tap.VM_MAC.hex(":"),
                command_line=f"{OWN_INIT} guest_test.net={tap.VM4}/29,{tap.GATEWAY4} "
                f"guest_test.net={tap.VM6}/64,{tap.GATEWAY6}",
            )
        )
        guest.wait_for_agent(TIMEOUT_SECONDS)
        guest.ask("start_capture")
        yield FencedGuest(guest, site, named, output, running, before)


def _plug(site: tap.Site) -> None:
    """Create a TAP device with the gateway's addresses, and routes to the guest in the internet."""
    ip("-n", site.host_name, "tuntap", "add", "dev", tap.DEVICE, "mode", "tap")
    ip("-n", site.host_name, "link", "set", tap.DEVICE, "address", tap.HOST_MAC.hex(":"))
    tap._up(site.host_name, tap.DEVICE, *tap.SUBNETS)
    for subnet, gateway in (("172.16.7.0/29", tap.UPLINK4), ("fd00:7::/64", tap.UPLINK6)):
        version = "-6" if ":" in subnet else "-4"
        ip("-n", site.internet_name, version, "route", "add", subnet, "via", gateway)
    conftest.load(site.host, _BEFORE)


def _state(site: tap.Site) -> tuple[str, dict[str, str]]:
    return conftest.nft(site.host, "-a", "-s", "list", "ruleset"), tap.settings(site.host)


def _until(holds: Callable[[], bool], fault: Callable[[], str]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not holds():
        assert time.monotonic() < deadline, fault()
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("address", "port", "seen_as"),
    [
        (tap.GATEWAY4, tap.PORT, tap.VM4),
        (tap.GATEWAY6, tap.PORT, tap.VM6),
        (INTERNET4, _WEB, tap.UPLINK4),
        (INTERNET6, _WEB, tap.UPLINK6),
    ],
    ids=["gateway", "gateway over IPv6", "internet", "internet over IPv6"],
)
def test_guest_reaches_the_gateway_and_the_internet_through_nat(
    fenced_guest: FencedGuest, address: str, port: int, seen_as: str
) -> None:
    assert fenced_guest.guest.ask("talk", address, port) == seen_as


@pytest.mark.parametrize(
    ("address", "port"),
    [
        (tap.UPLINK4, tap.PORT),
        (tap.UPLINK6, tap.PORT),
        (tap.GATEWAY4, 22),
        ("169.254.169.254", 80),
    ],
)
def test_guest_reaches_no_other_address(fenced_guest: FencedGuest, address: str, port: int) -> None:
    assert fenced_guest.guest.ask("talk", address, port, 0.5) == "TimeoutError"
    _until(
        lambda: _is_reported(fenced_guest, address, port),
        lambda: f"{address}:{port} was not reported",
    )


def _is_reported(fenced_guest: FencedGuest, address: str, port: int) -> bool:
    ends = [event.get("dst_endpoint", {}) for event in fenced_guest.events()]
    return any((end.get("ip"), end.get("port")) == (address, port) for end in ends)


def test_fence_refuses_and_reports_forbidden_packets_of_guest(
    fenced_guest: FencedGuest, judge: Callable[[Any], list[str]]
) -> None:
    """Stop at the first packet that passes. The kernel tests list all of them without a guest."""
    for what in FORBIDDEN:
        _assert_refused(fenced_guest, what)
    expected = {(what.rule, what.protocol) for what in FORBIDDEN}
    _until(
        lambda: expected <= refusals(fenced_guest.events()),
        lambda: f"not reported: {expected - refusals(fenced_guest.events())}",
    )
    events = fenced_guest.events()
    faults = {event["message"]: judge(event) for event in events}
    assert not any(faults.values()), faults
    refused = [event for event in events if event["class_uid"] == 4001]
    assert {event["unmapped"]["sandbox"] for event in refused} == {_NAME}
    _until(
        lambda: (
            command.run("status", *fenced_guest.options[:2], *fenced_guest.options[4:]).code == 0
        ),
        lambda: "the account did not reconcile",
    )


def _assert_refused(fenced_guest: FencedGuest, what: Forbidden) -> None:
    before = fenced_guest.refused(what.rule)
    if what.is_from_outside:
        fenced_guest.site.internet.call(lambda: _from_outside(what.sent))
    else:
        fenced_guest.guest.ask("frame", what.sent.hex())
    _until(lambda: fenced_guest.refused(what.rule) > before, lambda: f"passed: {what.name}")


def _from_outside(packet: bytes) -> None:
    is_ip4 = packet[0] >> 4 == 4
    with socket.socket(
        socket.AF_INET if is_ip4 else socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW
    ) as sock:
        sock.sendto(packet, (tap.VM4 if is_ip4 else tap.VM6, 0))


def test_guest_received_only_requested_packets(fenced_guest: FencedGuest) -> None:
    assert not [
        content for content in fenced_guest.guest.ask("captured_frames") if PAYLOAD.hex() in content
    ]


def test_removal_restores_the_host_byte_for_byte(fenced_guest: FencedGuest) -> None:
    assert fenced_guest.running.stop(signal.SIGTERM)[0] == 0
    assert _state(fenced_guest.site) != fenced_guest.before
    assert command.run("remove", *fenced_guest.options).code == 0
    ruleset, settings = _state(fenced_guest.site)
    assert ruleset == fenced_guest.before[0]
    assert settings == fenced_guest.before[1]
