"""The one error tree.

Every error carries one sentence for a person (the cause and, where there is one, the mend)
and the exit code that the command line documents for it.
"""

from __future__ import annotations

from typing import ClassVar


class OcsfNftError(Exception):
    """The root: anything that ocsf-nft reports instead of a traceback."""

    exit_code: ClassVar[int] = 3


class UsageError(OcsfNftError):
    """What was asked for makes no sense: a bad address, an unknown key, a missing option."""

    exit_code: ClassVar[int] = 2


class AbsentError(OcsfNftError):
    """What was asked about is not there: a namespace, a fence, a file."""

    exit_code: ClassVar[int] = 2


class UnsupportedError(OcsfNftError):
    """The system can't: the kernel lacks a feature, a tool is missing, a privilege is not held."""


class FenceError(OcsfNftError):
    """The kernel refused the ruleset, or the fence does not stand as it should."""


class SourceError(OcsfNftError):
    """The kernel's records can't be read."""


class DeliveryError(OcsfNftError):
    """Events can't be written: a full disk, a closed pipe, a path that is not ours."""
