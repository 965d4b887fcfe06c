"""Accounts that balance, and the report if a process prevents that."""

from __future__ import annotations

import dataclasses
import re
import signal
import socket
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.netns import Namespace
from ocsf_nft.state.archive import Archive
from ocsf_nft.state.change import Account
from ocsf_nft.state.state_db import FILE
from tests.kernel import accounts, attempts, command, conftest
from tests.kernel.escapes import ESCAPES

if TYPE_CHECKING:
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel


def test_replaced_counters_are_reported_as_a_gap(
    fenced: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    output = tmp_path / "events.jsonl"
    proxies = ("--proxy", "10.200.0.1:3128", "--proxy", "[fd00:200::1]:3128")
    options = (*accounts.options(state, output), "--netns", fenced.sandbox, *proxies, "--install")
    attempts.attempt(fenced.sandbox_namespace, 1000, 9, "udp4")
    with command.running(*options) as running:
        conftest.nft(fenced.sandbox_namespace, "flush", "ruleset")
        accounts.until(lambda: b"were created again" in output.read_bytes())
        attempts.attempt(fenced.sandbox_namespace, 1000, 5, "udp4")
        assert running.stop(signal.SIGTERM)[0] == 0
    events = accounts.events_of(output)
    assert accounts.reported_by_rule(e for e in events if "actor" in e)["egress"] == 9 + 5
    (gap,) = (e for e in events if "were created again" in e.get("status_detail", ""))
    assert (gap["activity_name"], gap["severity"]) == ("Records Dropped", "High")
    assert gap["start_time"] <= gap["end_time"]


def test_a_namespace_with_sets_that_cannot_be_read_does_not_end_the_run(
    fenced: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    """A process with CAP_NET_ADMIN in the sandbox may replace our sets."""
    output = tmp_path / "events.jsonl"
    many = ", ".join(f"10.{number >> 8}.{number & 255}.1" for number in range(40_000))
    with command.running(*accounts.options(state, output), "--no-self-heal") as running:
        conftest.nft(fenced.sandbox_namespace, "flush", "ruleset")
        conftest.load(
            fenced.sandbox_namespace,
            "table inet ocsf_nft {\n counter refused_egress { }\n counter overflow_egress { }\n"
            " counter logged_egress { }\n"
            + "".join(f" set {kind}_egress {{ type ipv4_addr; elements = {{ {many} }}\n }}\n"
                      for kind in ("flows4", "flows6", "others"))
            + "}\n",
        )  # fmt: skip
        accounts.until(lambda: b"has more than" in output.read_bytes())
        assert running.process.poll() is None
        assert running.stop(signal.SIGTERM)[0] == 0
    found = [each for each in accounts.events_of(output) if "has more than" in each["message"]]
    assert [each["class_uid"] for each in found] == [6002, 2004]


def test_each_way_around_the_usual_ruleset_is_reported_once(
    fenced: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    """Some of their records name another counter than the one that counted the packet."""
    output = tmp_path / "events.jsonl"
    with command.running(*accounts.options(state, output)) as running:
        for escape in ESCAPES:
            fenced.sandbox_namespace.call(escape.attempt)
        accounts.until(lambda: accounts.status(state).code == 0)
        assert running.stop(signal.SIGTERM)[0] == 0
    reported = accounts.reported_by_rule(accounts.events_of(output))
    installed = state.read(conftest.SANDBOX)
    assert installed is not None
    refused = accounts.refused_by(installed)
    assert accounts.status(state).code == 0
    # The kernel still sends router solicitations after the stop.
    assert refused - reported <= Counter(egress=5)
    assert not reported - refused


def test_record_without_counted_packet_is_a_counter_mismatch(
    fenced: Lab, installed: InstalledFence, state: StateDirectory, tmp_path: Path
) -> None:
    """A process that may load rules in the namespace may also log with our prefix."""
    output = tmp_path / "events.jsonl"
    conftest.nft(
        fenced.sandbox_namespace,
        "add table inet mine; add chain inet mine o { type filter hook output priority -10; }; "
        'add rule inet mine o ip daddr 10.200.0.1 log prefix "ocsf-nft:lab:egress:" group 4001',
    )
    with command.running(*accounts.options(state, output)) as running:
        fenced.sandbox_namespace.call(_connect_to_the_proxy)
        accounts.until(lambda: b'"10.200.0.1"' in output.read_bytes())
        accounts.until(lambda: accounts.status(state).code == 1)
        assert running.stop(signal.SIGTERM)[0] == 0
    assert (
        accounts.reported_by_rule(accounts.events_of(output))["egress"]
        > accounts.refused_by(installed)["egress"]
    )
    assert accounts.status(state).code == 1
    shown = command.run("status", "--state-dir", str(state.path))
    assert (shown.code, "too many were reported" in shown.stderr) == (1, True)


def test_status_shows_each_rule_for_people_and_for_prometheus(
    fenced: Lab, state: StateDirectory
) -> None:
    attempts.attempt(fenced.sandbox_namespace, 1000, 11, "udp4")
    where = ("--state-dir", str(state.path))
    shown = command.run("status", *where)
    assert (shown.code, shown.stdout) == (0, "")
    (line,) = (line for line in shown.stderr.splitlines() if "egress" in line)
    refused, reported, *_, mismatch = re.findall(r"[\d,]+", line)
    assert int(refused) >= 11
    assert (reported, mismatch) == ("0", "0")
    assert "no run watches it now" in shown.stderr
    assert max(map(len, shown.stderr.splitlines())) < 80
    metrics = command.run("status", *where, "--metrics").stdout
    of_rule = '{mode="enforcing",rule="egress",sandbox="lab"}'
    (pending,) = re.findall(rf"pending_packets{of_rule} (\d+)", metrics)
    assert int(pending) >= int(refused)
    (dropped,) = re.findall(rf"dropped_records{of_rule} (\d+)", metrics)
    assert int(dropped) >= 1
    assert 'ocsf_nft_watched{sandbox="lab"} 0.0' in metrics
    assert command.run("status", *where, "--sandbox", "unknown").code == 2
    assert command.run("status", "--state-dir", str(state.path / "none")).code == 2


def test_evicted_packets_without_a_reader_are_pending(
    installed: InstalledFence, state: StateDirectory
) -> None:
    attempts.attempt(installed.namespace, 1000, 5, "udp4")
    conftest.nft(installed.namespace, "flush", "set", "inet", "ocsf_nft", "flows4_egress")
    shown = accounts.status(state)
    assert shown.code == 0, shown.stdout
    (egress,) = (each for each in shown.events if each["rule"] == "egress")
    assert egress["pending"] == egress["refused"] >= 5
    assert egress["counter_mismatch"] == 0


def test_account_is_stored_as_long_as_its_fence(
    fenced: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    file = state.directory(conftest.SANDBOX) / FILE
    options = accounts.options(state, tmp_path / "events.jsonl")
    with command.running(*options) as running:
        assert running.stop(signal.SIGTERM)[0] == 0
    assert _stored(file).parts
    assert command.run("remove", *options[:4]).code == 0
    proxy = ("--proxy", "10.200.0.1:3128")
    with command.running(*options, "--netns", fenced.sandbox, *proxy, "--install") as running:
        assert running.stop(signal.SIGTERM)[0] == 0
    assert _stored(file) == Account()
    with Archive(file) as archive:
        assert next(archive.newest()), "the events stay"


@pytest.mark.parametrize("more", [0, 3])
def test_removed_fence_leaves_a_gap_only_if_it_has_unreported_packets(
    fenced: Lab, state: StateDirectory, tmp_path: Path, more: int
) -> None:
    output = tmp_path / "events.jsonl"
    options = accounts.options(state, output)
    # The kernel sends packets of its own as long as the sandbox has IPv6.
    fenced.sandbox_namespace.call(
        lambda: Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1", encoding="ascii")
    )
    attempts.attempt(fenced.sandbox_namespace, 1000, 5, "udp4")
    with command.running(*options) as running:
        assert running.stop(signal.SIGTERM)[0] == 0
    attempts.attempt(fenced.sandbox_namespace, 1000, more, "udp4")
    removed = command.run("remove", *options[:4])
    unreported = f"; no event reports its last {more} packets" if more else ""
    assert removed.stderr == f"sandbox lab is no longer fenced{unreported}\n"
    proxy = ("--proxy", "10.200.0.1:3128")
    assert command.run("install", *options[:4], "--netns", fenced.sandbox, *proxy).code == 0
    output.unlink()
    with command.running(*options) as running:
        assert running.stop(signal.SIGTERM)[0] == 0
    assert (b"were created again" in output.read_bytes()) == bool(more)


def _stored(file: Path) -> Account:
    with Archive(file) as archive:
        return archive.account(conftest.SANDBOX)


@pytest.mark.parametrize("form", [(), ("--json",), ("--metrics",)])
def test_removed_fence_is_not_shown_as_healthy(
    fenced: Lab, state: StateDirectory, form: tuple[str, ...]
) -> None:
    conftest.nft(fenced.sandbox_namespace, "delete", "table", "inet", "ocsf_nft")
    shown = command.run("status", "--state-dir", str(state.path), *form)
    assert shown.code == 2
    assert "no counters for egress, forward, ingress" in shown.stderr


def test_unreadable_sandbox_does_not_hide_the_others(
    fenced: Lab, installed: InstalledFence, state: StateDirectory
) -> None:
    attempts.attempt(fenced.sandbox_namespace, 1000, 3, "udp4")
    for name in ("first", "second"):
        spec = dataclasses.replace(installed.spec, sandbox=name)
        nowhere = Namespace(Path(f"/run/netns/ocsf-nft-{name}"))
        state.write(dataclasses.replace(installed, spec=spec, namespace=nowhere))
    shown = accounts.status(state)
    assert shown.code == 2
    assert '"sandbox":"lab","rule":"egress"' in shown.stdout
    faults = [line for line in shown.stderr.splitlines() if line.startswith("ocsf-nft: ")]
    assert len(faults) == 2
    for name in ("first", "second"):
        assert sum(f"no network namespace at /run/netns/ocsf-nft-{name}" in f for f in faults) == 1


def test_status_names_an_altered_fence(fenced: Lab, state: StateDirectory) -> None:
    where = ("--state-dir", str(state.path))
    differs = (
        "sandbox lab: the fence is not as it was installed: `ocsf-nft verify` shows the difference"
    )
    assert differs not in command.run("status", *where).stderr
    conftest.nft(fenced.sandbox_namespace, "add", "rule", "inet", "ocsf_nft", "output", "accept")
    shown = command.run("status", *where)
    assert (shown.code, differs in shown.stderr.splitlines()) == (0, True)
    conftest.nft(fenced.sandbox_namespace, "delete", "table", "inet", "ocsf_nft")
    assert differs not in command.run("status", *where).stderr


def test_unreadable_records_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    shown = command.run("status", "--state-dir", str(tmp_path / "file"))
    assert (shown.code, "can't be read: Not a directory" in shown.stderr) == (3, True)


def _connect_to_the_proxy() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        sock.connect_ex(("10.200.0.1", 3128))
