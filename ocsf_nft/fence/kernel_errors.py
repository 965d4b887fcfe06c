"""Texts and exceptions for errors of the kernel that occur when a fence's tables are changed."""

from __future__ import annotations

import errno

from ocsf_nft.errors import FenceError, UnsupportedError


def ownership_failure(error: OSError) -> str:
    """Return, as text, why the kernel refused to change a fence's tables or the tables' owner.

    For a PermissionError, the reason is that another process owns the tables exclusively. For any
    other error, the reason is the error's text.
    """
    if isinstance(error, PermissionError):
        return "another process owns them exclusively"
    return error.strerror or str(error)


def ruleset_error(error: OSError) -> FenceError | UnsupportedError:
    """Return the exception to raise if the kernel has refused to load a fence.

    ``error`` is the kernel's error. The exception is an UnsupportedError if the kernel lacks
    a feature, else a FenceError.
    """
    reason = ownership_failure(error)
    if error.errno in {errno.ENOENT, errno.EOPNOTSUPP}:
        return UnsupportedError(f"this kernel can't do what the fence needs ({reason})")
    if isinstance(error, PermissionError):
        return FenceError(f"the fence's tables can't be changed: {reason}")
    return FenceError(f"the kernel refused the fence: {reason}")
