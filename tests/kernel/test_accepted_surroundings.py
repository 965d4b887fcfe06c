"""Surroundings that a fence accepts, as its policy and its next hops change."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import replace
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft.fence import installer
from ocsf_nft.fence.host_names import ResolvedName
from ocsf_nft.fence.surroundings import watcher
from ocsf_nft.fence.values import exception
from ocsf_nft.lab import GATEWAY4, INTERNET4, PROXY_PORT, SANDBOX4, ip
from tests.kernel.serving import sandbox, serving, until

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from tests.kernel.serving import Served

pytestmark = pytest.mark.kernel

_NAME: Final = "agent"
_OTHER4: Final = "10.200.0.9"
_STATION: Final = "02:00:00:00:00:09"


@pytest.fixture(autouse=True)
def _quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "POLL_SECONDS", 0.2)


def _set_static(lab: Lab, address: str) -> None:
    ip(
        *("-n", lab.sandbox, "neighbour", "replace", address, "lladdr", _STATION),
        *("nud", "permanent", "dev", lab.sandbox_device),
    )


async def _next_change(served: Served, lab: Lab) -> str:
    """Make a change that is reported and undone; return the texts of all changes until then."""
    before = len(served.events)
    command = ["tc", "-n", lab.sandbox, "qdisc", "add", "dev", "lo", "clsact"]
    await asyncio.to_thread(subprocess.run, command, check=True)
    await until(lambda: any("clsact" in _changes(each) for each in served.events[before:]))
    return " ".join(map(_changes, served.events))


def _changes(event: dict[str, Any]) -> str:
    is_change = event["metadata"]["event_code"] == "surroundings-changed"
    return str(event["message"]) if is_change else ""


async def test_static_entry_of_an_address_that_a_new_policy_allows_is_accepted(
    lab: Lab, tmp_path: Path
) -> None:
    _set_static(lab, _OTHER4)
    keys = {"netns": lab.sandbox, "proxy": [f"{GATEWAY4}:{PROXY_PORT}"]}
    async with serving(tmp_path) as served:
        await served.service.put(sandbox(_NAME, **keys))
        await served.service.put(sandbox(_NAME, **keys, allow=[f"tcp:{_OTHER4}:5432"]))
        assert _OTHER4 not in await _next_change(served, lab)
        _set_static(lab, GATEWAY4)
        await served.wait_for(lambda event: GATEWAY4 in _changes(event))


async def test_static_entry_of_a_next_hop_of_a_new_policy_is_accepted(
    lab: Lab, tmp_path: Path
) -> None:
    _set_static(lab, _OTHER4)
    ip("-n", lab.sandbox, "route", "replace", "default", "via", _OTHER4)
    keys = {"netns": lab.sandbox, "proxy": [f"{GATEWAY4}:{PROXY_PORT}"]}
    async with serving(tmp_path) as served:
        await served.service.put(sandbox(_NAME, **keys))
        await served.service.put(sandbox(_NAME, **keys, allow=[f"tcp:{INTERNET4}:443"]))
        (one,) = served.service.sandboxes
        assert one.watched is not None
        assert _OTHER4 in map(str, one.watched.monitor.reports.installed.around.neighbours)
        assert _OTHER4 not in await _next_change(served, lab)


@pytest.mark.parametrize("is_of_name", [False, True])
def test_static_entry_of_an_address_of_a_host_name_is_not_accepted(
    fenced: Lab, spec: FenceSpec, state: StateDirectory, is_of_name: bool
) -> None:
    """A process inside can know the next addresses of a name, and make an entry before."""
    _set_static(fenced, _OTHER4)
    names = (ResolvedName("db.example", (IPv4Address(_OTHER4),)),) if is_of_name else ()
    wider = replace(spec, exceptions=(exception(f"tcp:{_OTHER4}:5432"),), resolved=names)
    found = installer.install(wider, fenced.sandbox_namespace, state, "nflog").accepted
    assert found is not None
    assert (_OTHER4 in {each.address for each in found.neighbours}) is not is_of_name
    assert _OTHER4 in {each.destination for each in found.routes}


async def test_static_entry_that_is_older_than_the_address_is_accepted(
    lab: Lab, tmp_path: Path
) -> None:
    """An engine may make both in any order, while the service waits for the network."""
    ip("-n", lab.sandbox, "address", "flush", "dev", lab.sandbox_device)
    keys = {"netns": lab.sandbox, "proxy": [f"{GATEWAY4}:{PROXY_PORT}"]}
    async with serving(tmp_path, sandbox(_NAME, **keys)) as served:
        _set_static(lab, GATEWAY4)
        assert GATEWAY4 not in await _next_change(served, lab)
        ip("-n", lab.sandbox, "address", "add", f"{SANDBOX4}/24", "dev", lab.sandbox_device)
        (one,) = served.service.sandboxes
        assert one.watched is not None
        monitor = one.watched.monitor
        await until(lambda: bool(monitor.reports.installed.around.pins))
        assert GATEWAY4 not in await _next_change(served, lab)
