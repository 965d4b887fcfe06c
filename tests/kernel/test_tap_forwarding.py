"""IP forwarding on a VM's host: enabled if it is off, and restored afterwards."""

from __future__ import annotations

import json
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.errors import FenceError
from ocsf_nft.fence import installer, verification
from ocsf_nft.lab import ip
from tests.kernel import command, conftest, dying, packets, tap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.netns import Namespace

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("machine")]

_NAME = dying.NAME
_SYSCTLS = Path("/proc/sys/net")
#: More steps than an installation or a removal has.
_MAX_STEPS = 40
_READ_ONLY = ("unshare", "-m", "sh", "-c",
              'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"',
              "sh")  # fmt: skip


@pytest.fixture
def machine(site: tap.Site) -> Iterator[tap.Machine]:
    with tap.silent_machine(site) as plugged:
        yield plugged


def _set(namespace: Namespace, **values: str) -> None:
    """Write sysctls, named by their path with two underscores for a slash."""

    def write() -> None:
        for name, value in values.items():
            (_SYSCTLS / name.replace("__", "/")).write_text(value)

    namespace.call(write)


def _is_on(namespace: Namespace) -> tuple[str, str]:
    settings = tap.settings(namespace)
    return (
        settings["/proc/sys/net/ipv4/ip_forward"].strip(),
        settings["/proc/sys/net/ipv6/conf/all/forwarding"].strip(),
    )


def test_unusual_settings_are_restored(site: tap.Site, state: StateDirectory) -> None:
    _set(
        site.host,
        ipv4__conf__all__accept_redirects="0",
        ipv4__conf__up0__forwarding="1",
        ipv6__conf__up0__accept_ra="2",
        ipv6__conf__lo__forwarding="1",
        ipv6__conf__default__forwarding="1",
    )
    before = tap.settings(site.host)
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    assert _is_on(site.host) == ("1", "1")
    # In any stored order, because writing one setting changes others.
    (stored,) = state.path.glob("forwarding-*")
    boot, values = json.loads(stored.read_text())
    stored.write_text(json.dumps([boot, dict(reversed(values.items()))]))
    installer.remove(_NAME, state)
    assert tap.settings(site.host) == before


def test_settings_of_a_forwarding_host_are_not_changed(
    site: tap.Site, state: StateDirectory
) -> None:
    _set(site.host, ipv4__ip_forward="1", ipv6__conf__all__forwarding="1")
    before = tap.settings(site.host)
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    assert tap.settings(site.host) == before
    installer.remove(_NAME, state)
    assert tap.settings(site.host) == before


def test_device_without_forwarding_forwards_while_its_vm_exists(
    site: tap.Site, state: StateDirectory
) -> None:
    _set(site.host, ipv4__ip_forward="1")
    key = f"/proc/sys/net/ipv4/conf/{tap.DEVICE}/forwarding"
    site.host.call(lambda: Path(key).write_text("0"))
    before = tap.settings(site.host)
    installer.install(tap.spec(_NAME, tap.DEVICE, tap.SUBNETS[0]), site.host, state, "nflog")
    assert tap.settings(site.host) == {**before, key: "1\n"}
    installer.remove(_NAME, state)
    assert tap.settings(site.host) == before


def test_uplink_with_router_advertisements_keeps_its_route(
    site: tap.Site, state: StateDirectory
) -> None:
    ip("-n", site.host_name, "-6", "route", "del", "default")
    before = tap.settings(site.host)
    _await_route(site)
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    assert "proto ra" in _default_route(site)
    ip("-n", site.host_name, "-6", "route", "del", "default")
    _await_route(site)
    installer.remove(_NAME, state)
    assert "proto ra" in _default_route(site)
    after = tap.settings(site.host)
    assert after == before
    assert after["/proc/sys/net/ipv6/conf/up0/accept_ra"] == "1\n"


def _default_route(site: tap.Site) -> str:
    done = site.host.call(
        lambda: subprocess.run(
            ["ip", "-6", "route", "show", "default"], capture_output=True, text=True, check=True
        )
    )
    return done.stdout


def _await_route(site: tap.Site) -> None:
    """Send router advertisements on the uplink until the host has a route from them."""
    end = time.monotonic() + 60
    while "proto ra" not in _default_route(site):
        assert time.monotonic() < end
        site.internet.call(_advertise)
        time.sleep(0.05)


