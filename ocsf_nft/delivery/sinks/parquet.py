"""Files of Parquet where Amazon Security Lake looks for those of custom sources.

A file is at ``ext/<source>-<class>/<source version>/region=<region>/accountId=<account>/
eventDay=<YYYYMMDD>/``: each class has a source of its own, as Security Lake wants it, and the path
is that of a custom source with a version ("Collecting data from custom sources", Amazon Security
Lake User Guide). It is the same in a directory, where each tool that knows Hive's partitions reads
it.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from ocsf_nft.delivery.parquet_files import Maker
from ocsf_nft.delivery.sinks.base import Outcome, Sink

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ocsf_nft.delivery.envelope import Message
    from ocsf_nft.delivery.parquet_columns import Struct
    from ocsf_nft.delivery.parquet_files import File


class Storage(Protocol):
    """What whole files are put into, by keys: a directory or a bucket."""

    async def open(self, prefix: str) -> None:
        """Find out whether files can be put below ``prefix``; raises DeliveryError."""

    async def close(self) -> None:
        """Leave it."""

    async def put(self, key: str, content: bytes) -> None:
        """Put a file, in place of one that has its key; raises DeliveryError."""


class Parquet(Sink):
    """Puts each batch into a storage, a file for each class and day that it has events of.

    ``columns`` are those of each class, by ``class_uid``. A ``source_version`` that is empty has
    no part in the path.

    A batch that is delivered again makes the same files under the same names, so that there are
    its events once, however often it was cut.
    """

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
        self._maker = Maker(columns)
        self._classes = tuple(columns)
        self._source = source
        self._source_version = source_version
        self._partition = f"region={region}/accountId={account}"
        self._thread: ThreadPoolExecutor | None = None

    async def open(self) -> None:
        """Open the storage; raises DeliveryError when nothing can be put there."""
        try:
            await self._storage.open(self._location(self._classes[0]))
        except BaseException:
            await self._storage.close()
            raise
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="parquet")

    async def close(self) -> None:
        """Leave the storage; files that are being made come to nothing."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
        await self._storage.close()

    async def deliver(self, messages: Sequence[Message]) -> Outcome:
        """Put files of a batch; what is no event of a class that there are columns for is refused.

        Raises DeliveryError, and RefusedError when a file is larger than the storage takes.
        """
        loop = asyncio.get_running_loop()
        made = await loop.run_in_executor(self._thread, self._maker.make, messages)
        for file in made.files:
            await self._storage.put(self._key(file), file.content)
        return Outcome(refused=made.refused)

    def _location(self, class_uid: int) -> str:
        location = f"ext/{self._source}-{class_uid}"
        return f"{location}/{self._source_version}" if self._source_version else location

    def _key(self, file: File) -> str:
        place = f"{self._location(file.class_uid)}/{self._partition}/eventDay={file.day}"
        return f"{place}/{file.name}"
