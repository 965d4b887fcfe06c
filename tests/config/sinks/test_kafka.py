"""Configuration of a sink of type kafka."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from pydantic import ValidationError

from ocsf_nft.config.sinks.kafka import KafkaSink
from ocsf_nft.delivery.receiver_settings import Secret, Tls
from ocsf_nft.delivery.sinks.kafka import Kafka
from ocsf_nft.errors import UnsupportedError

PASSWORD = {"credential": "kafka"}


def _sink(**facts: Any) -> KafkaSink:
    given = {"type": "kafka", "servers": ["kafka.example:9092"], "topic": "ocsf"}
    return KafkaSink.model_validate(given | facts)


def test_only_servers_and_topic_are_required() -> None:
    table = _sink()
    assert table.target == "kafka://kafka.example:9092/ocsf"
    sink = table.sink()
    assert isinstance(sink, Kafka)
    assert (sink.servers, sink.topic) == (("kafka.example:9092",), "ocsf")
    assert (sink.is_compressed, sink.max_bytes, sink.timeout_seconds) == (True, 1 << 20, 30.0)
    assert (sink.mechanism, sink.user, sink.password, sink.tls) == (None, None, None, None)


def test_all_settings_reach_the_sink() -> None:
    sink = _sink(
        servers=["[2001:db8::7]:9093", "b.example:9093"],
        compress=False,
        max_message_bytes=5 << 20,
        sasl="SCRAM-SHA-512",
        user="me",
        password=PASSWORD,
        tls={},
        timeout_seconds=5,
    ).sink()
    assert isinstance(sink, Kafka)
    assert (sink.is_compressed, sink.max_bytes, sink.timeout_seconds) == (False, 5 << 20, 5.0)
    assert (sink.mechanism, sink.user) == ("SCRAM-SHA-512", "me")
    assert sink.password == Secret("credential", "kafka")
    assert sink.tls == Tls()


@pytest.mark.parametrize(
    ("server", "cause"),
    [
        ("kafka.example", "must have a port"),
        ("kafka://kafka.example:9092", "must be a host and port"),
        ("me:hunter2@kafka.example:9092", "must be a host and port"),
        ("a.example:9092,b.example:9092", "must be a host and port"),
        ("", "must be a host and port"),
        (":9092", "must be a host and port"),
        ("::1:9092", "must be a host and port"),
        ("kafka.example:9092\n", "must be a host and port"),
        ("[::1]", "must have a port"),
        ("[1:2]:9092", "address of IPv6"),
        ("kafka.example:0", "port of 1 to 65535"),
        ("kafka.example:99999999", "port of 1 to 65535"),
        (9092, "must be text"),
    ],
)
def test_invalid_server_is_refused(server: object, cause: str) -> None:
    with pytest.raises(ValidationError, match=cause):
        _sink(servers=[server])


@pytest.mark.parametrize(
    "facts",
    [
        {"servers": []},
        {"topic": ""},
        {"topic": "."},
        {"topic": ".."},
        {"topic": "a b"},
        {"topic": "a\n"},
        {"topic": "x" * 250},
        {"max_message_bytes": 0},
        {"sasl": "GSSAPI"},
        {"timeout_seconds": None},
        {"password": "hunter2"},
        {"colour": "red"},
    ],
)
def test_invalid_setting_is_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(facts))):
        _sink(**facts)


@pytest.mark.parametrize("topic", ["...", "..a", ".a", "a.b_c-1", "x" * 249])
def test_topic_name_must_be_valid_for_brokers(topic: str) -> None:
    assert _sink(topic=topic).topic == topic


@pytest.mark.parametrize(
    "facts",
    [
        {"sasl": "PLAIN"},
        {"user": "me", "password": PASSWORD},
        {"sasl": "PLAIN", "user": "me"},
        {"sasl": "PLAIN", "password": PASSWORD},
    ],
)
def test_incomplete_login_is_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="give all three, or none"):
        _sink(**facts)


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiokafka", None)
    with pytest.raises(UnsupportedError, match=r"needs the extra ocsf-nft\[kafka\]"):
        _sink().sink()


def test_server_has_a_port_of_1_to_65535() -> None:
    for port in (1, 65_535):
        assert _sink(servers=[f"kafka.example:{port}"]).servers == (f"kafka.example:{port}",)
    for port in (0, 65_536, 100_000, 1_000_000):
        with pytest.raises(ValidationError, match="must have a port of 1 to 65535"):
            _sink(servers=[f"kafka.example:{port}"])
