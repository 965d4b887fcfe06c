"""Tests of the finding about missing capabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocsf_nft.check import host_features

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

_ALL = (1 << 41) - 1


def test_capabilities_finding_names_the_missing_effective_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    status = tmp_path / "status"
    monkeypatch.setattr(host_features, "_STATUS", status)
    # Bits of include/uapi/linux/capability.h.
    for missing, severity, names in (
        ([], "ok", []),
        ([12], "degraded", ["NET_ADMIN"]),
        ([19, 21], "degraded", ["SYS_ADMIN", "SYS_PTRACE"]),
        ([34, 38, 39], "info", ["BPF", "PERFMON", "SYSLOG"]),
        ([12, 39], "degraded", ["NET_ADMIN", "BPF"]),
        ([0], "ok", []),
    ):
        effective = _ALL - sum(1 << bit for bit in missing)
        status.write_text(
            f"Name:\tCapEff:\nCapPrm:\t{_ALL:016x}\nCapEff:\t{effective:016x}\nCapBnd:\t{_ALL:016x}\n"
        )
        found = host_features.privileges()
        assert found.severity == severity, missing
        every = ["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE", "BPF", "PERFMON", "SYSLOG"]
        assert found.meaning.startswith("not held: " if names else "held: ")
        named = [name for name in every if f"CAP_{name}" in found.meaning]
        assert named == (names or every)
