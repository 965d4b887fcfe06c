"""Identifier of the current boot."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ocsf_nft.errors import UnsupportedError

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Return the kernel's random id of this boot: 32 hexadecimal digits, as in the journal.

    Raises UnsupportedError if /proc can't be read.
    """
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip().replace("-", "")
    except OSError as error:
        raise UnsupportedError(
            f"the boot id can't be read ({error.strerror}): mount procfs at /proc"
        ) from error
