from __future__ import annotations

from typing import Any

import pytest

from ocsf_nft.errors import UsageError
from ocsf_nft.fence.spec import FenceSpec, Surroundings, Tap
from ocsf_nft.fence.values import endpoint, subnet

PROXY = endpoint("10.0.0.1:3128")
TAP = Tap(device="vmtap-0", subnets=(subnet("172.16.0.1/30"), subnet("fd00:7::1/64")))


@pytest.mark.parametrize(
    ("arguments", "profile", "tables"),
    [
        ({"proxies": (PROXY,)}, "sandbox", {"inet ocsf_nft", "netdev ocsf_nft"}),
        ({"proxy_uids": (3128,)}, "sidecar", {"inet ocsf_nft", "netdev ocsf_nft"}),
        (
            {"proxies": (PROXY,), "tap": TAP},
            "tap",
            {"inet ocsf_nft_vmtap-0", "netdev ocsf_nft_vmtap-0"},
        ),
    ],
)
def test_spec_has_the_profile_and_tables_of_its_target(
    arguments: dict[str, Any], profile: str, tables: set[str]
) -> None:
    spec = FenceSpec(sandbox="a", **arguments)
    assert spec.profile == profile
    assert set(map(" ".join, spec.tables)) == tables


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"tap": TAP},
        {"proxies": (PROXY,), "tap": TAP, "proxy_uids": (1,)},
        {"proxies": (PROXY,), "tap": TAP, "guard_device": "veth0"},
        {"proxy_uids": (-1,)},
        {"proxy_uids": (0xFFFFFFFF,)},
        {"proxies": (PROXY,), "group": 0},
        {"proxies": (PROXY,), "guard_device": "a b"},
    ],
)
def test_invalid_spec_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        FenceSpec(sandbox="a", **arguments)


def test_surroundings_have_as_many_links_as_the_kernel_can_list() -> None:
    links = tuple(f"link{number}" for number in range(1501))
    assert Surroundings(links=links[:-1]).links == links[:-1]
    with pytest.raises(UsageError, match="has 1501 interfaces, but a fence can be"):
        Surroundings(links=links)


def test_spec_refuses_names_that_a_ruleset_cannot_express() -> None:
    with pytest.raises(UsageError, match="is no sandbox name"):
        FenceSpec(sandbox="../a", proxies=(PROXY,))
    with pytest.raises(UsageError, match="can't be written in a ruleset"):
        Surroundings(links=("eth0", 'a"b'))


@pytest.mark.parametrize(
    "arguments",
    [
        {"device": "vmtap-0", "subnets": ()},
        {"device": "vmtap-0", "subnets": (subnet("10.0.0.1/30"), subnet("10.0.1.1/30"))},
        {"device": "vm tap", "subnets": TAP.subnets},
        {"device": "vmtap-0", "subnets": TAP.subnets, "mac": "ff:ff:ff:ff:ff:ff"},
    ],
)
def test_invalid_link_of_a_vm_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Tap(**arguments)
