"""Changes of routes, links and addresses inside a sandbox change no uplink of its fence."""

from __future__ import annotations

import dataclasses
import signal
import socket
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft.fence import installer, nft, verification
from ocsf_nft.fence.values import exception
from ocsf_nft.lab import GATEWAY4, GATEWAY6, GATEWAY_MAC, PROXY_PORT, SANDBOX4, ip
from tests.kernel import command, conftest, written

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_PROXIES: Final = ("--proxy", f"{GATEWAY4}:{PROXY_PORT}", "--proxy", f"[{GATEWAY6}]:{PROXY_PORT}")
#: Another address of the uplink's network.
_ADDED: Final = "10.200.0.9"


def _reroute(lab: Lab) -> None:
    """Lead the packets to the proxy over a new link, whose other end is in the sandbox as well."""
    for arguments in (
        ("link", "add", "v0", "type", "veth", "peer", "name", "v1"),
        ("link", "set", "v0", "up"),
        ("link", "set", "v1", "up"),
        ("route", "replace", f"{GATEWAY4}/32", "dev", "v0", "src", SANDBOX4),
        ("-6", "route", "replace", f"{GATEWAY6}/128", "dev", "v0"),
    ):
        ip("-n", lab.sandbox, *arguments)


def _record(state: StateDirectory) -> InstalledFence:
    found = state.read(conftest.SANDBOX)
    assert found is not None
    return found


