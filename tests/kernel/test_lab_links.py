"""Links of a lab, as the kernel's own tools list them."""

from __future__ import annotations

import json
import secrets
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import lab as laboratory
from ocsf_nft import lab_links
from ocsf_nft.errors import UnsupportedError
from ocsf_nft.lab import (
    GATEWAY4,
    GATEWAY6,
    GATEWAY_MAC,
    SANDBOX4,
    SANDBOX6,
    configure,
    new_namespace,
    new_namespaces,
)
from ocsf_nft.netns import named

if TYPE_CHECKING:
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel


def _listed(namespace: str, *arguments: str) -> Any:
    done = subprocess.run(
        ["ip", "-j", "-n", namespace, *arguments], capture_output=True, check=True
    )
    return json.loads(done.stdout)


def _addresses(namespace: str, device: str) -> set[tuple[str, int]]:
    (found,) = _listed(namespace, "address", "show", "dev", device)
    return {
        (each["local"], each["prefixlen"])
        for each in found["addr_info"]
        if each["scope"] == "global"
    }


def test_lab_has_a_pair_of_devices_with_addresses(lab: Lab) -> None:
    (sandbox,) = _listed(lab.sandbox, "-d", "link", "show", "dev", lab.sandbox_device)
    (gateway,) = _listed(lab.gateway, "-d", "link", "show", "dev", lab.gateway_device)
    assert [each["linkinfo"]["info_kind"] for each in (sandbox, gateway)] == ["veth", "veth"]
    assert (sandbox["link_index"], sandbox["link_netnsid"] >= 0) == (gateway["ifindex"], True)
    assert gateway["address"] == GATEWAY_MAC
    assert _addresses(lab.sandbox, lab.sandbox_device) == {(SANDBOX4, 24), (SANDBOX6, 64)}
    assert _addresses(lab.gateway, lab.gateway_device) == {(GATEWAY4, 24), (GATEWAY6, 64)}
    for name in (lab.sandbox, lab.gateway):
        assert all("UP" in each["flags"] for each in _listed(name, "link"))


def test_lab_has_a_default_route_in_the_sandbox_only(lab: Lab) -> None:
    routes = [
        (each["gateway"], each["dev"])
        for version in ("-4", "-6")
        for each in _listed(lab.sandbox, version, "route", "show", "default")
    ]
    assert routes == [
        (GATEWAY4, lab.sandbox_device),
        (GATEWAY6, lab.sandbox_device),
    ]
    assert not _listed(lab.gateway, "route", "show", "default")


def test_configure_reports_the_reason_of_the_kernel() -> None:
    name = f"ocsf-nft-{secrets.token_hex(3)}"
    with (
        new_namespace(name),
        pytest.raises(UnsupportedError, match=f"{name} can't be configured: no interface"),
    ):
        configure(name, "missing", "192.0.2.1/24")


def test_same_address_is_not_added_twice() -> None:
    name = f"ocsf-nft-{secrets.token_hex(3)}"
    with new_namespace(name) as made:
        made.call(lambda: lab_links.add_address("lo", "192.0.2.1/32"))
        with pytest.raises(FileExistsError):
            made.call(lambda: lab_links.add_address("lo", "192.0.2.1/32"))


def test_failed_start_removes_its_own_namespaces_only() -> None:
    first, second, third = (f"ocsf-nft-{secrets.token_hex(3)}" for _ in range(3))
    with new_namespace(second):
        identity = named(second).identity()
        with (
            pytest.raises(UnsupportedError, match="File exists"),
            new_namespaces(first, second, third),
        ):
            pytest.fail("one of them exists already")
        assert named(second).has_identity(identity)
        assert not laboratory._exists(first)
        assert not laboratory._exists(third)
