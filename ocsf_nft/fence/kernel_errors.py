"""Explanation of the kernel's errors when our own socket changes a fence."""

from __future__ import annotations

import errno

from ocsf_nft.errors import FenceError, UnsupportedError


def ownership_failure(error: OSError) -> str:
    """Return why the exclusive ownership of tables, or a change to such tables, was refused."""
    if isinstance(error, PermissionError):
        return "another process owns them exclusively"
    return error.strerror or str(error)


def ruleset_error(error: OSError) -> FenceError | UnsupportedError:
    """Return the exception to raise when the kernel refuses a fence."""
    reason = ownership_failure(error)
    if error.errno in {errno.ENOENT, errno.EOPNOTSUPP}:
        return UnsupportedError(f"this kernel can't do what the fence needs ({reason})")
    if isinstance(error, PermissionError):
        return FenceError(f"the fence's tables can't be changed: {reason}")
    return FenceError(f"the kernel refused the fence: {reason}")
