"""Events about a VM's attempts on its host during a run of the command line."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.fence import verification
from tests.kernel import command, conftest, tap, written
from tests.kernel.test_tap_refused import PUBLISHED, send
from tests.kernel.vm_escapes import ALLOWED, FORBIDDEN, LINK

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ocsf_nft.fence.state import StateDirectory

pytestmark = pytest.mark.kernel

_NAME = "vm-7"
_OTHER_MAC = b"\2\0\0\0\7\x09"


def _arguments(site: tap.Site, state: StateDirectory, output: Path) -> list[str]:
    return [
        *("--sandbox", _NAME, "--netns", site.host_name, "--profile", "tap"),
        *("--device", tap.DEVICE, "--gateway-port", str(tap.PORT)),
        *(part for subnet in tap.SUBNETS for part in ("--subnet", subnet)),
        *("--state-dir", str(state.path), "--output", str(output), "--install"),
    ]


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_each_refused_packet_of_a_vm_is_reported_in_a_valid_event(
    site: tap.Site, state: StateDirectory, tmp_path: Path, judge: Callable[[Any], list[str]]
) -> None:
    output = tmp_path / "events.jsonl"
    conftest.load(site.host, PUBLISHED)
    ruleset = conftest.nft(site.host, "-a", "list", "ruleset")
    tap.routes_back(site)
    with tap.silent_machine(site) as machine:
        before = tap.settings(site.host)
        with command.running(*_arguments(site, state, output)) as running:
            machine.send(ALLOWED["arp for the gateway"])
            for what in FORBIDDEN:
                send(site, machine, what)
            code, errors = running.stop(signal.SIGTERM)
        assert code == 0, errors
        assert conftest.nft(site.host, "-a", "list", "ruleset") == ruleset
        assert tap.settings(site.host) == before
    events = written.events(output)
    faults = {event["message"]: judge(event) for event in events}
    assert not any(faults.values()), faults
    refused = [event for event in events if event["class_uid"] == 4001]
    counts: Counter[str] = Counter()
    for event in refused:
        counts[event["firewall_rule"]["name"]] += event["count"]
        vm = (
            "dst_endpoint" if event["connection_info"]["direction"] == "Inbound" else "src_endpoint"
        )
        assert event[vm]["name"] == _NAME
        assert event["disposition"] == "Dropped"
        assert "actor" not in event
    assert counts == Counter(what.rule for what in FORBIDDEN)
    spoofed = {event["src_endpoint"].get("ip") for event in refused}
    assert {"203.0.113.99", tap.GATEWAY4, tap.UPLINK6} <= spoofed
    assert {event["src_endpoint"].get("mac") for event in refused} >= {
        tap.VM_MAC.hex(":"), "02:00:00:00:07:77",
    }  # fmt: skip


def test_recreated_device_is_fenced_again_and_its_vm_reported(
    site: tap.Site, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    with contextlib.ExitStack() as cleanup:
        with tap.silent_machine(site) as machine:
            running = cleanup.enter_context(command.running(*_arguments(site, state, output)))
            machine.send(ALLOWED["arp for the gateway"])
            machine.send(LINK[0].sent)
        _until(lambda: verification.verify(_NAME, state).verdict == "differs")
        with tap.silent_machine(site) as machine:
            _until(lambda: verification.verify(_NAME, state).verdict == "as installed")
            # Another VM, with another link address.
            machine.send(ALLOWED["arp for the gateway"].replace(tap.VM_MAC, _OTHER_MAC))
            machine.send(LINK[1].sent.replace(tap.VM_MAC, _OTHER_MAC))
            code, errors = running.stop(signal.SIGTERM)
    assert code == 0, errors
    events = written.events(output)
    reported = [
        (event["unmapped"]["ethertype"], event["count"], event["src_endpoint"]["mac"])
        for event in events
        if event["class_uid"] == 4001
    ]
    assert reported == [
        (0x88B5, 1, tap.VM_MAC.hex(":")),
        (0x8847, 1, _OTHER_MAC.hex(":")),
    ]
    states = [event["state"] for event in events if event["class_uid"] == 5019]
    assert states[0] == "Enabled"
    assert states[-1] == "Disabled"
    assert conftest.nft(site.host, "list", "ruleset") == ""
