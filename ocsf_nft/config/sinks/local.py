"""Configuration of sinks on this host: types ``file``, ``stdout`` and ``unix``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from ocsf_nft.config.base_table import FileName, checked
from ocsf_nft.config.sinks.base import SinkTable
from ocsf_nft.errors import UsageError

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink
    from ocsf_nft.delivery.sinks.rotation import Rotation

#: Linux's limit, less the additions in an old file's name: a time, ".gz.part", two separators.
_NAME_BYTES: Final = 255 - 34


class FileSink(SinkTable):
    """JSON Lines in the file ``path``, which only this process appends to.

    With ``sync``, a batch counts as delivered only when it is on the disk. So a power cut drops no
    event, but each batch needs a separate write to the disk. Without ``sync``, a power cut or a
    crash of the system can drop the events of the last half minute.

    A full file is rotated: ``events.jsonl`` is renamed to ``events-20261125T204400.123456Z.jsonl``.
    A file is full if the next events would exceed ``rotate_bytes``. With ``rotate_seconds``, the
    first event of each new period also starts a new file. Periods are counted in UTC: 3600 means
    every full hour, 86400 every midnight. With ``compress``, the renamed file is compressed in the
    background, to ``….jsonl.gz``. The oldest renamed files are deleted if there are more than
    ``keep_files``, or if their total size is more than ``keep_bytes``. By default no file is
    deleted.

    If logrotate rotates the file, leave out ``rotate_bytes``, ``rotate_seconds``, ``compress``,
    ``keep_files`` and ``keep_bytes``. logrotate may rename the file, or truncate it (copytruncate).

    Choose a directory that no other user may write to. The sink follows a symbolic link only if the
    link belongs to root or to the user of `ocsf-nft run`. In a directory that all users may write
    to, the file must also belong to one of these two users. Only the owner and the group of a new
    file may read it. To give another group access to new files, set that group and the setgid bit
    on the directory.
    """

    type: Literal["file"] = "file"
    path: Annotated[Path, FileName]
    """File of the events, as JSON Lines."""
    sync: bool = True
    """Count a batch as delivered only when it is on the disk."""
    rotate_bytes: Annotated[int, Field(ge=1024)] | None = None
    """Rotate the file before it grows past this size."""
    rotate_seconds: Annotated[int, Field(ge=1)] | None = None
    """Rotate the file with each new period of this length in UTC."""
    keep_files: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of old files."""
    keep_bytes: Annotated[int, Field(ge=1024)] | None = None
    """Maximum size of all old files together."""
    compress: bool = False
    """Compress old files (gzip)."""
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
                    "has settings for old files, but never rotates: give rotate_bytes or "
                    "rotate_seconds"
                )
        elif len(os.fsencode(self.path.name)) > _NAME_BYTES:
            raise ValueError(f"path: old files need a name of at most {_NAME_BYTES} bytes")
        return self

    @property
    def file(self) -> Path:
        """Return the path of the sink's file; other processes must not write to this file."""
        return self.path

    @property
    def _target(self) -> str:
        return str(self.path)

    def _sink(self) -> Sink:
        from ocsf_nft.delivery.sinks.file import File  # noqa: PLC0415 - if configured

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

    type: Literal["stdout"] = "stdout"
    handshake: bool = False
    """Write a first line when every fence is active."""
    batch_seconds: Annotated[float, Field(ge=0, le=3600)] = 0.0
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] | None = None

    @property
    def file(self) -> Path:
        """Return ``/dev/stdout``, the path of the file that this sink writes to."""
        return Path("/dev/stdout")

    @property
    def writes(self) -> None:
        """Return None: the sink opens no file."""

    @property
    def _target(self) -> str:
        return "-"

    def _sink(self) -> Sink:
        from ocsf_nft.delivery.sinks.stdout import Stdout  # noqa: PLC0415 - if configured

        return Stdout()


#: Size of sun_path without its final NUL (unix(7)).
_SOCKET_PATH_BYTES: Final = 108 - 1


def _socket_path(text: str) -> Path:
    if text.startswith("@"):
        raise UsageError(
            "must be a file's path: a name that begins with @ has no permissions, so the first "
            "process that takes it would get the events"
        )
    if not text.startswith("/") or "\0" in text:
        raise UsageError("must be the absolute path of a socket")
    if len(os.fsencode(text)) > _SOCKET_PATH_BYTES:
        raise UsageError(f"must have at most {_SOCKET_PATH_BYTES} bytes: no socket's path has more")
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
    path: Annotated[Path, checked(_socket_path)]
    """Path of the Unix stream socket."""
    until_read: bool = True
    """Count an event as delivered only when the program has read it."""
    handshake: bool = False
    """Write a first line to each connection: every fence is active."""
    batch_seconds: Annotated[float, Field(ge=0, le=3600)] = 0.0

    @property
    def _target(self) -> str:
        return f"unix:{self.path}"

    def _sink(self) -> Sink:
        from ocsf_nft.delivery.sinks.unix import Unix  # noqa: PLC0415 - if configured

        return Unix(path=self.path, until_read=self.until_read)
