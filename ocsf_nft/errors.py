"""Errors of the package.

The text of every error is one sentence for people: the cause and, if there is one, the remedy.
"""

from __future__ import annotations

from typing import ClassVar


class OcsfNftError(Exception):
    """Base of all errors that ocsf-nft shows as one sentence, without a traceback.

    If the error ends the program, ``exit_code`` is the program's exit code.
    """

    exit_code: ClassVar[int] = 3


class UsageError(OcsfNftError):
    """Invalid request, for example a bad address, an unknown key or a missing option."""

    exit_code: ClassVar[int] = 2


class ConflictError(UsageError):
    """Valid request that contradicts the present state, for example the name of another sandbox."""


class ContainerRefusedError(UsageError):
    """Refusal of the start of a container, by a policy or because it can't be fenced."""


class ChangedError(ConflictError):
    """Request for a state that another request has changed meanwhile."""


class AbsentError(OcsfNftError):
    """Missing object, for example a namespace, a fence or a file."""

    exit_code: ClassVar[int] = 2


class UnsupportedError(OcsfNftError):
    """Missing kernel feature, tool or privilege."""


class FenceError(OcsfNftError):
    """Failure to install, read or check a fence: for example, the kernel rejects the rules."""


class SourceError(OcsfNftError):
    """Failure to read input, such as log records, a database or a file."""


class DeliveryError(OcsfNftError):
    """Failure to write or send, for example because a disk is full; a later retry may succeed.

    ``after_seconds`` is the pause that the receiver requested before the retry, or None.
    """

    def __init__(self, sentence: str, *, after_seconds: float | None = None) -> None:
        super().__init__(sentence)
        self.after_seconds = after_seconds


class RefusedError(DeliveryError):
    """Refusal of a whole batch by a receiver, because of the batch's size or one of its events."""


class ClosedError(DeliveryError):
    """Permanent failure of an output, such as a pipe without a reader; a retry can't succeed."""


def reason_of(error: BaseException) -> str:
    """Return the text of an error without its errno, for example "No such file or directory"."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
