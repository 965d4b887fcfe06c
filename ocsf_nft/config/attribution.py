"""Configuration of the attribution of packets to processes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ocsf_nft.config.base_table import Table
from ocsf_nft.config.store import Size


class AttributionConfig(Table):
    """Attribution of packets to processes, ``[attribution]``.

    ``method`` is the best method that is used: ``capture`` (BPF programs see the process when it
    sends), ``socket`` (the process that has the socket afterwards) or ``user`` (only the user). No
    record waits longer than ``wait_ms`` for its process. An event has the SHA-256 of the program if
    the file has at most ``hash_max_bytes`` and can be read in that time; 0, the default: never.
    """

    method: Literal["capture", "socket", "user"] = "capture"
    wait_ms: Annotated[int, Field(ge=1, le=10_000)] = 50
    hash_max_bytes: Annotated[Size, Field(ge=0)] = 0
