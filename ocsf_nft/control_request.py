"""Requests to the control API of the service, with the standard library only.

The OCI runtime wrapper and the CNI plugin use this module: they are started for each container, so
they import little. Other Python programs use ``ocsf_nft.Client``.
"""

from __future__ import annotations

import zlib
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from ocsf_nft.errors import OcsfNftError, reason_of
from ocsf_nft.quoted import quoted

#: Default path of the control socket of the service.
SOCKET: Final = "/run/ocsf-nft/control.sock"
#: Default time limit of a request, in seconds. A loaded host of two cores takes 8 s to fence 50
#: containers at once.
SECONDS: Final = 15.0
#: Statuses of answers to a release after which nothing is left to do: the container has no sandbox,
#: or others use its network, and its sandbox ends with them.
_RELEASED: Final = frozenset((404, 409))
_FIRST_ERROR: Final = 300
_DIGITS: Final = frozenset("0123456789abcdef")
_ID_LENGTH: Final = 64


class ServiceError(OcsfNftError):
    """Service that can't be reached, or an answer that is no answer of the control API."""


class ProblemError(OcsfNftError):
    """Problem (RFC 9457) that the service answered; the text is its ``detail``."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class ControlSocket(NamedTuple):
    """Control socket of the service, and the time limit of one request in seconds."""

    path: str = SOCKET
    seconds: float = SECONDS

    def request(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Send a request, and return the JSON object of the answer; empty for an answer without.

        ``path`` is the path of the URL, quoted. ``body`` is sent as JSON if it is not None. Call
        this method in the main thread only: the time limit is a timer of the process. Raises
        ServiceError without an answer of the service, ProblemError for an answer with an error.
        """
        from ocsf_nft.unix_http import exchange  # noqa: PLC0415 - slow, and seldom needed

        try:
            status, found = exchange(self.path, method, path, body, seconds=self.seconds)
        except TimeoutError as error:
            raise ServiceError(
                f"the service at {self.path} did not answer within {self.seconds:g} s: check "
                "`ocsf-nft status`, or raise the time limit"
            ) from error
        except ConnectionResetError as error:
            raise ServiceError(
                f"the service at {self.path} has ended before it answered: see its log, and try "
                "again"
            ) from error
        except PermissionError as error:
            raise ServiceError(
                f"connecting to {self.path} is not permitted: run as root, or as a member of the "
                "socket's group"
            ) from error
        except OSError as error:
            raise ServiceError(
                f"the service does not answer at {self.path} ({reason_of(error)}): start "
                "`ocsf-nft run` with this control socket"
            ) from error
        except ValueError as error:
            raise ServiceError(f"{self.path} is no control socket of ocsf-nft: {error}") from error
        if status >= _FIRST_ERROR:
            raise ProblemError(status, _sentence(status, found))
        return found

    def add_container(self, container: str, scope: str, facts: dict[str, Any]) -> None:
        """Fence a container; return when it may start.

        ``scope`` is that of :func:`container_path`. Raises the errors of :meth:`request`.
        """
        self.request("PUT", container_path(container, scope), facts)

    def release_container(self, container: str, scope: str) -> None:
        """End the sandbox of a deleted container, if it has one of its own.

        ``scope`` is that of :func:`container_path`. Raises ServiceError without an answer of the
        service, ProblemError if the service fails.
        """
        try:
            self.request("DELETE", container_path(container, scope))
        except ProblemError as error:
            if error.status not in _RELEASED:
                raise


def container_path(container: str, scope: str) -> str:
    """Return the path of the container with an id in the control API.

    Ids of Docker, Podman and Kubernetes are unique on a host. Other ids are unique only in their
    ``scope``, for example the state folder of a runtime, so a checksum of the scope is added. For
    example, `ctr` has such ids in each namespace of containerd.
    """
    is_unique = len(container) == _ID_LENGTH and _DIGITS.issuperset(container)
    # Python decodes bytes of a path that are no UTF-8 as surrogates.
    checksum = zlib.crc32(scope.encode(errors="surrogatepass"))
    key = container if is_unique else f"{container}-{checksum:08x}"
    return f"/v1/containers/{quote(key, safe='', errors='surrogatepass')}"


def _sentence(status: int, problem: dict[str, Any]) -> str:
    """Return the sentence of a problem, on one line."""
    for key in ("detail", "title"):
        text = problem.get(key)
        if isinstance(text, str) and text.strip():
            return text if text.isprintable() else quoted(text)
    return f"the service answered with status {status} and no reason"