def _until(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def _assert_pinned(before: InstalledFence, now: InstalledFence) -> None:
    assert (
        dataclasses.replace(now.around, links=before.around.links, host=before.around.host)
        == before.around
    )
    assert "v0" in now.around.links
    # Only the elements of `neighbours` and `allowed` may differ.
    names = ("uplinks", "outer", "own4", "own6", "own_macs")
    for table, listing in before.listings.items():
        elements = [line for line in listing.splitlines() if line.split(":")[0] in names]
        assert elements
        assert elements == [
            line for line in now.listings[table].splitlines() if line.split(":")[0] in names
        ]


def test_only_an_installation_by_the_operator_surveys_again(
    fenced: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    before = _record(state)
    _reroute(fenced)
    renewed = installer.renew(spec.sandbox, state)
    assert renewed is not None
    _assert_pinned(before, renewed)
    namespace = fenced.sandbox_namespace
    restarted = installer.install(spec, namespace, state, "nflog", keeps_uplinks=True)
    _assert_pinned(before, restarted)
    more = dataclasses.replace(spec, exceptions=(exception("tcp:10.200.0.77:80"),))
    with state.locked():
        changed = installer.install_locked(more, namespace, state, "nflog", nft.load)
    assert changed.around.uplinks == ("sb0",)
    assert {*map(str, changed.around.neighbours)} == {GATEWAY4, GATEWAY6, "10.200.0.77"}
    install = ("install", "--sandbox", conftest.SANDBOX, "--netns", fenced.sandbox, *_PROXIES)
    done = command.run(*install, "--state-dir", str(state.path))
    assert (done.code, "  uplinks: v0\n" in done.stderr) == (0, True), done.stderr
    assert _record(state).around.uplinks == ("v0",)
    done = command.run("verify", "--sandbox", conftest.SANDBOX, "--state-dir", str(state.path))
    assert "uplinks: v0\n" in done.stderr


def test_fence_that_was_installed_before_the_network_pins_it_at_a_check(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    ip("-n", lab.sandbox, "address", "flush", "dev", "sb0")
    ip("-n", lab.sandbox, "-6", "route", "flush", "dev", "sb0")
    before = installer.install(spec, lab.sandbox_namespace, state, "nflog")
    assert before.around.pins == ()
    assert verification.verify(spec.sandbox, state).verdict == "as installed"
    for arguments in (
        ("address", "add", f"{SANDBOX4}/24", "dev", "sb0"),
        ("route", "replace", "default", "via", GATEWAY4),
    ):
        ip("-n", lab.sandbox, *arguments)
    found = verification.verify(spec.sandbox, state)
    assert found.difference == "a route has shown its uplinks: sb0"
    renewed = installer.renew(spec.sandbox, state)
    assert renewed is not None
    assert [pin.name for pin in renewed.around.pins] == ["sb0"]
    assert [*map(str, renewed.around.addresses)] == [SANDBOX4]
    assert verification.verify(spec.sandbox, state).verdict == "as installed"


def test_address_that_was_added_later_sends_nothing_to_the_proxy(
    fenced: Lab, state: StateDirectory
) -> None:
    ip("-n", fenced.sandbox, "address", "add", f"{_ADDED}/24", "dev", "sb0")
    ip("-n", fenced.sandbox, "neigh", "replace", GATEWAY4, "lladdr", GATEWAY_MAC, "dev", "sb0")

    def connect(source: str) -> None:
        with socket.socket() as sock:
            sock.bind((source, 0))
            sock.settimeout(30)
            sock.connect((GATEWAY4, PROXY_PORT))

    def listen() -> socket.socket:
        sock = socket.create_server((GATEWAY4, PROXY_PORT))
        sock.setblocking(False)
        return sock

    with fenced.gateway_namespace.call(listen) as proxy:
        with pytest.raises(ConnectionRefusedError):
            fenced.sandbox_namespace.call(lambda: connect(_ADDED))
        with pytest.raises(BlockingIOError):
            proxy.accept()
        fenced.sandbox_namespace.call(lambda: connect(SANDBOX4))
        proxy.accept()[0].close()
    assert conftest.counted(fenced.sandbox_namespace)[GATEWAY4] == 1
    assert verification.verify(conftest.SANDBOX, state).verdict == "as installed"


def test_renamed_uplink_is_no_link_to_a_nested_namespace(
    fenced: Lab, state: StateDirectory
) -> None:
    """The index is in the rules: the new link with the old name is no uplink."""
    (pin,) = _record(state).around.pins
    for arguments in (
        ("link", "set", "sb0", "down"),
        ("link", "set", "sb0", "name", "x0"),
        ("link", "add", "sb0", "type", "veth", "peer", "name", "v1"),
        ("link", "set", "x0", "up"),
        ("link", "set", "sb0", "up"),
    ):
        ip("-n", fenced.sandbox, *arguments)
    renewed = installer.renew(conftest.SANDBOX, state)
    assert renewed is not None
    assert renewed.around.uplink_indexes == renewed.around.outer_indexes == (pin.ifindex,)
    assert renewed.around.missing == ()
    assert {"sb0", "x0"} <= {*renewed.around.links}
    assert f"uplinks: {pin.ifindex}\n" in renewed.listings["netdev ocsf_nft"]


def test_run_keeps_the_uplinks_and_reports_a_missing_one(
    fenced: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    before, output = _record(state), tmp_path / "events.jsonl"
    options = (
        *("--sandbox", conftest.SANDBOX, "--state-dir", str(state.path), "--output", str(output)),
        *("--install", "--netns", fenced.sandbox, *_PROXIES),
    )

    def reported(text: str) -> bool:
        found = (event.get("status_detail", "") for event in written.so_far(output))
        return any(text in detail for detail in found)

    with command.running(*options) as running:
        _reroute(fenced)
        # The record is written before the fence is loaded, and again after that.
        _until(lambda: "v0" in _record(state).around.links and _record(state).listings)
        _assert_pinned(before, _record(state))
        running.process.kill()
        running.process.wait()
    with command.running(*options) as running:
        _assert_pinned(before, _record(state))
        ip("-n", fenced.sandbox, "link", "set", "sb0", "netns", fenced.gateway)
        _until(lambda: reported("is missing or was replaced: sb0"))
        assert _record(state).around.missing == ("sb0",)
        assert running.stop(signal.SIGTERM)[0] == 0
