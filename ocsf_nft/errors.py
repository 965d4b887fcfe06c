"""Errors of the package.

Every error has one sentence for people: the cause and, if there is one, the remedy. It also has the
exit code that the command line documents.
"""

from __future__ import annotations

from typing import ClassVar


class OcsfNftError(Exception):
    """Base of all errors that ocsf-nft reports without a traceback.

    ``exit_code`` is the exit code of the command line.
    """

    exit_code: ClassVar[int] = 3


class UsageError(OcsfNftError):
    """Invalid request: a bad address, an unknown key, a missing option."""

    exit_code: ClassVar[int] = 2


class AbsentError(OcsfNftError):
    """Missing object: a namespace, a fence, a file."""

    exit_code: ClassVar[int] = 2


class UnsupportedError(OcsfNftError):
    """Missing kernel feature, tool or privilege."""


class FenceError(OcsfNftError):
    """Rejection of a ruleset by the kernel, or a fence that is not active as requested."""


class SourceError(OcsfNftError):
    """Failure to read input: the kernel's log records, a stored state, a file."""


class DeliveryError(OcsfNftError):
    """Failure to write or send events now, for instance to a full disk; a retry may succeed.

    ``after_seconds`` is the delay before a retry that the receiver requested. It is None if the
    receiver requested no delay.
    """

    def __init__(self, sentence: str, *, after_seconds: float | None = None) -> None:
        super().__init__(sentence)
        self.after_seconds = after_seconds


class RefusedError(DeliveryError):
    """Refusal of a batch of events by a receiver, because of one event or because of its size."""


class ClosedError(DeliveryError):
    """Output that is closed permanently, such as a pipe without a reader; a retry can't succeed."""


def reason_of(error: BaseException) -> str:
    """Return the text of an error, without the number that Python adds to a system error."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
