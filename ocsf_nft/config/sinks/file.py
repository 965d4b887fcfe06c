"""A sink that is a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from ocsf_nft.config.sinks.base import SinkTable
from ocsf_nft.config.tables import FileName

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink


class FileSink(SinkTable):
    """JSON Lines in the file ``path``."""

    is_local: ClassVar[bool] = True

    type: Literal["file"] = "file"
    path: Annotated[Path, FileName]
    batch_seconds: float = 0.0
    timeout_seconds: float | None = None

    @property
    def target(self) -> str:
        """The file's path."""
        return str(self.path)

    def sink(self) -> Sink:
        """The sink itself."""
        from ocsf_nft.delivery.sinks.file import File  # noqa: PLC0415 - what is configured alone

        return File(path=self.path)
