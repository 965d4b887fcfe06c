"""What a file says of who did it: how hard to look."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ocsf_nft.config.base_table import Table
from ocsf_nft.config.store import Size


class AttributionConfig(Table):
    """How processes are named, ``[attribution]``.

    ``top`` is the best way that may be used: ``capture`` as it sends, by BPF; ``socket``, who has
    the socket afterwards; ``user``, nobody but the user. No record waits for longer than
    ``wait_ms`` to have its process named. The SHA-256 of its program is told where that is no
    larger than ``hash_max_bytes`` and can be read in that time; of none by default.
    """

    top: Literal["capture", "socket", "user"] = "capture"
    wait_ms: Annotated[int, Field(ge=1, le=10_000)] = 50
    hash_max_bytes: Annotated[Size, Field(ge=0)] = 0
