"""Limits that the Kafka sink sets: of a batch, of a request, and of a whole delivery."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiokafka  # type: ignore[import-untyped]  # it ships no types
import pytest

from ocsf_nft.delivery.sinks.kafka import Kafka
from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from asyncio import Timeout


async def test_kafka_request_and_delivery_end_before_their_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, Any] = {}
    limits: list[float | None] = []
    limited = asyncio.timeout

    def refuse(**options: Any) -> None:
        given.update(options)
        raise ConnectionError(1, "no producer here")

    def limit(seconds: float | None) -> Timeout:
        limits.append(seconds)
        return limited(seconds)

    monkeypatch.setattr(aiokafka, "AIOKafkaProducer", refuse)
    monkeypatch.setattr(asyncio, "timeout", limit)
    sink = Kafka(servers=["127.0.0.1:1"], topic="ocsf", max_bytes=5000, timeout_seconds=30.0)
    with pytest.raises(DeliveryError, match="can't be used"):
        await sink.open()
    assert limits == [27.0]
    assert given["request_timeout_ms"] == 12_000, "so there is time for another request"
    assert given["max_batch_size"] == 256 << 10, "a broker accepts 1 MiB by default"
    assert given["max_request_size"] == 5000
    assert (given["acks"], given["enable_idempotence"]) == ("all", True)
    assert not [name for name in given if name.startswith("sasl")]
