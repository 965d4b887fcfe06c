"""Sink for Parquet files at the paths that Amazon Security Lake reads for custom sources."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ocsf_nft.delivery.sinks.base import BatchResult, Message, Sink
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ocsf_nft.delivery.object_storage import Storage
    from ocsf_nft.delivery.parquet_columns import Struct
    from ocsf_nft.delivery.parquet_files import Maker
    from ocsf_nft.delivery.parquet_layout import Layout


@dataclass(kw_only=True, eq=False, repr=False)
class Parquet(Sink):
    """Sink that stores events as Parquet files, one for each class and day of the events."""

    # A batch that is delivered again replaces its files, so each event is stored only once.
    repeats_batches = True

    storage: Storage
    #: Columns of each class, by ``class_uid``.
    columns: Mapping[int, Struct]
    layout: Layout
    _maker: Maker | None = field(init=False, default=None)
    _thread: ThreadPoolExecutor | None = field(init=False, default=None)

    async def open(self) -> None:
        """Open the storage; raises DeliveryError if files can't be stored there."""
        # The process that only creates a sink needs no library.
        from ocsf_nft.delivery.parquet_files import Maker  # noqa: PLC0415 - it needs pyarrow

        self._maker = Maker(self.columns)
        try:
            await self.storage.open(self.layout.location(next(iter(self.columns))))
        except BaseException:
            await self.storage.close()
            raise
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="parquet")

    async def close(self) -> None:
        """Close the storage."""
        if self._thread is not None:
            # A running conversion is useless: its batch will be delivered again.
            self._thread.shutdown(wait=False, cancel_futures=True)
        await self.storage.close()

    async def deliver(self, messages: Sequence[Message]) -> BatchResult:
        """Store events as Parquet files.

        The result lists events without a known class or a valid time as refused. Raises
        RefusedError if a file is larger than the storage allows. Raises DeliveryError for other
        failures.
        """
        if self._maker is None:
            raise DeliveryError("the storage of Parquet files is not open")
        loop = asyncio.get_running_loop()
        files, refused = await loop.run_in_executor(self._thread, self._maker.make, messages)
        # The largest first: if one is refused as too large, no file has events that the caller then
        # delivers again, in smaller batches with other names.
        for file in sorted(files, key=lambda each: len(each.content), reverse=True):
            await self.storage.put(self.layout.key(file), file.content)
        return BatchResult(refused=tuple(refused))
