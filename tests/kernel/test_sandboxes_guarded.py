"""Sandboxes with guards on the host that are added, changed and released while a service runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.control.http_call import call, sandbox_target
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.lab import configure, ip
from ocsf_nft.netns import named
from tests.kernel import command, namespaces, packets, written, xdp
from tests.kernel.conftest import nft

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.kernel

_SECONDS = 60


def _make(host: str, name: str, device: str) -> None:
    """Make a namespace with a veth pair to ``device`` in the host's namespace."""
    ip("netns", "add", name)
    ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", device, "netns", host)
    for where, each in ((name, "lo"), (name, "eth0"), (host, device)):
        ip("-n", where, "link", "set", each, "up")


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _guards(host: str) -> list[str]:
    """Return the devices with a guard."""
    text = nft(named(host), "list", "ruleset")
    return [device for device in ("guard0", "guard1") if f'"{device}"' in text]


def test_guards_come_and_go_with_their_sandboxes(tmp_path: Path) -> None:
    control, state, output = (tmp_path / each for each in ("control.sock", "state", "events"))
    config = tmp_path / "config.toml"
    config.write_text(f'control = "{control}"\nstate_dir = "{state}"\noutput = "{output}"\n')
    with namespaces.names(3) as (host, first, second):
        ip("netns", "add", host)
        ip("-n", host, "link", "set", "lo", "up")
        _make(host, first, "guard0")
        _make(host, second, "guard1")

        def put(name: str, **keys: Any) -> None:
            guard = "guard0" if name == first else "guard1"
            body = {"netns": name, "proxy": [namespaces.PROXY], "host_guard": guard}
            call(control, "PUT", sandbox_target(name), body | keys)

        with command.running("--config", str(config), inside=named(host)) as running:
            for _ in range(3):
                put(first)
                put(second)
                assert _guards(host) == ["guard0", "guard1"]
                put(second, allow=["tcp:203.0.113.7:443"])
                call(control, "DELETE", sandbox_target(first))
                assert _guards(host) == ["guard1"]
                put(first)
                # The end of a namespace deletes its devices, and its guard with them.
                namespaces.delete(second)
                _until(lambda: "guard1" not in nft(named(host), "list", "ruleset"))
                _until(lambda: [each["name"] for each in _list(control)] == [first])
                assert _guards(host) == ["guard0"]
                with pytest.raises(OcsfNftError):
                    put(second)
                assert not (state / second).exists()
                _make(host, second, "guard1")
                assert [each["state"] for each in _list(control)] == ["active"]
            call(control, "DELETE", sandbox_target(first))
            assert nft(named(host), "list", "ruleset") == ""
            code, messages = running.stop(15)
        assert code == 0, messages
    events = written.events(output)
    assert {each["severity"] for each in events if each["class_uid"] == 5019} == {"Informational"}
    assert not [each for each in events if "fault" in each.get("message", "")]


def _list(control: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = call(control, "GET", "/v1/sandboxes")["sandboxes"]
    return found


def test_link_that_is_connected_later_gets_a_guard(tmp_path: Path) -> None:
    """Some container engines connect a container after the fence is active."""
    control, state, output = (tmp_path / each for each in ("control.sock", "state", "events"))
    config = tmp_path / "config.toml"
    config.write_text(f'control = "{control}"\nstate_dir = "{state}"\noutput = "{output}"\n')
    with namespaces.names(2) as (host, name):
        for each in (host, name):
            ip("netns", "add", each)
            ip("-n", each, "link", "set", "lo", "up")
        with command.running("--config", str(config), inside=named(host)) as running:
            body = {"netns": name, "proxy": ["10.0.0.1:3128"]}
            call(control, "PUT", sandbox_target(name), body)
            (view,) = _list(control)
            assert view["guard"] == (
                "no guard: the other end of its link is not in this network namespace"
            )
            ip("-n", name, "link", "add", "eth0", "type", "veth",
               "peer", "name", "guard0", "netns", host)  # fmt: skip
            configure(host, "guard0", "10.0.0.1/24")
            configure(name, "eth0", "10.0.0.2/24")
            _until(lambda: _list(control)[0]["guard"] == "guard0")
            assert _guards(host) == ["guard0"]
            frame = packets.frame(b"\xff" * 6, b"\2\0\0\0\0\7", 0x88B5, b"by af_xdp")
            named(name).call(lambda: xdp.send("eth0", frame))
            _until(lambda: b'"name":"guard"' in output.read_bytes())
            call(control, "DELETE", sandbox_target(name))
            assert nft(named(host), "list", "ruleset") == ""
            code, messages = running.stop(15)
        assert code == 0, messages
