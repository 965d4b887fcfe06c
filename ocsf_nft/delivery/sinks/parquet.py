"""Sink for Parquet files at the paths that Amazon Security Lake reads for custom sources."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from ocsf_nft.delivery.sinks.base import BatchResult, Message, Sink
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ocsf_nft.delivery.parquet_columns import Struct
    from ocsf_nft.delivery.parquet_files import File, Maker


class Storage(Protocol):
    """Storage of Parquet files, each under a key (a relative path): a directory or a bucket."""

    async def open(self, prefix: str) -> None:
        """Check that files can be stored under keys that begin with ``prefix``.

        Raises DeliveryError if they can't.
        """

    async def close(self) -> None:
        """Close the storage."""

    async def put(self, key: str, content: bytes) -> None:
        """Store a file under ``key``; replace an existing file with the same key.

        Raises RefusedError if the file is too large, DeliveryError if storing fails for another
        reason.
        """


class Parquet(Sink):
    """Sink that stores events as Parquet files, one for each class and day of the events.

    ``columns`` maps each ``class_uid`` to the columns of that class. ``source_version`` is the
    version of the custom source in Security Lake, or an empty text without a version.
    """

    # A batch that is delivered again replaces its files, so each event is stored only once.
    repeats_batches = True

    def __init__(  # noqa: PLR0913 - the parts of a path
        self,
        *,
        storage: Storage,
        columns: Mapping[int, Struct],
        source: str,
        source_version: str,
        region: str,
        account: str,
    ) -> None:
        self._storage = storage
        self._columns = columns
        self._source = source
        self._source_version = source_version
        self._partition = f"region={region}/accountId={account}"
        self._maker: Maker | None = None
        self._thread: ThreadPoolExecutor | None = None

    async def open(self) -> None:
        """Open the storage; raises DeliveryError if files can't be stored there."""
        # The process that only creates a sink needs no library.
        from ocsf_nft.delivery.parquet_files import Maker  # noqa: PLC0415 - it needs pyarrow

        self._maker = Maker(self._columns)
        try:
            await self._storage.open(self._location(next(iter(self._columns))))
        except BaseException:
            await self._storage.close()
            raise
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="parquet")

    async def close(self) -> None:
        """Close the storage."""
        if self._thread is not None:
            # A running conversion is useless: its batch will be delivered again.
            self._thread.shutdown(wait=False, cancel_futures=True)
        await self._storage.close()

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        """Store events as Parquet files.

        The result lists events without a known class or a valid time as refused. Raises
        RefusedError if a file is larger than the storage allows. Raises DeliveryError for other
        failures.
        """
        if self._maker is None:
            raise DeliveryError("the storage of Parquet files is not open")
        loop = asyncio.get_running_loop()
        made = await loop.run_in_executor(self._thread, self._maker.make, messages)
        for file in made.files:
            await self._storage.put(self._key(file), file.content)
        return BatchResult(refused=made.refused)

    # ext/<source>-<class>/<version>/region=<region>/accountId=<account>/eventDay=<YYYYMMDD>/<name>
    # Source: "Collecting data from custom sources", Amazon Security Lake User Guide.

    def _location(self, class_uid: int) -> str:
        # Security Lake requires a separate custom source for each class.
        location = f"ext/{self._source}-{class_uid}"
        return f"{location}/{self._source_version}" if self._source_version else location

    def _key(self, file: File) -> str:
        folder = f"{self._location(file.class_uid)}/{self._partition}/eventDay={file.day}"
        return f"{folder}/{file.name}"
