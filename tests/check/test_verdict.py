"""Tests of the exit code of ``check``. Tests of the findings themselves are in tests/kernel."""

from __future__ import annotations

import pytest

from ocsf_nft.check import Finding, Severity, exit_code

_FATAL = ("nft", "fence")
_OTHERS = (
    *("namespaces", "nflog", "nflog-reader", "kernel-log", "all-netns"),
    *("kmsg-reader", "journal-reader", "guard", "nat"),
)


def _found(missing: str) -> list[Finding]:
    def finding(name: str, if_missing: Severity) -> Finding:
        severity = if_missing if name in missing.split() else "ok"
        return Finding(name=name, severity=severity, meaning="")

    return [
        *(finding(name, "fatal") for name in _FATAL),
        *(finding(name, "degraded") for name in _OTHERS),
        finding("forwarding", "info"),
        finding("drops", "blocked"),
    ]


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        ("", 0),
        ("guard namespaces", 0),
        ("forwarding", 0),
        ("nat", 0),
        ("kernel-log all-netns kmsg-reader journal-reader", 0),
        ("nflog", 0),
        ("nflog-reader", 0),
        ("nflog nflog-reader kmsg-reader", 0),
        ("nflog nflog-reader journal-reader", 0),
        ("nflog kernel-log", 1),
        ("nflog all-netns", 1),
        ("nflog kmsg-reader journal-reader", 1),
        ("nflog-reader kernel-log", 1),
        ("nflog-reader all-netns", 1),
        ("nflog-reader kmsg-reader journal-reader", 1),
        ("drops", 1),
        ("drops nflog kernel-log", 1),
        ("nft", 3),
        ("fence", 3),
        ("fence nflog kernel-log", 3),
        ("fence drops", 3),
    ],
)
def test_exit_code_is_0_with_one_way_to_log_and_read_and_no_blocked_traffic(
    missing: str, code: int
) -> None:
    assert exit_code(_found(missing)) == code
