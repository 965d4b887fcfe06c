"""A sink that is standard output."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from ocsf_nft.config.sinks.base import SinkTable

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink


class StdoutSink(SinkTable):
    """JSON Lines on standard output."""

    is_local: ClassVar[bool] = True

    type: Literal["stdout"] = "stdout"
    batch_seconds: float = 0.0
    timeout_seconds: float | None = None

    @property
    def target(self) -> str:
        """What the command line calls it."""
        return "-"

    def sink(self) -> Sink:
        """The sink itself."""
        from ocsf_nft.delivery.sinks.stdout import Stdout  # noqa: PLC0415 - if configured

        return Stdout()
