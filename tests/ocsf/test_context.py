"""The host and the metadata in an event."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

from ocsf_nft.ocsf import context


def test_host_is_as_the_kernel_describes_it() -> None:
    host = context.this_host()
    booted_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert host.boot_time_ns is not None
    # The kernel's value has whole seconds. A clock step would make a much larger difference.
    assert abs(host.boot_time_ns - booted_ns) < 5_000_000_000
    assert host.hostname == platform.node()
    assert host.kernel_release == os.uname().release
    assert host.boot_uid == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_own_metadata_has_the_time_in_milliseconds() -> None:
    metadata = context.own_metadata("id", 1_767_225_600_123_999_999)
    assert (metadata.uid, metadata.processed_time) == ("id", 1_767_225_600_123)
