"""Configuration of a sink of type ``unix``."""

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

#: Size of sun_path without its final NUL (unix(7)).
_PATH_BYTES: Final = 108 - 1


def _path(text: str) -> Path:
    if text.startswith("@"):
        raise UsageError(
            "must be a file's path: a name that begins with @ has no permissions, so the first "
            "process that takes it would get the events"
        )
    if not text.startswith("/") or "\0" in text:
        raise UsageError("must be the absolute path of a socket")
    if len(os.fsencode(text)) > _PATH_BYTES:
        raise UsageError(f"must have at most {_PATH_BYTES} bytes: no socket's path has more")
    return Path(text)


class UnixSink(SinkTable):
    """JSON Lines to the program that listens on the Unix stream socket at ``path``.

    With ``until_read``, an event counts as delivered when the program has read it. Without
    ``until_read``, an event counts as delivered when it is in the socket's buffer. Such an event is
    dropped if the program exits before it reads the event. In both cases, there is no
    acknowledgement that the program has processed an event.

    If a connection breaks, its last line may be incomplete, without a line end. The next connection
    may repeat events of the broken connection.

    With ``handshake``, the first line of each connection reports that every fence is active. The
    line also reports that `ocsf-nft run` has begun to read all sources of log records. Nothing is
    sent before that line.

    Choose a path in a directory that only the program's user may write to. Otherwise another user's
    process could listen at the path and get the events.
    """

    type: Literal["unix"]
    path: Annotated[Path, checked(_path)]
    until_read: bool = True
    handshake: bool = False
    batch_seconds: Annotated[float, Field(ge=0, le=3600)] = 0.0

    @property
    def needs_handshake(self) -> bool:
        """Return true if the sink sends a JSON line, the handshake, first on each connection.

        The line reports that every fence is active. The receiver does not answer.
        """
        return self.handshake

    @property
    def target(self) -> str:
        """Return the sink's default name: ``unix:`` and the socket's path."""
        return f"unix:{self.path}"

    def sink(self) -> Sink:
        """Create the sink that this table of the configuration describes."""
        from ocsf_nft.delivery.sinks.unix import Unix  # noqa: PLC0415 - if configured

        return Unix(path=self.path, until_read=self.until_read)
