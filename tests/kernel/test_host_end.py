"""Search for the host's end of a sandbox's link."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.errors import AbsentError
from ocsf_nft.fence import host_end, installer, verification
from ocsf_nft.fence.spec import FenceSpec, HostEnd
from ocsf_nft.fence.values import endpoint
from ocsf_nft.lab import GATEWAY4, GATEWAY_MAC, PROXY_PORT, Lab, configure, ip, new_namespace
from ocsf_nft.netns import named
from tests.kernel.conftest import nft

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.netns import Namespace

pytestmark = pytest.mark.kernel

_SPEC = FenceSpec(sandbox="lab", proxies=(endpoint(f"{GATEWAY4}:{PROXY_PORT}"),), finds_guard=True)
_GUARD = "netdev ocsf_nft_gw0"


def _install(
    lab: Lab, state: StateDirectory, spec: FenceSpec = _SPEC, host: Namespace | None = None
) -> InstalledFence:
    where = host or lab.gateway_namespace
    return where.call(lambda: installer.install(spec, lab.sandbox_namespace, state, "nflog"))


@pytest.fixture
def other() -> Iterator[str]:
    name = f"ocsf-nft-{secrets.token_hex(3)}"
    with new_namespace(name):
        yield name


def test_end_on_the_host_is_found_and_guarded_until_removal(
    lab: Lab, state: StateDirectory
) -> None:
    installed = _install(lab, state)
    host = lab.gateway_namespace
    (end,) = installed.around.host.ends
    assert end == HostEnd(name="gw0", ifindex=end.ifindex)
    assert installed.spec.guard_device == "gw0"
    assert installed.around.host.gateway_macs == installed.around.host.direct_macs == (GATEWAY_MAC,)
    assert host.call(lambda: host_end.has_end(lab.sandbox_namespace))
    assert host.call(lambda: verification.verify("lab", state)).verdict == "as installed"
    assert host.call(lambda: installer.renew("lab", state)) == installed
    host.call(lambda: installer.remove("lab", state))
    assert nft(host, "list", "ruleset") == ""


def test_end_in_another_namespace_is_not_guarded(
    lab: Lab, state: StateDirectory, other: str
) -> None:
    installed = _install(lab, state, host=named(other))
    assert installed.spec.guard_device is None
    assert installed.around.host.absence == (
        "no guard: the other end of sb0 is not in this network namespace"
    )
    verify = named(other).call(lambda: verification.verify("lab", state))
    assert verify.verdict == "as installed"
    assert not named(other).call(lambda: host_end.has_end(lab.sandbox_namespace))


def test_sandbox_in_the_hosts_own_namespace_has_no_guard(lab: Lab, state: StateDirectory) -> None:
    installed = _install(lab, state, host=lab.sandbox_namespace)
    assert installed.around.host.absence == (
        "no guard: the sandbox is in this network namespace itself"
    )


def test_link_with_a_forged_peer_is_not_guarded(
    lab: Lab, state: StateDirectory, other: str
) -> None:
    """The owner of a namespace chooses the indexes of its links, and where their ends are."""
    victim = lab.gateway_namespace.call(lambda: host_end._named("gw0"))[0].ifindex
    child = f"{other}-child"
    with new_namespace(child):
        # The sandbox's link names the index of another sandbox's end on the host.
        ip(
            *("-n", other, "link", "add", "eth0", "type", "veth"),
            *("peer", "name", "end0", "index", str(victim), "netns", child),
        )
        configure(other, "eth0", "10.200.0.2/24")
        installed = lab.gateway_namespace.call(
            lambda: installer.install(_SPEC, named(other), state, "nflog")
        )
    assert installed.around.host.ends == ()
    assert "no guard" in installed.around.host.absence


def test_macvlan_of_a_host_device_is_not_guarded(
    lab: Lab, state: StateDirectory, other: str
) -> None:
    ip("-n", lab.gateway, "link", "add", "mv0", "link", "gw0", "type", "macvlan")
    ip("-n", lab.gateway, "link", "set", "mv0", "netns", other)
    configure(other, "mv0", "10.200.0.3/24")
    installed = lab.gateway_namespace.call(
        lambda: installer.install(_SPEC, named(other), state, "nflog")
    )
    assert installed.around.host.ends == ()
    assert installed.around.host.absence == (
        "no guard: the other end of mv0 is not in this network namespace"
    )


def test_second_link_to_the_host_is_guarded_and_allows_nothing(
    lab: Lab, state: StateDirectory
) -> None:
    ip(
        *("-n", lab.sandbox, "link", "add", "sb1", "type", "veth"),
        *("peer", "name", "gw1", "netns", lab.gateway),
    )
    configure(lab.sandbox, "sb1", "10.201.0.2/24")
    configure(lab.gateway, "gw1", "10.201.0.1/24")
    installed = _install(lab, state)
    ends = {end.name: end.is_uplink for end in installed.around.host.ends}
    assert ends == {"gw0": True, "gw1": False}
    text = installed.listings[_GUARD]
    assert text.count("devices = { gw0, gw1 }") == 2
    assert 'iifname != "gw0" goto refuse_guard' in text


def test_renamed_end_is_noticed_and_stays_guarded(lab: Lab, state: StateDirectory) -> None:
    _install(lab, state)
    host = lab.gateway_namespace
    ip("-n", lab.gateway, "link", "set", "gw0", "down")
    ip("-n", lab.gateway, "link", "set", "gw0", "name", "other0", "up")
    found = host.call(lambda: verification.verify("lab", state))
    assert found.verdict == "differs"
    assert "another device now (other0)" in found.difference
    renewed = host.call(lambda: installer.renew("lab", state))
    assert renewed is not None
    # The table keeps its name, so that a run goes on to watch it.
    assert renewed.spec.guard_device == "gw0"
    assert 'device "other0"' in renewed.listings[_GUARD]
    assert host.call(lambda: verification.verify("lab", state)).verdict == "as installed"


def test_deleted_end_leaves_an_idle_guard_until_the_link_exists_again(
    lab: Lab, state: StateDirectory
) -> None:
    _install(lab, state)
    host = lab.gateway_namespace
    ip("-n", lab.gateway, "link", "del", "gw0")
    assert host.call(lambda: verification.verify("lab", state)).verdict == "differs"
    renewed = host.call(lambda: installer.renew("lab", state))
    assert renewed is not None
    assert renewed.around.host.ends == ()
    assert "hook" not in renewed.listings[_GUARD]
    assert host.call(lambda: verification.verify("lab", state)).verdict == "as installed"
    ip(
        *("-n", lab.sandbox, "link", "add", "sb0", "type", "veth"),
        *("peer", "name", "gw0", "netns", lab.gateway),
    )
    configure(lab.gateway, "gw0", f"{GATEWAY4}/24")
    configure(lab.sandbox, "sb0", "10.200.0.2/24")
    assert host.call(lambda: verification.verify("lab", state)).verdict == "differs"
    renewed = host.call(lambda: installer.renew("lab", state))
    assert renewed is not None
    assert 'hook ingress device "gw0"' in renewed.listings[_GUARD]


def test_device_that_is_named_and_missing_is_an_error(lab: Lab, state: StateDirectory) -> None:
    spec = FenceSpec(sandbox="lab", proxies=_SPEC.proxies, guard_device="nowhere0")
    with pytest.raises(AbsentError, match="there is no interface nowhere0 here to guard"):
        _install(lab, state, spec)
