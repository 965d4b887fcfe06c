"""Errors of the package.

The text of every error is one sentence for people: the cause and, if there is one, the remedy.
Every error also has the exit code that the command line documents for it.
"""

from __future__ import annotations

from typing import ClassVar


class OcsfNftError(Exception):
    """Base of all errors that ocsf-nft reports as one sentence, without a traceback.

    ``exit_code`` is the exit code of the program if this error ends it.
    """

    exit_code: ClassVar[int] = 3


class UsageError(OcsfNftError):
    """Invalid request, for example a bad address, an unknown key or a missing option."""

    exit_code: ClassVar[int] = 2


class AbsentError(OcsfNftError):
    """Missing object, for example a namespace, a fence or a file."""

    exit_code: ClassVar[int] = 2


class UnsupportedError(OcsfNftError):
    """Missing kernel feature, tool or privilege."""


class FenceError(OcsfNftError):
    """Failure of a fence: the kernel rejected its rules, or it is not active as requested."""


class SourceError(OcsfNftError):
    """Failure to read input, for example the kernel's log records, a stored state or a file."""


class DeliveryError(OcsfNftError):
    """Failure to write or send events now, for example to a full disk; a later retry may succeed.

    ``after_seconds`` is the pause that the receiver requested before the retry. It is None if the
    receiver requested no pause.
    """

    def __init__(self, sentence: str, *, after_seconds: float | None = None) -> None:
        super().__init__(sentence)
        self.after_seconds = after_seconds


class RefusedError(DeliveryError):
    """Refusal of a whole batch by a receiver, because of one event in it or because of its size."""


class ClosedError(DeliveryError):
    """Output that is closed permanently, such as a pipe without a reader; a retry can't succeed."""


def reason_of(error: BaseException) -> str:
    """Return the text of an error, for example "No such file or directory".

    For an error of the system, Python's text has an error number (errno) too; it is omitted.
    """
    return (isinstance(error, OSError) and error.strerror) or str(error)
