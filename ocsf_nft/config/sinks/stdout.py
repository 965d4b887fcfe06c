"""What a file says of a sink that is standard output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ocsf_nft.config.sinks.base import SinkTable

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink


class StdoutSink(SinkTable):
    """JSON Lines on standard output.

    A pipe acknowledges nothing: what its reader had not read when it went away is lost, and the
    run ends. A reader that is slow is waited for. With ``handshake`` the first line tells that
    every fence stands and every record is read, and nothing comes before it.
    """

    is_local: ClassVar[bool] = True

    type: Literal["stdout"] = "stdout"
    handshake: bool = False
    batch_seconds: Annotated[float, Field(ge=0, le=3600)] = 0.0
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] | None = None

    @property
    def needs_handshake(self) -> bool:
        """Whether the first line that it gets is a handshake."""
        return self.handshake

    @property
    def file(self) -> Path:
        """The file that nobody else is to write to meanwhile."""
        return Path("/dev/stdout")

    @property
    def target(self) -> str:
        """What the command line calls it."""
        return "-"

    def sink(self) -> Sink:
        """The sink itself."""
        from ocsf_nft.delivery.sinks.stdout import Stdout  # noqa: PLC0415 - if configured

        return Stdout()
