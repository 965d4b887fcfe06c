"""Output of a conversion as Parquet files, with the paths that the sink ``parquet`` gives them."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

from ocsf_nft.config.sinks.columns import columns
from ocsf_nft.delivery.parquet_files import Maker
from ocsf_nft.delivery.parquet_layout import Layout
from ocsf_nft.delivery.sinks.base import Message
from ocsf_nft.errors import DeliveryError, UsageError
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from pathlib import Path

    from _typeshed import ReadableBuffer

#: Defaults of the sink.
_SOURCE: Final = "ocsf-nft"
_ACCOUNT: Final = "external"
_REGION: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
#: Size of the events of a file, as JSON: about 20,000 events, as data lakes prefer large files.
_BATCH_BYTES: Final = 64 << 20
_UID: Final = re.compile(rb'"metadata":\{"version":"[^"]*","uid":"([0-9a-f-]{36})"')


class ParquetOutput:
    """Writer of Parquet files below a directory.

    Each process of a conversion writes files of its own.
    """

    def __init__(self, directory: Path, version: str, region: str) -> None:
        """Create the output of events of an OCSF version in a new or empty directory.

        Raises UsageError if the directory has files or the region is invalid, and DeliveryError if
        the directory can't be made.
        """
        if not _REGION.fullmatch(region):
            raise UsageError(f"{quoted(region)} is no region: give one such as eu-central-1")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            is_empty = not any(directory.iterdir())
        except OSError as error:
            raise DeliveryError(f"{directory} can't be used: {error.strerror}") from error
        if not is_empty:
            raise UsageError(f"{directory} has files: give a new or an empty directory to --output")
        self._directory = directory
        self._layout = Layout(_SOURCE, version, region, _ACCOUNT)
        self._maker = Maker(columns(version))
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0

    def form(self, events: ReadableBuffer) -> bytes:
        """Take events; write a file if enough have arrived.

        Return no bytes, because standard output gets none. Raises DeliveryError if a file can't be
        written.
        """
        content = bytes(events)
        self._waiting.append(content)
        self._waiting_bytes += len(content)
        if self._waiting_bytes >= _BATCH_BYTES:
            self.finish()
        return b""

    def finish(self) -> None:
        """Write the events that wait; raises DeliveryError if a file can't be written."""
        lines = b"".join(self._waiting).splitlines()
        self._waiting.clear()
        self._waiting_bytes = 0
        if not lines:
            return
        files, refused = self._maker.make([Message(_uid(line), line) for line in lines])
        for file in files:
            self._write(self._directory / self._layout.key(file), file.content)
        if refused:
            raise DeliveryError(f"{len(refused)} events have no row: {refused[0].reason}")

    def _write(self, path: Path, content: bytes) -> None:
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(content)
            part.rename(path)
        except OSError as error:
            raise DeliveryError(f"{path} can't be written: {error.strerror}") from error


def _uid(line: bytes) -> str:
    found = _UID.search(line)
    return hashlib.blake2b(line).hexdigest() if found is None else found[1].decode()
