"""Hostile values in the counters, as written with CAP_NET_ADMIN in the sandbox's namespace."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from ocsf_nft.fence import ruleset
from ocsf_nft.service import gap_reports
from tests.kernel import accounts, attempts, command, conftest

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.fence.state import InstalledFence, StateDirectory

pytestmark = pytest.mark.kernel

_MOST = (1 << 64) - 1


def _write_counts(flows: int) -> str:
    rows = ", ".join(
        f"7 . tcp . 192.0.2.{number} . 443 counter packets {_MOST} bytes {_MOST}"
        for number in range(1, flows + 1)
    )
    return f"add element inet ocsf_nft flows4_egress {{ {rows} }}"


def _write_totals(installed: InstalledFence) -> str:
    """Return the rules of the active fence, with other totals."""
    text = ruleset.fence(installed.spec, installed.around, installed.transport)
    for rule in ("egress", "forward", "ingress", "link"):
        empty = f"counter refused_{rule} {{ }}"
        assert text.count(empty) == 1
        text = text.replace(empty, f"counter refused_{rule} {{ packets {_MOST} bytes {_MOST} }}")
    return text


def _egress(state: StateDirectory) -> dict[str, Any]:
    # Not by orjson, which reads an integer of more than 64 bits as a float.
    lines = [json.loads(line) for line in accounts.status(state).stdout.splitlines()]
    (found,) = (line for line in lines if line["rule"] == "egress")
    return cast("dict[str, Any]", found)


def _reported(egress: dict[str, Any]) -> int:
    """Return the number of reported packets of the written flows alone."""
    reported: int = egress["reported"] - egress["refused"]
    return reported


def test_counts_too_large_for_an_event_do_not_end_a_run(
    installed: InstalledFence,
    state: StateDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = accounts.options(state, tmp_path / "events.jsonl")
    with command.running(*options) as running:
        conftest.load(installed.namespace, _write_counts(30))
        # The flows are read again when the total of refused packets has changed.
        attempts.attempt(installed.namespace, 7, 1, "udp4")
        accounts.until(lambda: _reported(_egress(state)) == 30 << 62)
        assert running.stop(signal.SIGTERM)[0] == 0
    egress = _egress(state)
    assert _reported(egress) == 30 << 62
    assert egress["counter_mismatch"] < 0
    # The totals rise while no reader runs, and are then higher than an event can contain.
    conftest.load(installed.namespace, _write_totals(installed))
    late_seconds = 1
    monkeypatch.setattr(gap_reports, "_LATE_NS", late_seconds * 10**9)
    time.sleep(late_seconds)
    with command.running(*options) as running:
        assert running.stop(signal.SIGTERM)[0] == 0
