"""Configuration of the attribution of packets to processes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ocsf_nft.config.base_table import Table
from ocsf_nft.config.store import Size


class AttributionConfig(Table):
    """Attribution of packets to the processes that sent them, table ``[attribution]`` in the file.

    ``method`` is the first method that is tried to find the process. If it does not work, a weaker
    method is used. With ``capture``, BPF programs record the process at the time when it sends.
    With ``socket``, an event names the process that has the socket when the packet's log record
    arrives. With ``user``, an event names only the user. The search for the process delays a log
    record by at most ``wait_ms``.

    An event has the SHA-256 of the process's program file if the file has at most
    ``hash_max_bytes``. The hash is missing if the file can't be read within ``wait_ms``. If
    ``hash_max_bytes`` is 0 (the default), no event has a hash.
    """

    method: Literal["capture", "socket", "user"] = "capture"
    """Best attribution method that may be used."""
    wait_ms: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Maximum time that a record waits for its process, in milliseconds."""
    hash_max_bytes: Annotated[Size, Field(ge=0)] = 0
    """Hash programs (SHA-256) up to this size; 0: none."""
