"""What the kernel's refusal means, where a fence is changed by a socket of our own."""

from __future__ import annotations

import errno

from ocsf_nft.errors import FenceError, UnsupportedError


def why_not_held(error: OSError) -> str:
    """Why tables can't be held, or changed where they are to be held."""
    if isinstance(error, PermissionError):
        return "another process holds them as its own"
    return error.strerror or str(error)


def of_ruleset(error: OSError) -> FenceError | UnsupportedError:
    """What to raise where the kernel does not take a fence."""
    why = why_not_held(error)
    if error.errno in {errno.ENOENT, errno.EOPNOTSUPP}:
        return UnsupportedError(f"this kernel can't do what the fence needs ({why})")
    if isinstance(error, PermissionError):
        return FenceError(f"the fence's tables can't be changed: {why}")
    return FenceError(f"the kernel refused the fence: {why}")
