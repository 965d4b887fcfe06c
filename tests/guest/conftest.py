from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from ocsf_nft.lab import GATEWAY4, GATEWAY6, PROXY_PORT, SANDBOX4, SANDBOX6
from tests.guest import image, kernel, network, system
from tests.kernel import far_side

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.guest.kernel import Kernel
    from tests.guest.machine import Machine
    from tests.guest.network import Network
    from tests.kernel.far_side import FarSide


@pytest.fixture(scope="session")
def guest_kernel() -> Kernel:
    return kernel.unpacked()


@pytest.fixture(scope="session")
def package_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image.package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def initramfs(
    guest_kernel: Kernel, package_layer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Build a guest without a distribution; its kernel has a fence's modules, but no conntrack."""
    folder = tmp_path_factory.mktemp("image")
    layers = [
        image.busybox(),
        image.python(),
        package_layer,
        image.modules(folder / "modules", guest_kernel, *kernel.DEVICES, *kernel.FENCE),
        image.files(folder / "files", {"etc/ocsf-nft/guest.conf": SETTINGS}),
    ]
    return image.initramfs(folder, layers)


@pytest.fixture(scope="module")
def around() -> Iterator[Network]:
    """Create the guest's host and the internet, with servers that send the client's address."""
    with _surroundings() as made:
        yield made


class CompleteSystem(NamedTuple):
    """A system that systemd has booted, and the frames that leave it."""

    guest: Machine
    far: FarSide


@pytest.fixture(scope="package")
def complete_system(
    guest_kernel: Kernel, package_layer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CompleteSystem]:
    """Boot a complete system once for all files that test it: a boot takes most of a minute."""
    folder = tmp_path_factory.mktemp("system")
    with _surroundings() as outside, far_side.watch(outside.lab) as far:
        assert far.strays() == []
        with system.booted(guest_kernel, package_layer, outside, folder) as guest:
            yield CompleteSystem(guest, far)


@contextlib.contextmanager
def _surroundings() -> Iterator[Network]:
    with (
        network.throwaway() as made,
        network.address_server(made.host_namespace, GATEWAY4, PROXY_PORT),
        network.address_server(made.host_namespace, GATEWAY6, PROXY_PORT),
    ):
        yield made


SETTINGS = f"""# Example settings of an image builder
sandbox=vm-7
proxy={GATEWAY4}:{PROXY_PORT}

proxy=[{GATEWAY6}]:{PROXY_PORT}
attribution=capture
"""
#: The command line of a guest that boots with the test's own init.
OWN_INIT = f"rdinit=/{image.TESTS}/tests/guest/inside/init"
#: The same for a guest with the addresses of the lab's sandbox.
IN_LAB = (
    f"{OWN_INIT} guest_test.net={SANDBOX4}/24,{GATEWAY4} guest_test.net={SANDBOX6}/64,{GATEWAY6}"
)


def refusals(events: list[dict[str, Any]]) -> set[tuple[str, int | None]]:
    """Return the rule with the protocol, and with the ethertype, of each reported attempt."""
    return {
        (event["firewall_rule"]["name"], number)
        for event in events
        if event["class_uid"] == 4001
        for number in (
            event["connection_info"].get("protocol_num"),
            event.get("unmapped", {}).get("ethertype"),
        )
    }


def counted(events: list[Any]) -> Counter[str]:
    """Return the packets that events report, each event once, by rule."""
    once = {event["metadata"]["uid"]: event for event in events if event["class_uid"] == 4001}
    found: Counter[str] = Counter()
    for event in once.values():
        found[event["firewall_rule"]["name"]] += event["count"]
    return found


def counter_mismatches(guest: Machine) -> dict[str, tuple[int, int]]:
    """Return the packets in events and in the fence's counters, for each rule with a difference."""
    reported, refused = counted(guest.ask("events")), guest.ask("refused")
    both = {rule: (reported[rule], refused.get(rule, 0)) for rule in reported.keys() | refused}
    return {rule: numbers for rule, numbers in both.items() if numbers[0] != numbers[1]}


def captured(events: list[dict[str, Any]], address: str) -> dict[str, Any] | None:
    """Return the process that attempted to reach an address, if the kernel captured it."""
    for event in events:
        actor = event.get("actor", {})
        if event.get("dst_endpoint", {}).get("ip") == address and "process" in actor:
            (how,) = (each["data"] for each in event["enrichments"])
            assert (how["method"], how["confidence"]) == ("capture", "High"), event
            process: dict[str, Any] = actor["process"]
            return process
    return None
