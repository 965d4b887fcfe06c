"""Errors that a client of the control API raises: the same as those of the service."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from ocsf_nft.control.problem_types import error_of
from ocsf_nft.errors import AbsentError, DeliveryError, UnsupportedError, reason_of

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.errors import OcsfNftError

#: Time for an answer. The service waits for its kernel, and for other calls for the same sandbox.
ANSWER_SECONDS: Final = 60.0


class NoServiceError(AbsentError):
    """Socket at which no service listens."""


class IncompleteError(DeliveryError):
    """Answer of a service that did not arrive completely, for example because it was killed."""


def failure(status: int, body: bytes) -> OcsfNftError:
    """Return the error that an answer with an HTTP status of 400 or more reports."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("detail"), str):
        return DeliveryError(f"the service answered with HTTP status {status}: is it ocsf-nft?")
    return error_of(status, found.get("type"), found["detail"])


def unreachable(path: Path, error: OSError) -> OcsfNftError:
    """Return the error about a socket to which no connection can be made."""
    if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
        return NoServiceError(
            f"no service listens at {path}: start `ocsf-nft run` with the key control, or name the "
            "right --control"
        )
    if isinstance(error, PermissionError):
        return UnsupportedError(
            f"connecting to {path} is not permitted: run as root, or as a member of the socket's "
            "group"
        )
    return DeliveryError(f"the service at {path} can't be reached: {reason_of(error)}")


def interrupted(path: Path, reason: str) -> IncompleteError:
    """Return the error about an answer that did not arrive completely."""
    return IncompleteError(
        f"the service at {path} did not answer completely ({reason}): see its log, then try again"
    )


def late(path: Path, seconds: float) -> IncompleteError:
    """Return the error about an answer that did not arrive within ``seconds``."""
    return interrupted(path, f"no answer within {seconds:.0f} s")
