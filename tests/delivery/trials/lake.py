"""Files of Parquet, in a bucket of S3."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tests.delivery.sinks.weed import ACCESS_KEY, BUCKET, SECRET
from tests.delivery.trials.receivers import Receiver, event
from tests.delivery.trials.relay import Relay

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Message
    from tests.delivery.trials.receivers import Setting

_PUT: Final = re.compile(rf"PUT /{BUCKET}/(\S+) HTTP".encode())
_CLASS: Final = 9999


def uids_in(content: bytes) -> list[str]:
    """Return the uids of the events in a file."""
    table = pq.ParquetFile(pa.BufferReader(content)).read(columns=["metadata.uid"])
    return [row["uid"] for row in table.column("metadata").to_pylist() if row is not None]


def unknown(number: int) -> Message:
    """Return the event of a number, with an unknown class."""
    message = event(number)
    return replace(message, line=orjson.dumps(message.event() | {"class_uid": _CLASS}))


class Bucket(Receiver):
    """SeaweedFS through a relay. All trials share the server, because it starts in seconds."""

    accepted_secret = SECRET
    refusal_text = "no class_uid that there are columns for"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._weed = setting.weed()
        self._weed.clear()
        self._is_up = True
        certificates = setting.certificates
        context = None if certificates is None else certificates.context("127.0.0.1")
        self._relay = Relay(self._weed.port, context=context)
        self._relay.on_request = self._record_puts
        self._put: dict[str, None] = {}
        if not setting.is_locked:
            setting.secret.write_text(SECRET)

    @property
    def table(self) -> dict[str, Any]:
        scheme = "http" if self._setting.certificates is None else "https"
        return {
            "type": "parquet",
            "bucket": f"s3://{BUCKET}",
            "endpoint": f"{scheme}://127.0.0.1:{self._relay.port}",
            "region": "eu-west-1",
            "access_key": ACCESS_KEY,
            "secret": {"file": str(self._setting.secret)},
            "timeout_seconds": 2.0 if self._setting.is_slow else 10.0,
            **self._setting.tls,
        }

    async def start(self) -> None:
        if not self._is_up:
            await asyncio.to_thread(self._weed.start)
            self._is_up = True
        await self._relay.open()

    async def kill(self) -> None:
        self._weed.kill()
        self._is_up = False
        await self._relay.close()

    async def end(self) -> None:
        await self._relay.close()

    async def uids(self) -> list[str]:
        """Return the uids of the objects, in the order of their first PUT."""
        found = await asyncio.to_thread(self._weed.objects)
        assert found.keys() <= self._put.keys()
        return [uid for path in self._put if path in found for uid in uids_in(found[path])]

    async def stop_answering(self) -> None:
        self._relay.may_pass.clear()

    async def answer_slowly(self, seconds: float) -> None:
        self._relay.seconds = seconds
        self._relay.may_pass.set()

    def poisoned(self, number: int) -> Message:
        return unknown(number)

    def _record_puts(self, request: bytes) -> None:
        self._put |= dict.fromkeys(unquote(path.decode()) for path in _PUT.findall(request))
