"""What an event says of the host and of itself."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

from ocsf_nft.ocsf import context


def test_host_is_the_one_that_the_kernel_describes() -> None:
    host = context.this_host()
    booted_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert host.boot_time_ns is not None
    # The kernel gives whole seconds; a clock that is set meanwhile would differ by much more.
    assert abs(host.boot_time_ns - booted_ns) < 5_000_000_000
    assert host.hostname == platform.node()
    assert host.kernel_release == os.uname().release
    assert host.boot_uid == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_own_metadata_has_the_time_in_milliseconds() -> None:
    metadata = context.own_metadata("id", 1_767_225_600_123_999_999)
    assert (metadata.uid, metadata.processed_time) == ("id", 1_767_225_600_123)
