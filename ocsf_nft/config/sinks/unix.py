"""What a file says of a sink of type ``unix``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field

from ocsf_nft.config.base_table import checked
from ocsf_nft.config.sinks.base import SinkTable
from ocsf_nft.errors import UsageError

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink

#: sun_path, and the NUL that ends it (unix(7)).
_PATH_BYTES: Final = 108 - 1


def _path(text: str) -> Path:
    if text.startswith("@"):
        raise UsageError(
            "must be a file's path: a name that begins with @ has no permissions, and whoever is "
            "the first to take it gets the events"
        )
    if not text.startswith("/") or "\0" in text:
        raise UsageError("must be the path of a socket, from / on")
    if len(os.fsencode(text)) > _PATH_BYTES:
        raise UsageError(f"must have at most {_PATH_BYTES} bytes: no socket's path has more")
    return Path(text)


class UnixSink(SinkTable):
    """JSON Lines to the program that listens on the Unix stream socket at ``path``.

    With ``until_read`` an event counts as delivered when the program has read it; without it, when
    the system has it, which is then lost if the program dies before it reads. Nothing says what
    the program does with an event. After a connection broke it may get events twice, and of the
    last one before that a part, without a line end. With ``handshake`` the first line of each
    connection tells that every fence stands and every record is read.

    Choose a path in a directory that only the program's user may write to: whoever listens there
    gets the events.
    """

    type: Literal["unix"]
    path: Annotated[Path, checked(_path)]
    until_read: bool = True
    handshake: bool = False
    batch_seconds: Annotated[float, Field(ge=0, le=3600)] = 0.0

    @property
    def needs_handshake(self) -> bool:
        """Whether the first line that it gets is a handshake."""
        return self.handshake

    @property
    def target(self) -> str:
        """The socket's path."""
        return f"unix:{self.path}"

    def sink(self) -> Sink:
        """The sink itself."""
        from ocsf_nft.delivery.sinks.unix import Unix  # noqa: PLC0415 - what is configured alone

        return Unix(path=self.path, until_read=self.until_read)