def _advertise() -> None:
    message = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    packet = packets.summed(packets.ip6("fe80::fe", "ff02::1", 58, message, hop_limit=255))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("in0", 0))
        sock.send(packets.frame(b"33\0\0\0\1", b"\2\0\0\0\0\xfe", packets.ETH_IP6, packet))


def test_forwarding_disabled_meanwhile_is_reported_and_enabled_again(
    site: tap.Site, state: StateDirectory
) -> None:
    before = tap.settings(site.host)
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    _set(site.host, ipv4__ip_forward="0")
    found = verification.verify(_NAME, state)
    assert found.verdict == "differs"
    assert "net.ipv4.ip_forward is off" in found.difference
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    assert _is_on(site.host) == ("1", "1")
    assert verification.verify(_NAME, state).verdict == "as installed"
    installer.remove(_NAME, state)
    assert tap.settings(site.host) == before


def _host(site: tap.Site, state: StateDirectory) -> list[str]:
    return ["--sandbox", _NAME, "--netns", site.host_name, "--state-dir", str(state.path)]


def test_read_only_sysctls_are_reported_and_nothing_is_changed(
    site: tap.Site, state: StateDirectory
) -> None:
    before = tap.settings(site.host)
    arguments = [
        *("install", *_host(site, state), "--profile", "tap", "--device", tap.DEVICE),
        *("--subnet", tap.SUBNETS[0], "--gateway-port", str(tap.PORT)),
    ]
    refused = command.run(*arguments, under=_READ_ONLY)
    assert refused.code == 3
    assert "net.ipv4.ip_forward" in refused.sentence
    assert "Read-only" in refused.sentence
    assert conftest.nft(site.host, "list", "ruleset") == ""
    assert tap.settings(site.host) == before
    assert [path.name for path in state.path.iterdir()] == [".install.lock"]
    _set(site.host, ipv4__ip_forward="1")
    assert command.run(*arguments, under=_READ_ONLY).code == 0


@pytest.mark.parametrize("what", ["install", "remove"])
def test_earlier_settings_are_restored_after_a_kill_at_any_step(
    site: tap.Site, state: StateDirectory, what: str
) -> None:
    _set(site.host, ipv4__conf__all__accept_redirects="0", ipv6__conf__up0__accept_ra="1")
    before = tap.settings(site.host)
    for step in range(1, _MAX_STEPS):
        if what == "remove":
            installer.install(tap.spec(_NAME), site.host, state, "nflog")
        arguments = [what, site.host_name, str(state.path), str(step)]
        done = subprocess.run([sys.executable, "-m", "tests.kernel.dying", *arguments], check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        if what == "install":
            installer.install(tap.spec(_NAME), site.host, state, "nflog")
            assert _is_on(site.host) == ("1", "1")
            assert verification.verify(_NAME, state).verdict == "as installed"
        if state.read(_NAME) is not None:
            installer.remove(_NAME, state)
        assert conftest.nft(site.host, "list", "ruleset") == ""
        assert tap.settings(site.host) == before
        assert [path.name for path in state.path.iterdir()] == [".install.lock"]
    assert 5 < step < _MAX_STEPS - 1


def test_damaged_settings_are_not_written(site: tap.Site, state: StateDirectory) -> None:
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    (stored,) = state.path.glob("forwarding-*")
    whole = stored.read_text()
    for damaged in (
        whole[:-9],
        "[]",
        whole.replace("ipv4/conf/all/forwarding", "ipv4/conf/../../kernel/panic"),
        whole.replace('"0"', '"0\\n1"'),
        whole.replace('"0"', "0"),
        "[" * 100_000,
    ):
        assert damaged != whole
        stored.write_text(damaged)
        with pytest.raises(FenceError, match="damaged"):
            installer.remove(_NAME, state)
    stored.write_text(whole)
    installer.remove(_NAME, state)


def test_settings_stored_before_the_boot_are_ignored(site: tap.Site, state: StateDirectory) -> None:
    installer.install(tap.spec(_NAME), site.host, state, "nflog")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (stored,) = state.path.glob("forwarding-*")
    stored.write_text(stored.read_text().replace(boot, "another"))
    before = tap.settings(site.host)
    installer.remove(_NAME, state)
    assert tap.settings(site.host) == before
    assert not list(state.path.glob("forwarding-*"))
