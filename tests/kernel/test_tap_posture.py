"""Warnings at installation about the host's other rules that drop a VM's allowed packets."""

from __future__ import annotations

import socket
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.fence import installer, nft, verification
from ocsf_nft.lab import INTERNET4
from tests.kernel import command, tap

if TYPE_CHECKING:
    from ocsf_nft.fence.state import StateDirectory

pytestmark = pytest.mark.kernel

_NAME: Final = "vm-7"
_POLICY_DROP: Final = """table inet site {
	chain through {
		type filter hook forward priority filter; policy drop;
		iifname "wg0" accept
	}
	chain local {
		type filter hook input priority filter; policy accept;
		tcp dport 1024-65535 drop
	}
}
"""
_HOSTILE: Final = """table inet site {
	chain through {
		type filter hook forward priority filter; policy accept;
		tcp dport 443 drop comment "\x1b[31m; `id` $(id) \u202e"
	}
}
"""


def _install(site: tap.Site, state: StateDirectory) -> command.Outcome:
    return command.run(
        *("install", "--json", "--sandbox", _NAME, "--netns", site.host_name, "--profile", "tap"),
        *("--device", tap.DEVICE, "--gateway-port", str(tap.PORT)),
        *(part for subnet in tap.SUBNETS for part in ("--subnet", subnet)),
        *("--state-dir", str(state.path)),
    )


def _in_the_way(done: command.Outcome) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("blocks the VM: ")]


def _commands(done: command.Outcome) -> list[str]:
    return [line.strip() for line in done.stderr.splitlines() if line.startswith("    ")]


def _gets_out(machine: tap.Machine, site: tap.Site, *, seconds: float = 60) -> bool:
    address = (INTERNET4, 443)
    with tap.listening(site.internet, *address):
        try:
            machine.guest.call(lambda: socket.create_connection(address, seconds)).close()
        except TimeoutError:
            return False
    return True


def test_rules_that_drop_a_vms_packets_are_reported_with_a_remedy(
    site: tap.Site, machine: tap.Machine, state: StateDirectory
) -> None:
    nft.load(site.host, _POLICY_DROP)
    done = _install(site, state)
    assert done.code == 0, done.stderr
    assert len(done.events) == 1
    through, local = _in_the_way(done)
    assert "table inet site, chain through" in through
    assert "its policy drops traffic from the VM to the internet" in through
    assert "table inet site, chain local" in local
    assert "drops traffic from the VM to the gateway's port" in local
    commands = _commands(done)
    assert sum("nft insert rule inet site through" in each for each in commands) == 2
    assert [
        f"ip daddr {tap.GATEWAY4} tcp dport {tap.PORT}" in commands[2],
        f"ip6 daddr {tap.GATEWAY6} tcp dport {tap.PORT}" in commands[3],
    ] == [True, True]
    assert len(commands) == 4
    assert (
        done.stderr.splitlines()[-1]
        == f"sandbox {_NAME} is fenced; refused packets are logged to nflog"
    )
    assert verification.verify(_NAME, state).verdict == "as installed"
    assert not _gets_out(machine, site, seconds=1)

    for each in commands:  # unchanged, in a shell
        subprocess.run(["sh", "-euc", each], check=True, capture_output=True)
    assert _gets_out(machine, site)
    again = _install(site, state)
    assert (again.code, _in_the_way(again), _commands(again)) == (0, [], [])


def test_host_without_such_rules_is_reported_without_warnings(
    site: tap.Site, machine: tap.Machine, state: StateDirectory
) -> None:
    # Another VM's fence judges only packets of its own VM, and so drops none of this VM's.
    with tap.silent_machine(site, "vmtap-1", ("172.16.8.1/29",)):
        installer.install(tap.spec("vm-8", "vmtap-1", "172.16.8.1/29"), site.host, state, "nflog")
        done = _install(site, state)
    assert (done.code, _in_the_way(done), _commands(done)) == (0, [], [])
    assert _gets_out(machine, site)


def test_hostile_text_in_other_rules_is_shown_and_never_executed(
    site: tap.Site, machine: tap.Machine, state: StateDirectory
) -> None:
    nft.load(site.host, _HOSTILE)
    done = _install(site, state)
    assert done.code == 0, done.stderr
    (warning,) = _in_the_way(done)
    assert "table inet site, chain through" in warning
    assert "tcp dport 443 drop" in warning
    assert not {"\x1b", "\u202e"} & set(done.stderr)
    assert not [each for each in _commands(done) if "$" in each or "`" in each]
    assert not _gets_out(machine, site, seconds=1)
