"""The host and the metadata in an event."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ocsf_nft.ocsf import context
from ocsf_nft.ocsf.event_codes import EventCode

if TYPE_CHECKING:
    import pytest


def test_host_is_as_the_kernel_describes_it() -> None:
    host = context.this_host()
    booted_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert host.boot_time_ns is not None
    # The kernel's value has whole seconds. A clock step would make a much larger difference.
    assert abs(host.boot_time_ns - booted_ns) < 5_000_000_000
    assert host.hostname == platform.node()
    assert host.kernel_release == os.uname().release
    assert host.boot_uid == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_host_without_procfs_leaves_out_what_it_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "_PROC", tmp_path)
    bare = context.this_host()
    assert (bare.boot_uid, bare.boot_time_ns, bare.is_virtual) == (None, None, False)
    assert bare.hostname == platform.node()
    (tmp_path / "cpuinfo").write_bytes(b"flags: fpu hypervisor \xff")
    for stat, boot_time_ns in (
        ("cpu 1 2\nbtime 1700000000\n", 1_700_000_000_000_000_000),
        ("btime\nbtime x\nbtimes 7\n", None),
    ):
        (tmp_path / "stat").write_text(stat)
        assert context.this_host().boot_time_ns == boot_time_ns
    assert not context.this_host().is_virtual
    (tmp_path / "cpuinfo").write_text("flags: fpu hypervisor")
    assert context.this_host().is_virtual


def test_own_metadata_has_the_time_in_milliseconds() -> None:
    metadata = context.own_metadata(
        "id", 1_767_225_600_123_999_999, code=EventCode.FAULT, context=context.Context()
    )
    assert (metadata.uid, metadata.processed_time) == ("id", 1_767_225_600_123)
