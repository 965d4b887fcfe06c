"""Configuration of a sink of type ``stdout``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ocsf_nft.config.sinks.base import SinkTable

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink


class StdoutSink(SinkTable):
    """JSON Lines on standard output.

    An event counts as delivered when it is written. Standard output may be a pipe. If the pipe is
    full, the sink waits until the reader reads from it. If the reader closes the pipe,
    `ocsf-nft run` ends, and the events in the pipe are dropped. The events that are not written yet
    stay in the store.

    With ``handshake``, the first line reports that every fence is active. The line also reports
    that `ocsf-nft run` has begun to read all sources of log records. Nothing is written before that
    line.
    """

    is_local: ClassVar[bool] = True

    type: Literal["stdout"] = "stdout"
    handshake: bool = False
    batch_seconds: Annotated[float, Field(ge=0, le=3600)] = 0.0
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] | None = None

    @property
    def needs_handshake(self) -> bool:
        """Return true if a JSON line, the handshake, is written before the first event.

        The line reports that every fence is active.
        """
        return self.handshake

    @property
    def file(self) -> Path:
        """Return ``/dev/stdout``, the path of the file that this sink writes to."""
        return Path("/dev/stdout")

    @property
    def target(self) -> str:
        """Return the sink's default name ``-``, which means standard output on the command line."""
        return "-"

    def sink(self) -> Sink:
        """Create the sink that writes to standard output."""
        from ocsf_nft.delivery.sinks.stdout import Stdout  # noqa: PLC0415 - if configured

        return Stdout()
