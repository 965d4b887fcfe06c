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
    """Events can't be written or sent now: a full disk, a receiver that is down.

    ``after_seconds`` is how long a receiver asked to be left alone, None where it did not.
    """

    def __init__(self, sentence: str, *, after_seconds: float | None = None) -> None:
        super().__init__(sentence)
        self.after_seconds = after_seconds


class RefusedError(DeliveryError):
    """A receiver won't have a batch as it is: one of its events, or its size, is wrong."""


class ClosedError(DeliveryError):
    """What events are written to is gone for good: a pipe whose reader went away."""
