"""Path of a container in the control API."""

from __future__ import annotations

import zlib
from typing import Final
from urllib.parse import quote

_DIGITS: Final = frozenset("0123456789abcdef")
_ID_LENGTH: Final = 64


def container_path(container: str, scope: str) -> str:
    """Return the path of the container with an id.

    Ids of Docker, Podman and Kubernetes are unique on a host. Other ids are unique only in their
    ``scope``, for example the state folder of a runtime, so a checksum of the scope is added. For
    example, `ctr` has such ids in each namespace of containerd.
    """
    is_unique = len(container) == _ID_LENGTH and _DIGITS.issuperset(container)
    suffix = "" if is_unique else f"-{zlib.crc32(scope.encode()):08x}"
    return f"/v1/containers/{quote(container + suffix, safe='')}"
