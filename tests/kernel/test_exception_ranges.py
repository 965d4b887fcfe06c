"""Connections to exceptions that are networks, and replacements of the fence meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.fence import installer, restore_batch, verification
from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.values import exception
from ocsf_nft.lab import INTERNET4, ip
from ocsf_nft.nfnetlink import Nftables
from tests.kernel import conftest
from tests.kernel.users import as_user

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_FLOOD: Final = Path(__file__).with_name("flood.py")
_USER: Final = 1001
_SECONDS: Final = 20.0
#: Servers on the link: an address in the network of the exception, and one next to it.
_INSIDE: Final = ("10.200.0.77", "fd00:200::77")
_OUTSIDE: Final = ("10.200.0.128", "fd00:200::1:0")
_EXCEPTIONS: Final = tuple(
    map(exception, ("tcp:10.200.0.64/26:9000-9001", "tcp:[fd00:200::/112]:9000-9001"))
)


@pytest.fixture
def servers(lab: Lab) -> Iterator[None]:
    """Listen at all addresses of the gateway, of which some are added here."""
    for address in (*_INSIDE, *_OUTSIDE):
        options = ["nodad"] if ":" in address else []
        length = 64 if ":" in address else 24
        ip("-n", lab.gateway, "address", "add", f"{address}/{length}", "dev", "gw0", *options)
    with contextlib.ExitStack() as stack:
        for port in (9000, 9001, 9002):
            stack.enter_context(lab.gateway_namespace.call(partial(_listen, port)))
        yield


def _listen(port: int) -> socket.socket:
    return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)


def _connects(lab: Lab, address: str, port: int) -> bool:
    """Connect as a user without privileges; return False if the connection is refused."""

    def connect() -> bool:
        try:
            socket.create_connection((address, port), _SECONDS).close()
        except (ConnectionRefusedError, PermissionError):
            return False
        return True

    return lab.sandbox_namespace.call(as_user(_USER, connect, capabilities=frozenset()))


def _check_connections(lab: Lab) -> None:
    for address in _INSIDE:
        assert [_connects(lab, address, port) for port in (9000, 9001, 9002)] == [True, True, False]
    for address in _OUTSIDE:
        assert not _connects(lab, address, 9000)


@pytest.mark.parametrize("is_pod", [False, True])
@pytest.mark.usefixtures("servers")
def test_connections_reach_a_network_on_the_link_also_after_a_restore(
    lab: Lab, spec: FenceSpec, state: StateDirectory, is_pod: bool
) -> None:
    """The kernel resolves the neighbours."""
    allowed = (
        FenceSpec(sandbox=spec.sandbox, proxy_uids=(4242,), exceptions=_EXCEPTIONS)
        if is_pod
        else dataclasses.replace(spec, exceptions=_EXCEPTIONS)
    )
    installed = installer.install(allowed, lab.sandbox_namespace, state, "nflog")
    assert installed.around.uplinks == (lab.sandbox_device,)
    _check_connections(lab)
    (batch,) = restore_batch.prepare(installed).batches
    for restoring in (batch.full, batch.keeping_counters):
        assert restoring is not None
        conftest.nft(lab.sandbox_namespace, "flush ruleset")
        with lab.sandbox_namespace.call(Nftables) as nftables:
            nftables.commit(restoring)
        assert verification.verify(spec.sandbox, state).verdict == "as installed"
        _check_connections(lab)
    installer.install(
        dataclasses.replace(allowed, exceptions=()), lab.sandbox_namespace, state, "nflog"
    )
    assert not any(_connects(lab, address, 9000) for address in _INSIDE)


@pytest.mark.usefixtures("servers")
def test_connections_reach_a_network_behind_another_router(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    """The kernel may resolve that router, which is no proxy and in no network of an exception."""
    for remote, router in (("198.51.100.7", "10.200.0.66"), ("2001:db8:9::7", "fd00:200::66:0")):
        family = "-6" if ":" in remote else "-4"
        ip("-n", lab.gateway, "address", "add", remote, "dev", "lo")
        ip("-n", lab.gateway, "address", "add", router, "dev", "gw0", "nodad")
        ip("-n", lab.sandbox, family, "route", "add", router, "dev", "sb0")
        ip("-n", lab.sandbox, family, "route", "add", remote, "via", router)
    exceptions = map(exception, ("tcp:198.51.100.0/24:9000", "tcp:[2001:db8:9::/48]:9000"))
    allowed = dataclasses.replace(spec, exceptions=tuple(exceptions))
    installed = installer.install(allowed, lab.sandbox_namespace, state, "nflog")
    assert {"10.200.0.66", "fd00:200::66:0"} <= set(map(str, installed.around.neighbours))
    for remote in ("198.51.100.7", "2001:db8:9::7"):
        assert [_connects(lab, remote, port) for port in (9000, 9001)] == [True, False]
    # The router itself is no destination.
    assert not _connects(lab, "10.200.0.66", 9000)


def test_packets_to_a_network_pass_during_each_replacement(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    """A set of ranges would be empty for some tenths of a millisecond of each replacement."""
    namespace = lab.sandbox_namespace
    first = dataclasses.replace(spec, exceptions=(exception("udp:203.0.113.0/24:1-99"),))
    more = (*first.exceptions, exception("tcp:198.18.0.0/15:443"))
    second = dataclasses.replace(first, exceptions=more)
    installer.install(first, namespace, state, "nflog")
    with namespace.call(
        lambda: subprocess.Popen(
            [sys.executable, str(_FLOOD), INTERNET4, "60"], stdout=subprocess.PIPE, text=True
        )
    ) as flood:
        try:
            received = _received(lab)
            end = time.monotonic() + _SECONDS
            while _received(lab) == received:
                assert time.monotonic() < end
            for each in range(30):
                expected = first if each % 2 else second
                installer.install(expected, namespace, state, "nflog")
                assert verification.verify(spec.sandbox, state).verdict == "as installed"
        finally:
            flood.terminate()
            output, _ = flood.communicate(timeout=30)
    assert int(output) > 10_000
    assert conftest.counted(namespace)[INTERNET4] == 0


def _received(lab: Lab) -> int:
    device = f"/sys/class/net/{lab.gateway_device}/statistics/rx_packets"
    read = ["ip", "netns", "exec", lab.gateway, "cat", device]
    return int(subprocess.run(read, capture_output=True, text=True, check=True).stdout)


def test_record_of_an_earlier_version_is_read_and_renewed(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    """It has the fields of an endpoint for each exception."""
    allowed = dataclasses.replace(spec, exceptions=(exception("udp:10.200.0.9:53"),))
    installer.install(allowed, lab.sandbox_namespace, state, "nflog")
    record = state.directory(spec.sandbox) / "fence.json"
    stored = json.loads(record.read_bytes())
    assert stored["spec"]["exceptions"] == ["udp:10.200.0.9:53"]
    stored["spec"]["exceptions"] = [{"protocol": "udp", "address": "10.200.0.9", "port": 53}]
    record.write_text(json.dumps(stored), "utf-8")
    again = StateDirectory(state.path)
    assert verification.verify(spec.sandbox, again).verdict == "as installed"
    stored["policy"] = "of an earlier version"
    record.write_text(json.dumps(stored), "utf-8")
    renewed = installer.renew(spec.sandbox, again)
    assert renewed is not None
    assert renewed.spec == allowed
    assert json.loads(record.read_bytes())["spec"]["exceptions"] == ["udp:10.200.0.9:53"]
