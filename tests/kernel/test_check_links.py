"""Tests of `check` for rules outside the IP hooks, on a host with a link to another namespace."""

from __future__ import annotations

import shlex
import socket
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft import check
from ocsf_nft.fence import nft
from ocsf_nft.fence.values import endpoint, subnet
from ocsf_nft.lab import GATEWAY4, GATEWAY6, PROXY_PORT, ip

if TYPE_CHECKING:
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_ARP: Final = """table arp t {
	chain c {
		type filter hook input priority filter; policy drop;
	}
}
"""
_INPUT: Final = """table inet t {
	chain c {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		iifname "gw0" tcp dport 3128 accept
	}
}
"""
_BRIDGE: Final = """table bridge t {
	chain c {
		type filter hook input priority filter; policy drop;
		ether type arp accept
		RULE
	}
}
"""
_PORT: Final = """table netdev t {
	chain c {
		type filter hook ingress device "gw0" priority filter; policy accept;
		RULE
	}
}
"""


def _blocking(lab: Lab, device: str, address: str) -> tuple[check.Finding, ...]:
    length = 24 if "." in address else 64
    scope = check.check_scope(
        lab.gateway_namespace, device=device, subnets=(subnet(f"{address}/{length}"),),
        port=PROXY_PORT, is_strict=True,
    )  # fmt: skip
    return check.blocking(scope)


def _connects(lab: Lab, address: str) -> bool:
    ip("-n", lab.sandbox, "neigh", "flush", "dev", lab.sandbox_device)
    ip("-n", lab.gateway, "neigh", "flush", "all")

    def connect() -> bool:
        try:
            socket.create_connection((address, PROXY_PORT), timeout=0.5).close()
        except OSError:
            return False
        return True

    with lab.gateway_namespace.call(lambda: _server(address)):
        return lab.sandbox_namespace.call(connect)


def _server(address: str) -> socket.socket:
    family = socket.AF_INET if "." in address else socket.AF_INET6
    return socket.create_server((address, PROXY_PORT), family=family)


@pytest.mark.parametrize(("rules", "address"), [(_ARP, GATEWAY4), (_INPUT, GATEWAY6)])
def test_check_finds_what_drops_address_resolution(lab: Lab, rules: str, address: str) -> None:
    assert _blocking(lab, "gw0", address) == ()
    nft.load(lab.gateway_namespace, rules)
    (finding,) = _blocking(lab, "gw0", address)
    assert "its policy drops address resolution" in finding.meaning
    assert not _connects(lab, address)
    for command in finding.commands:
        subprocess.run(shlex.split(command), check=True)
    assert _blocking(lab, "gw0", address) == ()
    assert _connects(lab, address)


@pytest.mark.parametrize("rules", [_BRIDGE, _PORT])
def test_check_finds_what_drops_packets_below_an_interface(lab: Lab, rules: str) -> None:
    for words in (
        "link add br0 type bridge", f"address del {GATEWAY4}/24 dev gw0",
        "link set gw0 master br0", f"address add {GATEWAY4}/24 dev br0", "link set br0 up",
    ):  # fmt: skip
        ip("-n", lab.gateway, *words.split())
    accepting, dropping = "ip protocol tcp accept", "tcp dport 3128 drop"
    nft.load(lab.gateway_namespace, rules.replace("RULE", accepting))
    assert _blocking(lab, "br0", GATEWAY4) == ()
    assert _connects(lab, GATEWAY4)
    nft.load(lab.gateway_namespace, "flush ruleset\n" + rules.replace("RULE", dropping))
    (finding,) = _blocking(lab, "br0", GATEWAY4)
    assert "traffic from the VM to the gateway's port" in finding.meaning
    assert not _connects(lab, GATEWAY4)


def test_link_without_link_addresses_needs_no_address_resolution(lab: Lab) -> None:
    proxies = (endpoint(f"{GATEWAY4}:3128"), endpoint(f"[{GATEWAY6}]:3128"))
    rules = _INPUT.replace("gw0", "sb0").replace("dport", "sport")
    nft.load(lab.sandbox_namespace, _ARP + rules)
    for arp, is_resolving in (("on", True), ("off", False)):
        ip("-n", lab.sandbox, "link", "set", lab.sandbox_device, "arp", arp)
        scope = check.check_scope(
            lab.sandbox_namespace, device=None, port=PROXY_PORT, proxies=proxies
        )
        found = [each.meaning for each in check.blocking(scope)]
        assert any("address resolution" in each for each in found) is is_resolving, found
