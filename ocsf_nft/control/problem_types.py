"""Kinds of problems of the control API, each for a class of this package's errors.

Server and clients use them, so an error has the same class on both sides.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ocsf_nft.errors import (
    AbsentError,
    ChangedError,
    ConflictError,
    ContainerRefusedError,
    DeliveryError,
    FenceError,
    OcsfNftError,
    SourceError,
    UnsupportedError,
    UsageError,
)


class MalformedError(UsageError):
    """Body of a request that is no JSON object."""


class ProblemType(NamedTuple):
    """Kind of a problem: its name (a URN), its HTTP status, and the class of the error."""

    urn: str
    status: int
    error: type[OcsfNftError]


def _kind(name: str, status: int, error: type[OcsfNftError]) -> ProblemType:
    return ProblemType(f"urn:ocsf-nft:problem:{name}", status, error)


#: All kinds; a subclass of an error comes before it.
TYPES: Final = (
    _kind("absent", 404, AbsentError),
    _kind("changed", 412, ChangedError),
    _kind("conflict", 409, ConflictError),
    _kind("refused", 403, ContainerRefusedError),
    _kind("malformed", 400, MalformedError),
    _kind("invalid", 422, UsageError),
    _kind("fence", 503, FenceError),
    _kind("unsupported", 503, UnsupportedError),
    _kind("source", 503, SourceError),
    _kind("delivery", 503, DeliveryError),
    _kind("failed", 503, OcsfNftError),
)
_BY_URN: Final = {each.urn: each for each in TYPES}


def type_of(error: OcsfNftError) -> ProblemType:
    """Return the kind of problem for an error."""
    return next(each for each in TYPES if isinstance(error, each.error))


def error_of(status: int, urn: object, sentence: str) -> OcsfNftError:
    """Return the error that a problem document reports.

    ``urn`` is the document's type. If it is unknown, the class of the error follows from the HTTP
    status.
    """
    known = _BY_URN.get(urn) if isinstance(urn, str) else None
    if known is not None:
        return known.error(sentence)
    return UsageError(sentence) if 400 <= status < 500 else DeliveryError(sentence)
