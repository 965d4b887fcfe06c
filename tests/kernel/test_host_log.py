"""Events from log entries of a host's other firewalls, with fences or without."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.lab import GATEWAY4, PROXY_PORT
from tests.kernel import attempts, command, conftest, kernel_log, written
from tests.kernel.journald import in_journal, journald

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.kernel_log]

#: No other process on this machine sends there: all tests share its kernel log.
TARGET = "198.51.100.23"
PORT = 20_000
#: By the destination's port, from PORT on: prefix, and the event's rule, sandbox and disposition.
FOREIGN: Sequence[tuple[str, str, str | None, str]] = (
    ("[UFW BLOCK] ", "UFW BLOCK", None, "Blocked"),
    ("filter_OUT_policy_web_DROP: ", "filter_OUT_policy_web_DROP", None, "Dropped"),
    ("ACCEPT lan out: ", "ACCEPT lan out", None, "Allowed"),
    ("[UFW AUDIT] ", "UFW AUDIT", None, "Logged"),
    (f"openshell:bypass:{conftest.SANDBOX}:", "bypass", conftest.SANDBOX, "Blocked"),
    ("mine, out: ", "my firewall", "vm-1", "Dropped"),
)
UNKNOWN = "who knows: "


@pytest.fixture
def firewalled(lab: Lab) -> Iterator[Lab]:
    """Load other firewalls, which log, in the namespace of the lab's sandbox."""
    rules = [
        f'udp dport {PORT + number} log prefix "{prefix}"'
        for number, prefix in enumerate([*(prefix for prefix, *_ in FOREIGN), UNKNOWN])
    ]
    with kernel_log.of_all_namespaces():
        conftest.load(
            lab.sandbox_namespace,
            "table inet others { chain output { type filter hook output priority -200;\n"
            + "\n".join(f"ip daddr {TARGET} {rule}" for rule in rules)
            + "\n}\n}\n",
        )
        yield lab


