"""Tests of exported journal entries, in JSON and in the export format."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.record import LogHost
from ocsf_nft.sources.replay.journal_entry import from_export, from_json

if TYPE_CHECKING:
    from ocsf_nft.sources.replay.logged_line import LoggedLine

_FIELDS: Final = {
    "MESSAGE": "text",
    "_TRANSPORT": "kernel",
    "SYSLOG_FACILITY": "0",
    "__REALTIME_TIMESTAMP": "1700000000000500",
    "__MONOTONIC_TIMESTAMP": "9000300",
    "_SOURCE_MONOTONIC_TIMESTAMP": "9000000",
}


def _entry(**changes: str | None) -> LoggedLine:
    """Return the entry of these fields, without those that are None."""
    fields = {name: value for name, value in (_FIELDS | changes).items() if value is not None}
    found = from_export({name: value.encode() for name, value in fields.items()})
    assert found is not None
    assert found == from_json(json.dumps(fields).encode())
    return found


def test_journal_entry_has_the_kernels_time_if_it_is_earlier() -> None:
    read_us, monotonic = 1_700_000_000_000_500, "__MONOTONIC_TIMESTAMP"
    kernel = "_SOURCE_MONOTONIC_TIMESTAMP"
    for changes, time_us in (
        ({}, read_us - 300),
        ({kernel: "9000299"}, read_us - 1),
        ({kernel: "9000300"}, read_us),
        ({kernel: "9000301"}, read_us),
        ({kernel: None}, read_us),
        ({monotonic: None}, read_us),
        ({monotonic: None, kernel: None}, read_us),
        ({kernel: "-1"}, read_us),
        ({kernel: "9e3"}, read_us),
        ({kernel: ""}, read_us),
    ):
        assert _entry(**changes).time_ns == time_us * 1000, changes
    without: dict[str, Any] = {monotonic: None, kernel: None}
    for stamp, stamp_ns in (
        (None, None),
        ("x", None),
        ("0", 0),
        # JSON numbers are exact up to 2 to the power of 53.
        ("9007199254740991", 9_007_199_254_740_991_000),
        ("9007199254740992", None),
        ("00000000000000001", None),
    ):
        found = _entry(**without, __REALTIME_TIMESTAMP=stamp)
        assert (found.time_ns, found.stamp) == (stamp_ns, stamp), stamp


def test_line_without_a_journal_entry_gives_none() -> None:
    for line in (b"", b"{", b"null", b"5", b'"MESSAGE"', b'["MESSAGE"]', b"{}", b'{"A": "b"}'):
        assert from_json(line) is None, line
    for value, message in (("text", "text"), ([116, 101], "te"), (None, None), ([256], None)):
        found = from_json(json.dumps({"MESSAGE": value}).encode())
        assert (found and found.message) == message, value
    assert from_export({"CURSOR": b"c"}) is None


def test_journal_entry_gives_an_author_other_than_the_kernel() -> None:
    for changes, author in (
        ({}, None),
        ({"SYSLOG_FACILITY": "1"}, "a program of facility 1"),
        ({"_TRANSPORT": "syslog", "_COMM": "logger", "SYSLOG_IDENTIFIER": "me"}, "logger"),
        ({"_TRANSPORT": "syslog", "SYSLOG_IDENTIFIER": "me"}, "me"),
        ({"_TRANSPORT": "syslog"}, "syslog"),
        ({"_TRANSPORT": None}, "an unknown transport"),
    ):
        assert _entry(**changes).author == author, changes


def test_journal_stamp_has_at_most_16_digits_and_53_bits() -> None:
    largest = (1 << 53) - 1
    for stamp, time_ns in (
        (str(largest), largest * 1000), (str(largest + 1), None), (f"{largest:017}", None),
        ("0" * 16, 0), ("0" * 17, None), ("-1", None), ("", None),
    ):  # fmt: skip
        changes = {"__REALTIME_TIMESTAMP": stamp, "_SOURCE_MONOTONIC_TIMESTAMP": None}
        assert _entry(**changes).time_ns == time_ns, stamp


def test_journal_entry_names_its_host_boot_and_machine() -> None:
    boot, machine = "7d0d2a3f34f54f3e9c5b0a8f7b0f5e11", "0123456789abcdef0123456789abcdef"
    found = _entry(_HOSTNAME="web-1", _BOOT_ID=boot, _MACHINE_ID=machine).host
    assert found == LogHost(name="web-1", boot_id=boot, machine_id=machine)
    odd = _entry(_HOSTNAME="h" * 999, _BOOT_ID=boot.upper(), _MACHINE_ID=f"{machine}0").host
    assert odd == LogHost(name="h" * 255)
    assert _entry(_BOOT_ID=boot).host is None
    assert _entry(_HOSTNAME="").host is None
