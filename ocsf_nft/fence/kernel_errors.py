"""Texts and exceptions for an OSError that the kernel returned when we changed a fence's tables."""

from __future__ import annotations

import errno

from ocsf_nft.errors import FenceError, UnsupportedError


def ownership_failure(error: OSError) -> str:
    """Return the reason why the kernel refused to change tables, or to give us ownership of them.

    ``error`` is the kernel's error. For a PermissionError, the reason is that another process owns
    the tables exclusively. For any other error, the reason is the error's text.
    """
    if isinstance(error, PermissionError):
        return "another process owns them exclusively"
    return error.strerror or str(error)


def ruleset_error(error: OSError) -> FenceError | UnsupportedError:
    """Return the exception to raise if the kernel has refused to load a fence with ``error``.

    The result is an UnsupportedError if the kernel lacks a feature. In all other cases it is a
    FenceError.
    """
    reason = ownership_failure(error)
    if error.errno in {errno.ENOENT, errno.EOPNOTSUPP}:
        return UnsupportedError(f"this kernel can't do what the fence needs ({reason})")
    if isinstance(error, PermissionError):
        return FenceError(f"the fence's tables can't be changed: {reason}")
    return FenceError(f"the kernel refused the fence: {reason}")
