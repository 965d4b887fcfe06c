"""Tests of what `check` knows about interfaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ocsf_nft.check import devices
from ocsf_nft.check.accepted_flows import Link
from ocsf_nft.check.devices import NetDevice
from ocsf_nft.check.packet import InterfaceName
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.netns import Namespace

if TYPE_CHECKING:
    import pytest


def _device(ifindex: int, name: str, kind: str = "", **more: Any) -> NetDevice:
    given: dict[str, Any] = {
        "master": None, "lower": None, "is_lower_elsewhere": False, "has_xdp": False,
        "has_filters": False,
    }  # fmt: skip
    return NetDevice(ifindex=ifindex, name=name, kind=kind, **given | more)


def test_interfaces_below_others_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    present = [
        _device(1, "eth0", master=3),
        _device(2, "eth1", master=3),
        _device(3, "bond0", "bond"),
        _device(4, "bond0.5", "vlan", lower=3, master=5),
        _device(5, "br0", "bridge"),
        _device(6, "veth0", "veth", lower=7),
        _device(7, "veth1", "veth", lower=6, master=5),
        _device(8, "mac0", "macvlan", lower=1, is_lower_elsewhere=True),
    ]
    monkeypatch.setattr(devices, "list_devices", lambda _: {each.name: each for each in present})
    names = [*(each.name for each in present), "absent"]
    found = devices.described(Namespace(), names)
    assert found.keys() == set(names) - {"absent"}
    assert {
        name: (set(link.below), link.has_bridge) for name, link in found.items() if link.below
    } == {
        "bond0": ({"eth0", "eth1"}, False),
        "bond0.5": ({"bond0", "eth0", "eth1"}, False),
        "br0": ({"bond0.5", "veth1", "bond0", "eth0", "eth1"}, True),
    }
    assert devices.described(Namespace(), ["bond0"]) == {
        "bond0": Link(InterfaceName("bond0"), ("eth0", "eth1"))
    }


def test_unlisted_interfaces_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Namespace) -> None:
        raise OcsfNftError("the interfaces can't be listed")

    monkeypatch.setattr(devices, "list_devices", fail)
    assert devices.described(Namespace(), ["br0"]) == {}
