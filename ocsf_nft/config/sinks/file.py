"""What a file says of a sink that is a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from ocsf_nft.config.base_table import FileName
from ocsf_nft.config.sinks.base import SinkTable

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink
    from ocsf_nft.delivery.sinks.rotation import Rotation

#: What Linux takes, less what an old file's name has besides: a moment, ".gz.part", two marks.
_NAME_BYTES: Final = 255 - 34


class FileSink(SinkTable):
    """JSON Lines in the file ``path``, appended to by this process alone.

    With ``sync`` a batch is on the disk when it counts as delivered, so that a power cut loses
    none; without it up to half a minute of events is lost then, of a crash of the system too. It
    costs one write to the disk for each batch.

    A file becomes an old one before it grows past ``rotate_bytes``, and with the first event of
    each new ``rotate_seconds`` of UTC: 3600 is on the hour, 86400 at midnight. ``events.jsonl`` is
    then ``events-20261125T204400.123456Z.jsonl``; with ``compress`` that is ``….jsonl.gz`` some
    time later. The last ``keep_files`` are kept, and of those what is within ``keep_bytes``; by
    default all are. Where logrotate does all that, leave these keys out: it may rename the file,
    or empty it in its place.

    Choose a directory that nobody else may write to. A symbolic link is followed when it is root's
    or our own; in a directory that everybody may write to, a file that somebody else made is not
    written to. New files are for their owner and group alone: for a group of readers, give the
    directory that group and the setgid bit.
    """

    is_local: ClassVar[bool] = True

    type: Literal["file"] = "file"
    path: Annotated[Path, FileName]
    sync: bool = True
    rotate_bytes: Annotated[int, Field(ge=1024)] | None = None
    rotate_seconds: Annotated[int, Field(ge=1)] | None = None
    keep_files: Annotated[int, Field(ge=1)] | None = None
    keep_bytes: Annotated[int, Field(ge=1024)] | None = None
    compress: bool = False
    batch_seconds: Annotated[float, Field(ge=0, le=3600)] = 0.0
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] | None = None

    @field_validator("path")
    @classmethod
    def _is_a_file(cls, path: Path) -> Path:
        if path == Path("-"):
            raise ValueError('must be a file: for standard output, give type = "stdout" instead')
        return path

    @model_validator(mode="after")
    def _has_old_files(self) -> Self:
        if self.rotate_bytes is None and self.rotate_seconds is None:
            if (self.keep_files, self.keep_bytes, self.compress) != (None, None, False):
                raise ValueError(
                    "says what becomes of old files, and never makes one: give rotate_bytes or "
                    "rotate_seconds"
                )
        elif len(os.fsencode(self.path.name)) > _NAME_BYTES:
            raise ValueError(f"path: old files need a name of at most {_NAME_BYTES} bytes")
        return self

    @property
    def file(self) -> Path:
        """The file that nobody else is to write to meanwhile."""
        return self.path

    @property
    def target(self) -> str:
        """The file's path."""
        return str(self.path)

    def sink(self) -> Sink:
        """The sink itself."""
        from ocsf_nft.delivery.sinks.file import File  # noqa: PLC0415 - what is configured alone

        return File(path=self.path, sync=self.sync, rotation=self._rotation())

    def _rotation(self) -> Rotation | None:
        if self.rotate_bytes is None and self.rotate_seconds is None:
            return None
        from ocsf_nft.delivery.sinks.rotation import Rotation  # noqa: PLC0415 - the same

        return Rotation(
            full_bytes=self.rotate_bytes,
            full_seconds=self.rotate_seconds,
            keep_files=self.keep_files,
            keep_bytes=self.keep_bytes,
            compress=self.compress,
        )
