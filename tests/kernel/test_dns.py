"""Names in refused DNS packets, from the kernel to the events."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

import dns.message
import pytest

from ocsf_nft.lab import INTERNET4, INTERNET6
from tests.kernel import accounts, command, conftest, headers, packets
from tests.kernel.outcomes import take_any_source

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

TUNNEL = [
    f"{hashlib.sha256(b'%d' % number).hexdigest()[:50]}.t.example.com" for number in range(300)
]


def _ask(address: str, names: list[str], kind: str = "TXT") -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        for name in names:
            with contextlib.suppress(OSError):
                sock.sendto(dns.message.make_query(name, kind, use_edns=0).to_wire(), (address, 53))


def _ask_in_a_segment(name: str) -> None:
    """Send a TCP segment with data, as of a connection from before the fence."""
    wire = dns.message.make_query(name, "MX").to_wire()
    header = packets.tcp(53, packets.PSH | packets.ACK, 4001)[:20]
    segment = header + len(wire).to_bytes(2, "big") + wire
    packet = headers.other("10.200.0.2", INTERNET4, headers.TCP, segment)
    refusal = contextlib.suppress(OSError)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock, refusal:
        sock.sendto(packet, (INTERNET4, 0))


def _run(state: StateDirectory, folder: Path, work: Any) -> list[dict[str, Any]]:
    output, config = folder / "events.jsonl", folder / "ocsf-nft.toml"
    config.write_text(
        f'output = "{output}"\nstate_dir = "{state.path}"\n'
        f'[[sandbox]]\nname = "{conftest.SANDBOX}"\n[events]\ndns_activity = true\n'
    )
    with command.running("--config", str(config)) as running:
        work()
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    return accounts.events_of(output)


def _names(events: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {
        (each["query"]["hostname"], each["query"]["type"])
        for each in events
        if each["class_uid"] == 4003
    }


def test_tunnel_of_300_names_is_a_finding_with_nearly_all_names(
    fenced: Lab, installed: InstalledFence, state: StateDirectory, tmp_path: Path
) -> None:
    events = _run(
        state, tmp_path, lambda: fenced.sandbox_namespace.call(lambda: _ask(INTERNET4, TUNNEL))
    )
    assert len(_names(events) & {(name, "TXT") for name in TUNNEL}) >= 290
    of_flow = [
        each
        for each in events
        if each["class_uid"] == 4001 and each.get("dst_endpoint", {}).get("port") == 53
    ]
    assert sum(each["count"] for each in of_flow) == 300
    assert sum(each["unmapped"]["dns"]["names"] for each in of_flow) >= 290
    *_, finding = (each for each in events if each["class_uid"] == 2004)
    assert finding["severity"] == "High"
    assert finding["attacks"][0]["sub_technique"]["uid"] == "T1071.004"
    assert finding["unmapped"]["dns"]["long_names"] >= 290
    assert "distinct names below t.example.com" in finding["finding_info"]["desc"]
    correlation = finding["metadata"]["correlation_uid"]
    related = [each for each in events if each["metadata"].get("correlation_uid") == correlation]
    assert {each["class_uid"] for each in related} == {2004, 4001, 4003}
    assert accounts.reported_by_rule(events) == accounts.refused_by(installed)


def test_names_of_each_transport_are_in_the_events(
    fenced: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    long_name = ".".join(["x" * 63] * 3 + ["y" * 61])

    def ask() -> None:
        take_any_source()
        _ask(INTERNET4, ["four.example", long_name], "A")
        _ask(INTERNET6, ["six.example"], "AAAA")
        _ask_in_a_segment("segment.example")

    events = _run(state, tmp_path, lambda: fenced.sandbox_namespace.call(ask))
    assert _names(events) == {
        ("four.example", "A"),
        (long_name, "A"),
        ("six.example", "AAAA"),
        ("segment.example", "MX"),
    }
    assert not [each for each in events if each["class_uid"] == 2004]


def test_flood_of_one_resolver_logs_a_bounded_number_and_hides_no_other_name(
    fenced: Lab, installed: InstalledFence, state: StateDirectory, tmp_path: Path
) -> None:
    began = time.monotonic()

    def flood() -> None:
        names = [f"{number}.flood.example" for number in range(5000)]
        fenced.sandbox_namespace.call(lambda: _ask("198.51.100.53", names))
        fenced.sandbox_namespace.call(lambda: _ask(INTERNET4, ["other.example"], "A"))

    events = _run(state, tmp_path, flood)
    seconds = time.monotonic() - began
    names = _names(events)
    assert ("other.example", "A") in names
    assert 400 <= len(names) <= 406 + 11 * seconds
    assert accounts.reported_by_rule(events) == accounts.refused_by(installed)