@pytest.fixture(params=["kmsg", "journal"])
def log(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def under(log: str, tmp_path: Path) -> Iterator[Sequence[str]]:
    """Yield the command under which a run finds its log."""
    if log == "kmsg":
        yield ()
        return
    with journald(tmp_path / "journald"):
        yield in_journal(tmp_path / "journald")


def _config(folder: Path, log: str, more: str = "") -> list[str]:
    path = folder / "ocsf-nft.toml"
    path.write_text(
        f"""
        output = "{folder / "events.jsonl"}"
        state_dir = "{folder / "state"}"
        host_log = "{log}"
        [[prefix]]
        begins = "mine,"
        sandbox = "vm-1"
        rule = "my firewall"
        verdict = "drop"
        {more}
        """
    )
    return ["--config", str(path)]


def _send(lab: Lab, port: int, times: int = 1) -> None:
    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(times):
                with contextlib.suppress(OSError):
                    sock.sendto(b"bypass", (TARGET, port))

    lab.sandbox_namespace.call(send)


def _send_each(lab: Lab) -> None:
    for number in range(len(FOREIGN) + 1):
        _send(lab, PORT + number)


def _events(folder: Path) -> list[dict[str, Any]]:
    return written.events(folder / "events.jsonl")


def _until_reported(folder: Path, number: int) -> None:
    """Wait for a number of packets of other firewalls: a journal may have them late."""
    end = time.monotonic() + 60
    while sum(map(_is_foreign, written.so_far(folder / "events.jsonl"))) < number:
        assert time.monotonic() < end, "they were not reported"
        time.sleep(0.05)


def _is_foreign(event: dict[str, Any]) -> bool:
    is_there = event.get("dst_endpoint", {}).get("ip") == TARGET
    return is_there and not event["firewall_rule"].get("uid")


def _events_to_target(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the events with the target as the destination, in the order of its ports."""
    found = [event for event in events if event.get("dst_endpoint", {}).get("ip") == TARGET]
    return sorted(found, key=lambda event: int(event["dst_endpoint"]["port"]))


def _decoded(event: dict[str, Any]) -> tuple[str, str | None, str]:
    return event["firewall_rule"]["name"], event["src_endpoint"].get("name"), event["disposition"]


def test_records_of_firewalls_become_events_without_a_fence(
    firewalled: Lab,
    tmp_path: Path,
    judge: Callable[[Any], list[str]],
    log: str,
    under: Sequence[str],
) -> None:
    with command.running(*_config(tmp_path, log), under=under) as running:
        begun = time.time_ns() // 1_000_000
        _send_each(firewalled)
        _until_reported(tmp_path, len(FOREIGN))
        ended = time.time_ns() // 1_000_000
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    events = _events(tmp_path)
    faults = {event["message"]: judge(event) for event in events}
    assert not any(faults.values()), faults
    found = _events_to_target(events)
    assert [_decoded(event) for event in found] == [
        (rule, sandbox, disposition) for _, rule, sandbox, disposition in FOREIGN
    ]
    assert all(begun - 200 <= event["time"] <= ended + 200 for event in found)
    assert all("proxy_endpoint" not in event for event in found)


def test_record_of_a_program_with_a_firewall_prefix_is_a_forgery(
    firewalled: Lab, tmp_path: Path, log: str, under: Sequence[str]
) -> None:
    packet = f"IN= OUT=sb0 SRC=10.0.0.1 DST={TARGET} LEN=40 TOS=0x00 PREC=0x00 TTL=64 ID=1 "
    packet += "PROTO=UDP SPT=1 DPT=2 LEN=20 "
    with command.running(*_config(tmp_path, log), under=under) as running:
        # From "DROP: " of a program, journald takes "DROP" as the program's name.
        for prefix in ("[UFW BLOCK] ", "<4>DROP ", "<0>openshell:bypass:vm-1:", "<12>mine, x"):
            kernel_log.write(prefix + packet)
        _send(firewalled, PORT)
        _until_reported(tmp_path, 1)
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    assert [_decoded(event)[0] for event in _events_to_target(_events(tmp_path))] == ["UFW BLOCK"]
    assert re.search(r"\b4 forged", messages), messages


def test_shared_log_separates_records_of_fence_and_firewalls(
    firewalled: Lab, tmp_path: Path, log: str, under: Sequence[str], state: StateDirectory
) -> None:
    sandbox = f"""
        [[sandbox]]
        name = "{conftest.SANDBOX}"
        netns = "{firewalled.sandbox}"
        proxy = ["{GATEWAY4}:{PROXY_PORT}"]
        source = "{log}"
        install = true
        """
    with command.running(*_config(tmp_path, log, sandbox), under=under) as running:
        _send_each(firewalled)
        attempts.attempt(firewalled.sandbox_namespace, 0, 3, "udp4")
        _until_reported(tmp_path, len(FOREIGN))
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    events = _events(tmp_path)
    # The fence refuses packets that the others only log: each is reported by both, once.
    ours = [event for event in events if event.get("firewall_rule", {}).get("uid")]
    packets: Counter[tuple[str, int]] = Counter()
    for event in ours:
        end = event["dst_endpoint"]
        if end.get("ip") in {TARGET, attempts.INTERNET4}:
            packets[end["ip"], end["port"]] += event["count"]
    assert packets == {
        (attempts.INTERNET4, attempts.PORT): 3,
        **{(TARGET, PORT + number): 1 for number in range(len(FOREIGN) + 1)},
    }
    theirs = [event for event in _events_to_target(events) if event not in ours]
    assert [_decoded(event) for event in theirs] == [
        (rule, name, disposition) for _, rule, name, disposition in FOREIGN
    ]
    assert all("proxy_endpoint" not in event for event in theirs)
    assert not list(state.sandboxes())


def test_flood_of_foreign_records_is_reported_or_counted_as_dropped(
    firewalled: Lab, tmp_path: Path
) -> None:
    with command.running(*_config(tmp_path, "kmsg")) as running:
        _send(firewalled, PORT, 20_000)
        code, messages = running.stop(signal.SIGTERM)
    assert code == 0, messages
    found = _events_to_target(_events(tmp_path))
    (dropped,) = re.findall(r"(\d+) dropped in", messages.splitlines()[-1])
    # Records of other programs on this machine may be among the dropped ones.
    assert 0 < len(found) <= 20_000 <= len(found) + int(dropped) < 20_000 + 500
    assert len({event["metadata"]["uid"] for event in found}) == len(found)
